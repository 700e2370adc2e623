"""A registry of one image that asks for a login: the part of Docker's Registry HTTP API V2 that a pull uses."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

USER, PASSWORD = "ada", "correct horse"  # what the stand-in asks for
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _layer(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("hello")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


class Registry:
    """Serves ``<host>:<port>/lab/tiny:1`` over plain HTTP, which an engine accepts from its own machine.

    Args:
        text: What is in the image, so that each test has its own.
    """

    def __init__(self, text: str) -> None:
        layer = _layer(text)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
                "history": [{"created_by": "a test"}],
            }
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _described("application/vnd.docker.container.image.v1+json", config),
            "layers": [_described("application/vnd.docker.image.rootfs.diff.tar", layer)],
        }
        self.manifest = json.dumps(manifest).encode()
        self.blobs = {_digest(each): each for each in (layer, config)}
        self.refused = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": self}))
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.image = f"{self.host}/lab/tiny:1"
        self.exact = f"{self.host}/lab/tiny@{_digest(self.manifest)}"

    def __enter__(self) -> Registry:
        threading.Thread(target=self._server.serve_forever, name="registry", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _described(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "size": len(content), "digest": _digest(content)}


class _Handler(BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            self.registry.refused += 1
            said = b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'
            return self._send(401, "application/json", said, body=body, asks='Basic realm="lab"')
        part = self.path.rpartition("/")[2]
        if self.path == "/v2/":
            return self._send(200, "application/json", b"{}", body=body)
        if "/manifests/" in self.path and part in ("1", _digest(self.registry.manifest)):
            return self._send(200, _MANIFEST, self.registry.manifest, body=body)
        if part in self.registry.blobs:
            return self._send(200, "application/octet-stream", self.registry.blobs[part], body=body)
        return self._send(404, "application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', body=body)

    def _send(self, status: int, kind: str, content: bytes, *, body: bool, asks: str = "") -> None:
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Docker-Content-Digest", _digest(content))
        if asks:
            self.send_header("WWW-Authenticate", asks)
        self.end_headers()
        if body:
            self.wfile.write(content)
