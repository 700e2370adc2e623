"""A real SSH server of this machine, with keys of its own: the way to an engine on another one."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.parts import free_port, missing

_LIMIT_S = 60.0


class SSHServer:
    """Listens at a port of this machine; who has its key gets in.

    Args:
        folder: Where its files go: its configuration and keys, and those of a user.
        settings: More lines of its configuration.
    """

    def __init__(self, folder: Path, settings: str = "") -> None:
        found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if found is None:
            missing("sshd (Debian: openssh-server)")
        self._program = str(found)
        self.folder = folder
        self.port = free_port()
        self.user = getpass.getuser()
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        for name in ("host", "user", "other"):
            make = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
            subprocess.run(make, check=True)
        self.know(folder / "known", "host")
        (folder / "sshd_config").write_text(f"""\
ListenAddress 127.0.0.1:{self.port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
{settings}
""")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self._forgive()
        self._running: subprocess.Popen[bytes] | None = None

    def _forgive(self) -> None:
        """Servers since 9.8 turn away for a while who was refused several times; older ones do not know the word."""
        config = self.folder / "sshd_config"
        plain = config.read_text()
        config.write_text(f"{plain}PerSourcePenalties no\n")
        test = subprocess.run((self._program, "-t", "-f", str(config)), check=False, capture_output=True)
        if test.returncode:
            config.write_text(plain)

    @property
    def address(self) -> str:
        """What a connection names, without a socket."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def know(self, path: Path, key: str) -> None:
        """Write a file of known hosts in which one of its keys is the server's."""
        kind, text = (self.folder / f"{key}.pub").read_text().split()[:2]
        path.write_text(f"[127.0.0.1]:{self.port} {kind} {text}\n")

    def client(
        self, monkeypatch: pytest.MonkeyPatch, *, key: str = "user", known: str = "known", settings: str = ""
    ) -> None:
        """From now on ``ssh`` is a user's with this configuration.

        Args:
            monkeypatch: Puts it into PATH.
            key: The user's key.
            known: File of the hosts that the user knows.
            settings: More lines of the configuration.
        """
        config = self.folder / f"config-{key}-{known}"
        config.write_text(f"""\
IdentityFile {self.folder}/{key}
IdentitiesOnly yes
UserKnownHostsFile {self.folder}/{known}
GlobalKnownHostsFile /dev/null
{settings}
""")
        path = os.environ["PATH"].removeprefix(f"{self.folder}/bin:")
        program = self.folder / "bin" / "ssh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh", path=path)} -F {config} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{path}")

    def __enter__(self) -> SSHServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        log = (self.folder / "log").open("ab")
        with log:
            command = (self._program, "-D", "-e", "-f", str(self.folder / "sshd_config"))
            self._running = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + _LIMIT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", self.port), _LIMIT_S).close()
            assert self._running.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)
        raise AssertionError("sshd does not listen")

    def kill(self) -> int:
        """End it and all its connections, at once.

        Returns:
            How many processes its connections were.
        """
        if self._running is None:
            return 0
        self._running.send_signal(signal.SIGSTOP)  # nobody comes meanwhile
        connections = _below(self._running.pid)
        self._running.kill()
        for pid in connections:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._running.wait()
        self._running = None
        return len(connections)


def _below(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [each for child in children for each in (child, *_below(child))]
    return []


def ssh_clients() -> list[int]:
    """Processes of ``ssh`` that this one has started and that are there, ended or not."""
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            children = (thread / "children").read_text().split()
            found += [int(each) for each in children if Path(f"/proc/{each}/comm").read_text() == "ssh\n"]
    return found
