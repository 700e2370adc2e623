"""A way to a Docker engine over TCP, plain or with TLS: as to an engine on another machine."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_READ_BYTES = 64 * 1024
_HERE = ipaddress.ip_address("127.0.0.1")
_CHUNK = socket.socket | ssl.SSLSocket


class Relay:
    """Listens at a free port of this machine and passes what comes on to an engine's socket.

    Args:
        engine: The engine's socket.
        tls: How it greets; None for no TLS.
    """

    def __init__(self, engine: Path, tls: ssl.SSLContext | None = None) -> None:
        self._engine, self._tls = engine, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._listen, name="relay", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), name="relayed", daemon=True).start()

    def _serve(self, client: _CHUNK) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(client)
            if self._tls is not None:
                client = stack.enter_context(self._tls.wrap_socket(client, server_side=True))
            engine = stack.enter_context(socket.socket(socket.AF_UNIX))
            engine.connect(str(self._engine))
            while True:
                for source, target in ((client, engine), (engine, client)):
                    pending = isinstance(source, ssl.SSLSocket) and source.pending()
                    if pending or select.select([source], [], [], 0.01)[0]:
                        data = source.recv(_READ_BYTES)
                        if not data:
                            return
                        target.sendall(data)


@dataclass(frozen=True)
class Certificates:
    """Files of an authority and of what it has signed: the engine, and a client."""

    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    def context(self) -> ssl.SSLContext:
        """A server that only talks to clients of the authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.server)
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(folder: Path) -> Certificates:
    """An authority of its own, and what it signs."""
    folder.mkdir()
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    ca = _signed(ca_name, ca_name, ca_key, ca_key, authority=True)
    pairs = {}
    for who in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        pairs[who] = _written(folder, who, _signed(name, ca_name, key, ca_key), key)
    return Certificates(_written(folder, "ca", ca, ca_key)[0], pairs["server"], pairs["client"])


def _signed(
    name: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    by: ec.EllipticCurvePrivateKey,
    *,
    authority: bool = False,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(_HERE)])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
        .sign(by, hashes.SHA256())
    )


def _written(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    paths = folder / f"{name}.pem", folder / f"{name}-key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths
