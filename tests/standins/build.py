"""Build the stand-in GPU driver and its container hook into build/standins; run as a program or import it.

lib/libnvidia-ml.so.1                 the driver: put its folder on LD_LIBRARY_PATH
bin/nvidia-container-runtime-hook     the hook: its folder goes on the PATH of a Docker engine at its start
gpus.conf                             what containers see; may be rewritten at any time
hook.jsonl                            one line for each container that was served or refused
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOOK = "nvidia-container-runtime-hook"
LIBRARY = "libnvidia-ml.so.1"

DEFAULT_SCRIPT = """\
# Three GPUs: a steady one, a busy one, and one that is cut into MIG slices.
t0 = {t0}
gpus = 3
gpu.0.uuid = GPU-5741d000-0000-0000-0000-000000000000
gpu.0.power = const 250
gpu.1.uuid = GPU-5741d000-0000-0000-0000-000000000001
gpu.1.power = sine 300 50 1.737
gpu.2.uuid = GPU-5741d000-0000-0000-0000-000000000002
gpu.2.power = const 120
gpu.2.mig.0.uuid = MIG-5741d000-0000-0000-0002-000000000000
gpu.2.mig.1.uuid = MIG-5741d000-0000-0000-0002-000000000001
"""


@dataclass(frozen=True)
class Standins:
    """What was built.

    Attributes:
        home: build/standins.
    """

    home: Path

    @property
    def library_dir(self) -> Path:
        """For LD_LIBRARY_PATH."""
        return self.home / "lib"

    @property
    def hook_dir(self) -> Path:
        """For the PATH of a Docker engine."""
        return self.home / "bin"

    @property
    def script(self) -> Path:
        """What containers see."""
        return self.home / "gpus.conf"

    @property
    def hook_log(self) -> Path:
        """What the hook did."""
        return self.home / "hook.jsonl"

    def environment(self, script: Path) -> dict[str, str]:
        """The environment of a process that shall see the GPUs of a script."""
        return {"LD_LIBRARY_PATH": str(self.library_dir), "STANDIN_NVML_SCRIPT": str(script)}


def build(home: Path | None = None) -> Standins:
    """Compile what has changed since the last time.

    Args:
        home: Where to; build/standins of the repository unless given.

    Raises:
        RuntimeError: There is no C compiler, or it refused.
    """
    standins = Standins(home or HERE.parents[1] / "build" / "standins")
    for folder in (standins.library_dir, standins.hook_dir):
        folder.mkdir(parents=True, exist_ok=True)
    if not standins.script.exists():
        _replace(standins.script, DEFAULT_SCRIPT.format(t0=time.time_ns() // 10**9).encode(), 0o644)
    sources = sorted((HERE / "nvml").glob("*.[ch]"))
    content = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, HERE / HOOK])).hexdigest()
    stamp = standins.home / "stamp"
    if not stamp.exists() or stamp.read_text() != content:
        _compile([path for path in sources if path.suffix == ".c"], standins.library_dir / LIBRARY)
        # The hook runs with the engine's environment, so it names its interpreter.
        hook = (HERE / HOOK).read_text().split("\n", 1)[1]
        interpreter = Path(sys.executable).resolve()
        _replace(standins.hook_dir / HOOK, f"#!{interpreter}\n{hook}".encode(), 0o755)
        _replace(stamp, content.encode(), 0o644)
    return standins


def _compile(sources: list[Path], library: Path) -> None:
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        fresh = Path(folder) / LIBRARY
        command = [os.environ.get("CC", "cc"), *flags, f"-Wl,-soname,{LIBRARY}", *map(str, sources)]
        try:
            subprocess.run(
                [*command, "-o", str(fresh), "-lm", "-lpthread"], check=True, capture_output=True, text=True
            )
        except FileNotFoundError as error:
            raise RuntimeError(
                "the stand-in GPU driver needs a C compiler: install gcc and libc6-dev"
            ) from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"the stand-in GPU driver does not compile:\n{error.stderr}") from error
        fresh.replace(library)  # running processes keep the old one


def _replace(path: Path, content: bytes, mode: int) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).chmod(mode)
    Path(file.name).replace(path)


if __name__ == "__main__":
    print(build().home)  # noqa: T201  # a program's answer
