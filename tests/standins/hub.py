"""A small hub: folders of this machine over HTTP, as huggingface_hub asks for them. Real client, stand-in server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

COMMIT = "5e1f" * 10
TOKEN = "hf_" + "letmein" * 5


@dataclass
class Hub:
    """What is on the hub.

    Attributes:
        port: Where it listens, on every address of this machine.
        repositories: Folders by ``models/owner/name`` or ``datasets/owner/name``; all have the one commit.
        gated: Those that TOKEN opens.
        asked: Every path that was asked for.
    """

    port: int = 0
    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        shared = hub

    server = ThreadingHTTPServer(("", 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_to(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do for a client that is not loaded yet."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)


class _Handler(BaseHTTPRequestHandler):
    shared: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.shared.asked.append(path)
        api, parts = path.startswith("api/"), path.removeprefix("api/").split("/")
        if parts[0] not in ("models", "datasets"):
            parts = ["models", *parts]
        name, rest = "/".join(parts[:3]), parts[3:]
        folder = self.shared.repositories.get(name)
        if folder is None:
            self._refuse(404, "RepoNotFound")
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif name in self.shared.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "GatedRepo")
        elif rest[:1] == ["resolve"]:
            self._file(folder / "/".join(rest[2:]))
        elif api and rest[:1] in ([], ["revision"]):
            self._json({"id": name.partition("/")[2], "sha": COMMIT, "siblings": _siblings(folder)})
        else:
            self._refuse(404, "EntryNotFound")

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = path.read_bytes()
        self._answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _refuse(self, code: int, word: str) -> None:
        self._answer(code, b"", **{"X-Error-Code": word})

    def _answer(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing: the test says what was asked."""


def _siblings(folder: Path) -> list[dict[str, object]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "blobId": "0" * 40}
        for path in files
    ]
