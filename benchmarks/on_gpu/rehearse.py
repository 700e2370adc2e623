"""The whole visit on the stand-in, from a bare environment: ``python -m benchmarks.on_gpu.rehearse FOLDER``.

It makes a virtual environment of what a machine with a GPU has by agreement (and neither Airflow nor anything else),
in build/on_gpu, fetches the wheels that are carried, and then runs ``benchmarks.on_gpu`` there, without a network where
this process may take it away. The stand-in plays the plan of gpu-check, and after it a square load for the other steps.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from benchmarks.on_gpu.__main__ import REPOSITORY
from benchmarks.on_gpu.pack import pack
from benchmarks.on_gpu.profiles import PLAN_S
from llem_airflow.measurement.board.load import SCRIPTED
from tests.gpu_check.scripted import HIGH_W, LOW_W, write_plan
from tests.standins.build import build

VENV = REPOSITORY / "build" / "on_gpu" / "venv"
PACKAGES = ("transformers", "pyarrow", "scipy", "pyyaml", "rich", "click", "nvidia-ml-py")
BEGINS_IN_S = 60.0
"""Until gpu-check has imported PyTorch and asked the board everything, on a busy machine."""
UUID = "GPU-5741d000-0000-0000-0000-00000f125702"
LASTS_S, PERIOD_S = 1800.0, 0.737
PATIENCE = 4.0
"""This machine has no sixteen cores: PyTorch alone may take a minute to import."""
SMI = """\
import sys, time, pynvml
if not any(one.startswith("--loop-ms") for one in sys.argv): sys.exit()
pynvml.nvmlInit()
board = pynvml.nvmlDeviceGetHandleByIndex(0)
while True:
    print(pynvml.nvmlDeviceGetPowerUsage(board) / 1e3, flush=True)
    time.sleep(0.1)
"""
"""The driver's tool, of which gpu-check reads the power, and CodeCarbon whether it is there."""


def main() -> int:
    """Prepare, run and tell; the exit code of the visit."""
    out = Path(sys.argv[1]).resolve()
    python = _environment()
    wheels = VENV.with_name("wheels-of-rehearsal")
    if not any(wheels.glob("*.whl")):
        pack(wheels, _version(python))
    with tempfile.TemporaryDirectory() as folder:
        environment = _standin(Path(folder), python)
        began_s = time.monotonic()
        done = subprocess.run(
            [
                *_without_network(),
                str(python),
                "-m",
                "benchmarks.on_gpu",
                str(out),
                "--patience",
                str(PATIENCE),
                "--wheels",
                str(wheels),
            ],
            cwd=REPOSITORY,
            env=environment,
            check=False,
        )
    print(f"{time.monotonic() - began_s:.0f} s in all, {len(list(out.iterdir()))} files in {out}")
    return done.returncode


def _environment() -> Path:
    """Python of the bare environment, made the first time; 3.12 where there is one."""
    python, whole = VENV / "bin" / "python", VENV / "whole"
    if not whole.exists():
        own = shutil.which("python3.12")
        if own is None or subprocess.run([own, "-V"], check=False, capture_output=True).returncode:
            print(f"no Python 3.12 here: {sys.version.split()[0]} instead")
            own = sys.executable
        subprocess.run([own, "-m", "venv", "--clear", str(VENV)], check=True)
        torch = f"torch=={metadata.version('torch').partition('+')[0]}"
        for wanted in (shlex.split(os.environ.get("TORCH", torch)), PACKAGES):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        whole.touch()
    return python


def _version(python: Path) -> str:
    """Of a Python, as 3.12."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def _standin(folder: Path, python: Path) -> dict[str, str]:
    """An environment with one stand-in GPU and nothing of this one's Python."""
    power, script = folder / "power.csv", folder / "gpus.conf"
    write_plan(power, PLAN_S)
    with power.open("a") as lines:
        for number in range(int(LASTS_S / PERIOD_S)):
            for share, watts in ((0.0, HIGH_W), (0.6, HIGH_W), (0.6001, LOW_W), (0.9999, LOW_W)):
                lines.write(f"{PLAN_S + (number + share) * PERIOD_S:.6f},{watts}\n")
    begin_s = time.time_ns() / 1e9 + BEGINS_IN_S
    script.write_text(
        f"t0 = {begin_s:.6f}\ngpus = 1\ngpu.0.uuid = {UUID}\ngpu.0.idle_w = {LOW_W}\ngpu.0.power = csv {power}\n"
    )
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!{python}\n{SMI}")
    program.chmod(0o755)
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    kept["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **build().environment(script), SCRIPTED: f"{begin_s:.6f}", "OMP_NUM_THREADS": "1"}


def _without_network() -> list[str]:
    """A network of its own, in which there is nothing; nothing where that is not allowed."""
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") and not subprocess.run([*alone, "true"], check=False).returncode:
        return alone
    print("this process may not take the network away: it stays")
    return []


if __name__ == "__main__":
    sys.exit(main())
