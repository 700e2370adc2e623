"""A first visit to a GPU: ``python -m benchmarks.on_gpu FOLDER``, from a bare checkout, without Airflow or a network.

It runs each step as a process group of its own with a time limit; a step that fails or hangs is told, and the others
run all the same. FOLDER then holds at most seven files:

    summary.txt, summary.json   one line a step, and what each found
    log.txt                     everything that the steps said
    gpu-profiles.json           what ``llem-airflow gpu-check`` found out about each board
    peers.json                  this project, Zeus and CodeCarbon on the same windows
    checks.json                 the GPU-marked tests
    results.tar.gz              the results root: a study of four experiments, and the boards' profiles with their pages

What the machine lacks is carried: ``python -m benchmarks.on_gpu.pack`` fills build/on_gpu/wheels where there is a
network. Exit code 0 when every step was well. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WHEELS = REPOSITORY / "build" / "on_gpu" / "wheels"
_STEP = "benchmarks.on_gpu."


@dataclass(frozen=True)
class Step:
    """One part of the visit.

    Attributes:
        name: What it is called.
        arguments: Of ``python -m``.
        limit_s: It is ended after so many seconds.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        step: Its name.
        state: ok, failed or timeout.
        seconds: How long it took.
        said: Its last lines, which are its summary.
    """

    step: str
    state: str
    seconds: float
    said: list[str]


def steps(folder: Path, *, short: bool, study: Path) -> list[Step]:
    """The steps in their order; the limits add up to less than nine minutes."""
    out = str(folder)
    cut = ("--short",) if short else ()
    return [
        Step("machine", (_STEP + "machine", out), 40),
        Step("gpu-check", (_STEP + "profiles", out, *cut), 185),
        Step("checks", (_STEP + "checks", out), 60),
        Step("peers", (_STEP + "peers", out, *cut), 110),
        Step("study", (_STEP + "study", str(study)), 140),
    ]


def carried(wheels: Path, into: Path) -> list[str]:
    """Unpack the wheels of packages that are not installed here; a wheel is a zip that lies as it is imported.

    Returns:
        Names of those that were unpacked.
    """
    names = []
    for wheel in sorted(wheels.glob("*.whl")):
        if not _fits(wheel.name):
            continue
        with zipfile.ZipFile(wheel) as archive:
            (said,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")][:1]
            name = str(HeaderParser().parsestr(archive.read(said).decode())["Name"])
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                archive.extractall(into)
                names.append(name)
    return names


def _fits(wheel: str) -> bool:
    """Whether a wheel is for this Python: its name ends in Python, ABI and platform."""
    python, abi, _ = wheel.removesuffix(".whl").rsplit("-", 3)[1:]
    return abi in ("none", "abi3") or f"cp{sys.version_info[0]}{sys.version_info[1]}" in python.split(".")


def run(step: Step, log: Path, environment: dict[str, str]) -> Outcome:
    """Run a step to its end or its limit; nothing of its process group stays."""
    begin_s = time.monotonic()
    with log.open("a+b") as output:
        output.write(f"\n=== {step.name}\n".encode())
        output.flush()
        start = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        try:
            state = "ok" if process.wait(step.limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(start)
        lines = output.read().decode(errors="replace").splitlines()
    return Outcome(step.name, state, round(time.monotonic() - begin_s, 1), _last(lines, state))


def _last(lines: Sequence[str], state: str) -> list[str]:
    """The lines that begin with ``> `` are a step's summary; where it failed, its last words come along."""
    said = [line[2:] for line in lines if line.startswith("> ")]
    others = [line for line in lines if line.strip() and not line.startswith("> ")]
    return said if state == "ok" else [*said, *others[-3:]]


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The summary, line by line."""
    for one in outcomes:
        yield f"{one.step:<10} {one.state:<8} {one.seconds:6.1f} s"
        yield from (f"    {line}" for line in one.said)


def main() -> int:
    """Run all steps."""
    options = argparse.ArgumentParser(description="A first visit to a GPU.")
    options.add_argument("folder", type=Path, help="where the files go; made")
    options.add_argument("--short", action="store_true", help="as little as shows that each step works")
    options.add_argument("--study", type=Path, default=Path(__file__).with_name("study.yaml"))
    options.add_argument("--wheels", type=Path, default=WHEELS)
    options.add_argument("--patience", type=float, default=1.0, help="of each limit; more on a slow machine")
    options.add_argument("--only", nargs="*", help="names of steps")
    chosen = options.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    outcomes = []
    with tempfile.TemporaryDirectory() as packages, tempfile.TemporaryDirectory() as root:
        names = carried(chosen.wheels, Path(packages))
        log.write_text(f"carried: {', '.join(names) or 'nothing'}\n")
        path = os.pathsep.join([str(REPOSITORY), packages, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        environment["LLEM_RESULTS_ROOT"] = root  # one for all steps: the study uses what gpu-check found out
        for step in steps(folder, short=chosen.short, study=chosen.study.resolve()):
            if chosen.only and step.name not in chosen.only:
                continue
            outcomes.append(run(replace(step, limit_s=step.limit_s * chosen.patience), log, environment))
            # Written after each step: what is there is there, whatever ends this process.
            (folder / "summary.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
            (folder / "summary.txt").write_text("\n".join(table(outcomes)) + "\n")
            print("\n".join(table(outcomes[-1:])), flush=True)
        with tarfile.open(folder / "results.tar.gz", "w:gz") as archive:
            archive.add(root, arcname="results")
    return int(any(one.state != "ok" for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
