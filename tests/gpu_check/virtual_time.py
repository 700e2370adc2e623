"""Virtual time for the processes that a test starts: minutes pass in seconds, and always in the same way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.parts import missing

SOURCE = Path(__file__).with_suffix(".c")
T0_S = 1_800_000_000
"""The first instant of each process, in seconds since 1970."""


def pass_virtually(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let processes started from now on live in virtual time, each of them from ``T0_S`` on.

    It is for processes of one thread that wait for nobody: another process would not come within a virtual time limit.
    """
    library = folder / "virtual_time.so"
    command = [
        os.environ.get("CC", "cc"),
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
    ]
    try:
        subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True)
    except FileNotFoundError:
        missing("virtual time needs a C compiler: install gcc and libc6-dev")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("VIRTUAL_T0_NS", str(T0_S * 10**9))
