"""Energy of known power profiles: this project against Zeus, CodeCarbon and llenergymeasure.

    python -m benchmarks.accuracy [--windows 5 5 10 10 30 60] [--rounds 3] [--gpus 1 2] [--profiles TEXT] [--copies N]
                                  [--output FILE.json]

All tools measure the same stand-in GPUs (tests/standins) at the same time. Each GPU follows one profile whose
energy is known in closed form; a tool's error is relative to the exact energy between its own begin and end.
A round starts every tool once and measures the windows one after another, in random order; each begins at a
random phase and lasts a random part of a register period longer. The peers are installed into build/peers the
first time.

With fewer than eight GPUs there is a host for each one (or two) of the profiles: a driver script and a process of each
tool of its own. All hosts measure side by side, as the tools sleep most of the time; how busy the machine was in the
windows and how many of this project's samples were lost is told. ``--copies`` makes several hosts of each kind: as many
more windows in the same time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.standins.build import build

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = ("zeus==0.16.0", "codecarbon==3.3.2", "llenergymeasure==0.7.0")
TOOLS = ("llem-airflow", "zeus", "codecarbon", "llenergymeasure")
START_S = 6.0
"""Time that the tools of one host need to import themselves, on a machine with nothing else to do."""
BETWEEN_S = 5.0
"""Time that the slowest tool needs between two windows."""


@dataclass(frozen=True)
class Profile:
    """Power over time and its exact integral.

    Attributes:
        name: What it is called in the table.
        script: The same for the stand-in driver.
        energy_j: Energy from 0 to t seconds, in joules.
    """

    name: str
    script: str
    energy_j: Callable[[float], float]


def _square(low_w: float, high_w: float, period_s: float, duty: float) -> Callable[[float], float]:
    def energy_j(t_s: float) -> float:
        whole, rest_s = divmod(t_s, period_s)
        high_s = duty * period_s
        period_j = high_w * high_s + low_w * (period_s - high_s)
        return whole * period_j + high_w * min(rest_s, high_s) + low_w * max(rest_s - high_s, 0)

    return energy_j


def _sine(mean_w: float, amplitude_w: float, period_s: float) -> Callable[[float], float]:
    omega = 2 * math.pi / period_s
    return lambda t_s: mean_w * t_s + amplitude_w / omega * (1 - math.cos(omega * t_s))


def _replay(points: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    def energy_j(t_s: float) -> float:
        total = 0.0
        for (t0, w0), (t1, w1) in pairwise(points):
            if t_s <= t0:
                break
            upto = min(t_s, t1)
            total += (w0 + w0 + (w1 - w0) * (upto - t0) / (t1 - t0)) / 2 * (upto - t0)
        last_s, last_w = points[-1]
        return total + max(t_s - last_s, 0) * last_w

    return energy_j


def profiles(folder: Path) -> list[Profile]:
    """One for each of the eight GPUs; the replay is a seeded trace of decode power with prefill bursts."""
    chance = random.Random(7)
    points = [
        (i / 10, 330.0 + chance.gauss(0, 12) + (90 if i % 43 < 4 else 0) - (150 if i % 211 < 6 else 0))
        for i in range(3000)
    ]
    trace = folder / "trace.csv"
    trace.write_text("".join(f"{t_s},{w}\n" for t_s, w in points))
    return [
        Profile("constant 300 W", "const 300", lambda t: 300 * t),
        Profile("ramp 100 to 400 W in 200 s", "ramp 100 400 200", _replay([(0, 100), (200, 400)])),
        Profile("sine 250 +- 100 W, 1.737 s", "sine 250 100 1.737", _sine(250, 100, 1.737)),
        Profile(
            "warm-up 300 - 100 exp(-t/20 s) W",
            "exponential 300 100 20",
            lambda t: 300 * t - 2000 * (1 - math.exp(-t / 20)),
        ),
        Profile("replay of a decode trace", f"csv {trace}", _replay(points)),
        Profile("square 100/400 W, 0.737 s", "square 100 400 0.737 0.3", _square(100, 400, 0.737, 0.3)),
        Profile(
            "square 100/400 W, 0.7 s (in step)",
            "square 100 400 0.7 0.3",
            _square(100, 400, 0.7, 0.3),
        ),
        Profile(
            "square 100/400 W, 0.1 s (in step)",
            "square 100 400 0.1 0.3",
            _square(100, 400, 0.1, 0.3),
        ),
    ]


def peers_python() -> Path:
    """The interpreter of the peers' own environment, made the first time."""
    python = REPOSITORY / "build" / "peers" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
    return python


