"""A Docker engine behind ``ssh://[user@]host[:port][/path/of/its.sock]``, by the system's own ``ssh``.

What the docker command does, too: ``docker system dial-stdio`` on the other side is a connection to its engine. So
~/.ssh/config, keys, agent and known hosts are those of the user. The Docker client's own way reads them in part, needs
a further package, and hangs where the network does.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass
from typing import IO, Any

import docker
import requests
import urllib3
from docker.constants import MINIMUM_DOCKER_API_VERSION
from docker.errors import DockerException
from docker.transport import UnixHTTPAdapter
from docker.transport.unixconn import UnixHTTPConnection, UnixHTTPConnectionPool

SCHEME = "ssh://"
_PROGRAM = "ssh"
_LAST_WORD_S = 2.0
"""How long after the end of a connection the program may take to say why."""

_SAID = {
    r"IDENTIFICATION HAS CHANGED": (
        "the host shows another key than the one in known_hosts: the machine was set up anew, or somebody stands in "
        "between. Ask who runs it; if it is the right one, `ssh-keygen -R {host}` forgets the old key"
    ),
    r"Host key verification failed|host key is known": (
        "the host's key is not known here, and none is accepted unseen: log in once by hand as the user of the worker "
        "(`ssh {login}`) and compare the fingerprint, or put the key into known_hosts"
    ),
    r"Permission denied \(|Too many authentication failures|no mutual signature": (
        "no key of this user is accepted: put one that needs no passphrase (or that an agent holds) into "
        "authorized_keys of {who} there"
    ),
    r"Could not resolve hostname": "the name of the host cannot be resolved (DNS)",
    r"port \d+: Connection refused": "no SSH server listens there: start it, or correct the port",
    r"connect to host|timed out|Timeout, server|No route to host": (
        "the host does not answer: let this machine through to it"
    ),
    r"docker: (?:command )?not found|docker: No such file": (
        "there is no command `docker` on the host, which passes the connection on to the engine: install it there "
        "(docker.io or docker-ce-cli), in the PATH of logins without a terminal"
    ),
    r"unix .*permission denied|permission denied while trying to connect": (
        "the user may not use the engine's socket: `sudo usermod -aG docker USER` on the host"
    ),
    r"unix .*(?:no such file|connection refused)|Cannot connect to the Docker daemon": (
        "no engine runs behind that socket: start it on the host (`systemctl start docker`)"
    ),
}
"""What ssh, a shell and the docker command say, and what it means for a person."""


class SSHError(DockerException):
    """Nobody answers at an ssh:// address; the text says why and what to do.

    Args:
        url: The address.
        reason: Why.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"cannot connect to the Docker daemon at {url}: {reason}")
        self.reason = reason


class _EndedError(ConnectionError):
    """The program has ended; the text is the last that it said."""


@dataclass(frozen=True, slots=True)
class SSHAddress:
    """Where an engine is.

    Attributes:
        host: A name, an address, or a ``Host`` of ~/.ssh/config.
        user: Who logs in; None for what ~/.ssh/config says.
        port: As ``user``.
        path: The engine's socket on the host; empty for what the docker command there takes.
    """

    host: str
    user: str | None = None
    port: int | None = None
    path: str = ""

    @classmethod
    def of(cls, url: str) -> SSHAddress:
        """From a URL.

        Raises:
            ValueError: It is none, or it holds what is not used; the text says what is allowed.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, user, port = parts.hostname, parts.username, parts.port
        except ValueError:
            parts, host, user, port = urllib.parse.urlsplit(""), None, None, None
        # What begins with a hyphen would be an option of ssh.
        if not host or host.startswith("-") or (user or "").startswith("-"):
            raise ValueError(f"found {url!r}; allowed: ssh://[user@]host[:port][/path/of/the/engine.sock]")
        if parts.password:
            raise ValueError("an ssh:// address takes no password: give the user of the worker a key")
        return cls(host, user, port, parts.path.rstrip("/"))

    @property
    def url(self) -> str:
        """As a URL."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        return f"{SCHEME}{user}{host}{port}{self.path}"

    @property
    def login(self) -> str:
        """As one gives it to ``ssh``, for people."""
        port = f"-p {self.port} " if self.port else ""
        return f"{port}{self.user}@{self.host}" if self.user else f"{port}{self.host}"

    def command(self, connect_timeout_s: int) -> list[str]:
        """What is run here.

        Args:
            connect_timeout_s: How long the way to the host may take, in seconds.
        """
        options = {
            "BatchMode": "yes",  # nobody is there to answer
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": connect_timeout_s,
            "ServerAliveInterval": 15,
            "ServerAliveCountMax": 3,
        }
        there = ["docker", *(["--host", f"unix://{self.path}"] if self.path else []), "system", "dial-stdio"]
        return [
            _PROGRAM,
            "-T",
            *(f"-o{name}={value}" for name, value in options.items()),
            *(["-l", self.user] if self.user else []),
            *(["-p", str(self.port)] if self.port else []),
            "--",
            self.host,
            shlex.join(there),
        ]

    def explained(self, said: str) -> str:
        """What the program said last, after what it means."""
        # The frame around a warning says nothing, and comes first.
        last = " / ".join(line for line in said.splitlines() if line.strip(" @"))[-300:]
        for sign, words in _SAID.items():
            if re.search(sign, said):
                known = f"[{self.host}]:{self.port}" if self.port else self.host
                who = self.user or "the user"
                return f"{words.format(host=shlex.quote(known), login=self.login, who=who)} ({last})"
        return last or "the connection ended without a word"


