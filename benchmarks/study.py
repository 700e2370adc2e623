"""Speed of the study language: this project against llenergymeasure 0.7, in the same run.

    python -m benchmarks.study [--peer PYTHON] [--repeats 3] [--output FILE.json]

CPU seconds (user and system) and peak memory of whole processes: importing the package, and loading and planning a
sweep of 1, 100, 1,000 and 5,000 experiments; ours also 50,000. The least of the repeats counts, because other work on
the machine only ever adds. Without --peer the peer is installed into build/peer-study the first time.
Exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PEER = "llenergymeasure==0.7.0"
SIZES = {1: (1, 1, 1), 100: (10, 10, 1), 1_000: (10, 10, 10), 5_000: (10, 50, 10), 50_000: (50, 100, 10)}
LARGEST_FOR_PEER = 5_000
MEMORY_TARGET_MB = 200.0
LINEAR_TARGET = 2.0

OURS_IMPORT = "import llem_airflow.study"
PEER_IMPORT = "import llenergymeasure"
OURS_PLAN = (
    "import sys; from llem_airflow.study import load_study; "
    "print(len(load_study(sys.argv[1]).plan.planned_cycles))"
)
PEER_PLAN = (
    "import sys, logging; logging.disable(50); from llenergymeasure.api import load_study; "
    "print(len(load_study(sys.argv[1]).experiments))"
)


@dataclass(frozen=True)
class Cost:
    """What a process cost.

    Attributes:
        cpu_s: User and system time, in seconds.
        peak_mb: Largest resident size, in megabytes.
        output: What it printed.
    """

    cpu_s: float
    peak_mb: float
    output: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="Python that has llenergymeasure 0.7")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    peer = options.peer or peer_python()
    # an installer compiles what it installs, so the peer is compiled; a working tree need not be
    subprocess.run([sys.executable, "-m", "compileall", "-q", REPOSITORY / "llem_airflow"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(Path(folder), peer, options.repeats)
    show(numbers)
    if options.output:
        options.output.write_text(json.dumps({key: asdict(cost) for key, cost in numbers.items()}, indent=1))
    return judge(numbers)


def peer_python() -> Path:
    """The peer in an environment of its own: its dependencies are none of ours."""
    home = REPOSITORY / "build" / "peer-study"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", PEER], check=True)
    return python


def study_text(size: int) -> str:
    """A sweep of three axes with that many points, in the words that both understand."""
    batches, outputs, seeds = SIZES[size]
    return (
        "study_name: benchmark\nserving_mode: offline\ntask: {model: gpt2}\nstudy_execution: {n_cycles: 1}\n"
        "transformers: {engine_params: {dtype: bfloat16}}\nsweep:\n"
        f"  transformers.llem_execution.batch_size: {list(range(1, batches + 1))}\n"
        f"  task.max_output_tokens: {list(range(8, outputs + 8))}\n"
        f"  task.random_seed: {list(range(seeds))}\n"
    )


def measure(folder: Path, peer: Path, repeats: int) -> dict[str, Cost]:
    """Every cost, by ``<tool> <what>``; the two tools take turns so that they see the same machine."""
    numbers: dict[str, Cost] = {}
    jobs = [("import", 0, "")]
    for size in SIZES:
        path = folder / f"study-{size}.yaml"
        path.write_text(study_text(size))
        jobs.append(("plan", size, str(path)))
    for what, size, path_text in jobs:
        for _ in range(repeats):
            for tool, python, code in (
                ("ours", Path(sys.executable), OURS_IMPORT if what == "import" else OURS_PLAN),
                ("peer", peer, PEER_IMPORT if what == "import" else PEER_PLAN),
            ):
                if tool == "peer" and size > LARGEST_FOR_PEER:
                    continue
                cost = run([str(python), "-c", code, path_text])
                if what == "plan" and int(cost.output) != size:
                    raise SystemExit(f"{tool} made {cost.output} experiments of a study of {size}")
                key = f"{tool} {what} {size}" if size else f"{tool} {what}"
                if key not in numbers or cost.cpu_s < numbers[key].cpu_s:
                    numbers[key] = cost
    return numbers


def run(command: list[str]) -> Cost:
    """Run a process to its end and say what it cost."""
    with tempfile.TemporaryFile() as stdout:
        process = subprocess.Popen(
            command, stdout=stdout, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]} failed with {process.returncode}")
        stdout.seek(0)
        output = stdout.read().decode().strip()
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def per_experiment_s(numbers: dict[str, Cost], tool: str, size: int) -> float:
    """CPU time that one more experiment costs, in seconds."""
    return (numbers[f"{tool} plan {size}"].cpu_s - numbers[f"{tool} plan 1"].cpu_s) / (size - 1)


def show(numbers: dict[str, Cost]) -> None:
    print(f"{'':>14} {'ours CPU s':>11} {'peer CPU s':>11} {'peer/ours':>10} {'ours MB':>8} {'peer MB':>8}")
    for key, cost in numbers.items():
        if not key.startswith("ours"):
            continue
        what = key.removeprefix("ours ")
        peer = numbers.get(f"peer {what}")
        if peer is None:
            print(f"{what:>14} {cost.cpu_s:>11.3f} {'-':>11} {'-':>10} {cost.peak_mb:>8.0f} {'-':>8}")
        else:
            ratio = peer.cpu_s / cost.cpu_s
            print(
                f"{what:>14} {cost.cpu_s:>11.3f} {peer.cpu_s:>11.3f} {ratio:>10.1f} "
                f"{cost.peak_mb:>8.0f} {peer.peak_mb:>8.0f}"
            )


def judge(numbers: dict[str, Cost]) -> int:
    """Print each target and whether it is met; 0 when all are."""
    ours, peer = (per_experiment_s(numbers, tool, 5_000) for tool in ("ours", "peer"))
    growth = per_experiment_s(numbers, "ours", 50_000) / ours
    peak_mb = numbers["ours plan 50000"].peak_mb
    import_ratio = numbers["ours import"].cpu_s / numbers["peer import"].cpu_s
    targets = [
        (f"one more experiment: {ours * 1e6:.0f} us against {peer * 1e6:.0f} us", ours / peer, 0.1),
        ("import", import_ratio, 0.2),
        ("cost of one more at 50,000 over that at 5,000 (linear)", growth, LINEAR_TARGET),
        (
            f"peak memory at 50,000: {peak_mb:.0f} MB of {MEMORY_TARGET_MB:.0f}",
            peak_mb / MEMORY_TARGET_MB,
            1.0,
        ),
    ]
    for name, value, target in targets:
        print(f"{'met   ' if value <= target else 'MISSED'} {name}: ratio {value:.3f}, target {target}")
    return 0 if all(value <= target for _, value, target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