@dataclass(frozen=True)
class Round:
    """What the tools of one host answered in one round.

    Attributes:
        t0: The script's zero, in epoch seconds.
        answers: By tool, one for each window.
        sampled: What became of this project's samples.
    """

    t0: float
    answers: dict[str, list[dict[str, Any]]]
    sampled: dict[str, float]


def run_round(
    hosts: Sequence[Sequence[Profile]], orders: Sequence[Sequence[float]]
) -> tuple[list[Round], float]:
    """Let all tools of all hosts measure their windows, together, one after another.

    Args:
        hosts: The profiles of each host's GPUs.
        orders: The windows of each host in their order, in seconds.

    Returns:
        What each host's tools answered, and how busy the machine's cores were in the windows, from 0 to 1.
    """
    with tempfile.TemporaryDirectory() as folder:
        t0 = time.time_ns() / 1e9 + START_S * (len(hosts) + 1)
        running = []
        for number, which in enumerate(hosts):  # one host after another: importing is all that is heavy
            own = Path(folder) / str(number)
            own.mkdir()
            running.append(_start(own, t0, which, len(orders[number])))
        first_s = max(t0 + 2, time.time_ns() / 1e9 + 1.5)
        plans = [_plan(first_s, order) for order in orders]
        for workers, asked in zip(running, plans, strict=True):  # all at once, then wait for each
            for worker in workers.values():
                assert worker.stdin is not None
                worker.stdin.write(asked)
                worker.stdin.close()
        time.sleep(max(first_s - time.time_ns() / 1e9, 0))
        before = _busy_and_all()
        found = [_round(t0, workers) for workers in running]
        busy, everything = (after - was for after, was in zip(_busy_and_all(), before, strict=True))
    return found, busy / everything