class _Socket(socket.socket):
    """Our end of the pipe to a program, which ends with it."""

    program: subprocess.Popen[bytes] | None = None
    said: IO[bytes]

    @classmethod
    def dial(cls, address: SSHAddress, timeout_s: int) -> _Socket:
        """Start the program for an engine.

        Raises:
            OSError: It cannot be started.
        """
        ours, theirs = socket.socketpair()
        made = cls(fileno=ours.detach())
        # A file, no pipe: nobody reads it while the connection lives, and a master of several may keep it open.
        made.said = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the connection
        with theirs:
            try:
                made.program = subprocess.Popen(  # the user's ssh
                    address.command(timeout_s),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=made.said,
                    start_new_session=True,  # Ctrl-C is for whoever asked
                )
            except BaseException:
                made.close()
                raise
        return made

    def _real_close(self, *args: Any) -> None:
        """As of every socket, when the last file made of it is closed."""
        super()._real_close(*args)  # type: ignore[misc]  # not in the stubs; ssl.SSLSocket does the same
        if self.program is not None:
            self.program.terminate()
            self.program.wait()
        self.said.close()

    def last_words(self) -> str:
        """What the program said on its error output, once it has ended; empty while it lives."""
        try:
            if self.program is not None:
                self.program.wait(_LAST_WORD_S)
        except subprocess.TimeoutExpired:
            return ""
        self.said.seek(0)
        return self.said.read().decode("utf-8", "replace").strip() or "the connection ended without a word"


class _Connection(UnixHTTPConnection):
    """As over a socket of this machine, which leads to a program."""

    def __init__(self, address: SSHAddress, timeout: int) -> None:
        super().__init__("", "", timeout)
        self._address, self._timeout_s = address, timeout

    def connect(self) -> None:
        self.sock = _Socket.dial(self._address, self._timeout_s)
        self.sock.settimeout(self.timeout)

    def getresponse(self) -> Any:
        sock: Any = self.sock
        with sock.makefile("rb", 0):  # keeps it open when the connection is closed for its error
            try:
                return super().getresponse()
            except ConnectionError as error:  # a RemoteDisconnected, too
                if words := sock.last_words():
                    raise _EndedError(words) from error
                raise


class _Pool(UnixHTTPConnectionPool):
    def __init__(self, address: SSHAddress, timeout: int, maxsize: int) -> None:
        super().__init__("", "", timeout, maxsize)
        self._address, self._timeout_s = address, timeout

    def _new_conn(self) -> Any:
        return _Connection(self._address, self._timeout_s)


class _Adapter(UnixHTTPAdapter):
    def __init__(self, address: SSHAddress, timeout_s: int) -> None:
        super().__init__("http+unix:///", timeout_s)
        self._address = address

    def get_connection(self, url: str | bytes, proxies: Any = None) -> _Pool:  # noqa: ARG002  # requests' signature
        pools: Any = self.pools
        with pools.lock:
            if (pool := pools.get("")) is None:
                pool = pools[""] = _Pool(self._address, self.timeout, self.max_pool_size)
            found: _Pool = pool
            return found


class SSHClient(docker.APIClient):
    """A client of an engine behind ssh.

    Args:
        url: Its address.
        timeout_s: Of each call, and of the way to the host, in seconds.
        version: Version of the API; None for its newest.

    Raises:
        SSHError: Nobody answers there; the text says why and what to do.
    """

    def __init__(self, url: str, *, timeout_s: int, version: str | None = None) -> None:
        try:
            address = SSHAddress.of(url)
        except ValueError as error:
            raise SSHError(url, str(error)) from error
        # With a version it asks nobody yet.
        super().__init__("unix:///ssh", version=version or MINIMUM_DOCKER_API_VERSION, timeout=timeout_s)
        self._custom_adapter = _Adapter(address, timeout_s)
        self.mount("http+docker://", self._custom_adapter)
        try:
            if version is None:
                self._version = str(self.version(api_version=False)["ApiVersion"])
        except (requests.exceptions.RequestException, DockerException, KeyError) as error:
            self.close()
            raise SSHError(url, _why(address, error)) from error


def _why(address: SSHAddress, error: BaseException) -> str:
    """What lies behind an error of the HTTP client."""
    inner: Any = error
    while (
        isinstance(inner, requests.exceptions.RequestException | urllib3.exceptions.HTTPError) and inner.args
    ):
        inner = next((each for each in inner.args if isinstance(each, BaseException)), None)
    if isinstance(inner, _EndedError):
        return address.explained(str(inner))
    if isinstance(inner, FileNotFoundError):
        return f"there is no program `{_PROGRAM}` here: install openssh-client"
    return str(error)