def _start(
    folder: Path, t0: float, which: Sequence[Profile], windows: int
) -> dict[str, subprocess.Popen[str]]:
    """The tools of one host, each ready to measure."""
    path = folder / "gpus.conf"
    powers = "".join(f"gpu.{i}.power = {one.script}\n" for i, one in enumerate(which))
    path.write_text(f"t0 = {t0:.6f}\ngpus = {len(which)}\n{powers}")
    environment = {
        **os.environ,
        **build().environment(path),
        "PATH": f"{_nvidia_smi(folder)}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    workers = {}
    for tool in TOOLS:
        python = Path(sys.executable) if tool == "llem-airflow" else peers_python()
        workers[tool] = subprocess.Popen(
            [python, REPOSITORY / "benchmarks" / "window.py", tool, str(len(which)), str(windows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            cwd=folder,
        )
    for tool, worker in workers.items():
        assert worker.stdout is not None
        if "ready\n" not in iter(worker.stdout.readline, ""):  # CodeCarbon has other things to say first
            raise RuntimeError(f"{tool} did not start")
    return workers


def _round(t0: float, workers: dict[str, subprocess.Popen[str]]) -> Round:
    answers = {tool: _answers(worker) for tool, worker in workers.items()}
    return Round(t0, answers, answers["llem-airflow"][-1]["sampled"])


def _busy_and_all() -> tuple[int, int]:
    """CPU time that was worked and that was there, of all cores, from /proc/stat."""
    user, nice, system, idle, iowait, *others = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    busy = user + nice + system + sum(others[:2])
    return busy, busy + idle + iowait


def _plan(begin_epoch_s: float, windows: Sequence[float]) -> str:
    """A line for each window: its begin and its length. Work does not last whole register periods."""
    lines = []
    for seconds in windows:
        begin_epoch_s += random.random()
        lasts_s = seconds + random.random() / 10
        lines.append(f"{begin_epoch_s:.4f} {lasts_s:.4f}\n")
        begin_epoch_s += lasts_s + BETWEEN_S
    return "".join(lines)


def _answers(worker: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert worker.stdout is not None
    lines = worker.stdout.read().splitlines()
    if worker.wait() != 0:
        raise RuntimeError(f"{worker.args!r} failed; see above")
    return [json.loads(line) for line in lines if line.startswith("{")]


def _nvidia_smi(folder: Path) -> Path:
    """A folder with an ``nvidia-smi`` that succeeds: CodeCarbon believes in GPUs only where there is one."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    return program.parent


def errors_of(
    t0: float, answer: dict[str, Any], which: Sequence[Profile], key: str = "joules"
) -> dict[str, float]:
    """Relative error of a tool by profile, and of all GPUs together where there are several."""
    begin_s, end_s = answer["begin_epoch_ns"] / 1e9 - t0, answer["end_epoch_ns"] / 1e9 - t0
    exact = [profile.energy_j(end_s) - profile.energy_j(begin_s) for profile in which]
    joules = answer[key]
    errors = {one.name: got / truth - 1 for one, got, truth in zip(which, joules, exact, strict=True)}
    return (
        errors if len(which) == 1 else errors | {f"all {len(which)} together": sum(joules) / sum(exact) - 1}
    )


Found = dict[tuple[int, float, str], dict[str, list[float]]]
"""Errors by number of GPUs, length of the window and profile, and then by tool."""


def compare(
    windows: Sequence[float], rounds: int, gpus: Sequence[int], wanted: str = "", copies: int = 1
) -> list[dict[str, Any]]:
    """One row for each number of GPUs, window length and profile, and for the sum of several: errors of each tool.

    Args:
        windows: Lengths of one round's windows, in seconds.
        rounds: How often everything is started.
        gpus: GPUs of a host, each number in turn.
        wanted: Only profiles with this in their name.
        copies: Hosts of each kind.
    """
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        every = [one for one in profiles(Path(folder)) if wanted in one.name]
        hosts = copies * [every[i : i + count] for count in gpus for i in range(0, len(every), count)]
        for _ in range(rounds):
            orders = [random.sample(windows, len(windows)) for _ in hosts]
            answered, busy = run_round(hosts, orders)
            for which, order, one in zip(hosts, orders, answered, strict=True):
                _collect(found, which, order, one)
            lost, due = (max(sum(one.sampled[key] for one in answered), 0) for key in ("lost", "due"))
            print(
                f"{len(hosts)} hosts side by side: cores {busy:.0%} busy in the windows; "
                f"{lost:.0f} of {due:.0f} samples of this project lost ({lost / due:.2%})",
                flush=True,
            )
    places = {one.name: place for place, one in enumerate(every)}
    rows = sorted(found, key=lambda key: (key[0], key[1], places.get(key[2], len(places))))
    return [_row(*key, found[key]) for key in rows]


def _collect(found: Found, which: Sequence[Profile], order: Sequence[float], one: Round) -> None:
    for i, seconds in enumerate(order):
        told = {tool: errors_of(one.t0, one.answers[tool][i], which) for tool in TOOLS}
        told["integral alone"] = errors_of(one.t0, one.answers["llem-airflow"][i], which, "integral_joules")
        for tool, errors in told.items():
            for name, error in errors.items():
                found.setdefault((len(which), seconds, name), {}).setdefault(tool, []).append(abs(error))


def _row(gpus: int, seconds: float, name: str, absolute: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "profile": name,
        "gpus": gpus,
        "window_s": seconds,
        "repeats": len(absolute["zeus"]),
        "mean_error_ratio": {tool: statistics.mean(values) for tool, values in absolute.items()},
        "worst_error_ratio": {tool: max(values) for tool, values in absolute.items()},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, errors in percent: mean (worst)."""
    tools = (*TOOLS, "integral alone")
    lines = [
        "| profile | window | GPUs | n | " + " | ".join(tools) + " |",
        "|---" * (4 + len(tools)) + "|",
    ]
    for row in rows:
        cells = [
            f"{row['mean_error_ratio'][tool] * 100:.3f} ({row['worst_error_ratio'][tool] * 100:.3f})"
            for tool in tools
        ]
        lines.append(
            f"| {row['profile']} | {row['window_s']:g} s | {row['gpus']} | {row['repeats']} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def losses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows on which a peer had the smaller mean error."""
    lost = []
    for row in rows:
        ours, *peers = (row["mean_error_ratio"][tool] for tool in TOOLS)
        if min(peers) < ours:
            lost.append(
                f"{row['profile']}, {row['window_s']:g} s, {row['gpus']} GPUs: {ours:.4%} against {min(peers):.4%}"
            )
    return lost


def main() -> None:
    """Measure, print the table, and say on which rows a peer was better."""
    options = argparse.ArgumentParser(description="Accuracy against peers on stand-in GPUs.")
    options.add_argument("--windows", type=float, nargs="+", default=[5, 5, 10, 10, 30, 60])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--gpus", type=int, nargs="+", default=[8], choices=[1, 2, 4, 8])
    options.add_argument("--profiles", default="", help="only those with this in their name")
    options.add_argument("--copies", type=int, default=1, help="hosts of each kind, side by side")
    options.add_argument("--output", type=Path)
    chosen = options.parse_args()
    rows = compare(chosen.windows, chosen.rounds, chosen.gpus, chosen.profiles, chosen.copies)
    print("\nAbsolute relative error in percent, mean (worst) of the windows\n")
    print(table(rows))
    lost = losses(rows)
    print(
        "\nNo peer was better on any row." if not lost else "\nA peer was better on:\n  " + "\n  ".join(lost)
    )
    if chosen.output:
        chosen.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
