"""A stand-in board that plays gpu-check's plan by itself: the script of its power, and the instant it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llem_airflow.measurement.board.load import SCRIPTED
from llem_airflow.measurement.board.plan import plan
from llem_airflow.protocol.gpu_profile import GpuProfile
from tests.standins.boards import published, script_of
from tests.standins.gpus import use_script

LOW_W, HIGH_W = 60.0, 360.0
STEPS_MJ = (1.0, 2.0, 5.0, 10.0, 250.0)
"""Of the published boards' counters; the paper has none."""
PREPARATION_S = 8.0
"""Asking and costing before the plan begins takes two seconds on a free machine."""


def write_plan(path: Path, seconds: float, *, after_s: float = 0.0) -> None:
    """The power that a plan asks for, as the CSV of a replay."""
    points = [(0.0, LOW_W)]
    for phase in plan(seconds):
        for edge in phase.edges:
            on_s, off_s = (at_s + after_s for at_s in edge)
            points += [(on_s, LOW_W), (on_s + 1e-6, HIGH_W), (off_s, HIGH_W), (off_s + 1e-6, LOW_W)]
    path.write_text("seconds,watts\n" + "".join(f"{t:.7f},{w}\n" for t, w in points))


def play_boards(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    boards: list[str],
    seconds: float,
    extra: str = "",
    *,
    now_s: float | None = None,
) -> None:
    """Let each board, given by further lines of its script, play its plan one after the other.

    Args:
        monkeypatch: Of the test.
        folder: Where the script and the powers are written.
        boards: Further lines of each board's script.
        seconds: How long each plan is.
        extra: Lines that belong to no board.
        now_s: What now is, in seconds since 1970, where the process that reads them has a time of its own.
    """
    now_s = time.time_ns() / 1e9 if now_s is None else now_s
    begins_in_s = PREPARATION_S * len(boards)
    lines = [f"gpus = {len(boards)}"]
    for number, board in enumerate(boards):
        power = folder / f"power-{number}.csv"
        write_plan(power, seconds, after_s=number * seconds)
        lines += [f"gpu.{number}.idle_w = {LOW_W}", f"gpu.{number}.power = csv {power}"]
        lines += [f"gpu.{number}.{line}" for line in board.splitlines()]
    monkeypatch.setenv(SCRIPTED, f"{now_s + begins_in_s:.6f}")
    use_script(monkeypatch, folder, "\n".join([*lines, extra]), starts_in_s=begins_in_s, now_s=now_s)


def stepped() -> dict[str, GpuProfile]:
    """The published boards, each with a counter step of its own."""
    return {
        name: replace(profile, counter_step_mj=step)
        for (name, profile), step in zip(published().items(), STEPS_MJ, strict=True)
    }


def play_profiles(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    profiles: Sequence[GpuProfile],
    seconds: float,
    now_s: float | None = None,
) -> None:
    """Let a board of each profile play its plan one after the other, and refuse what the profile's board refuses."""
    lines = [script_of(one, number).splitlines() for number, one in enumerate(profiles)]
    boards = [
        "\n".join(line.removeprefix(f"gpu.{number}.") for line in own if line.startswith("gpu."))
        for number, own in enumerate(lines)
    ]
    refusals = "\n".join(line for own in lines for line in own if line.startswith("fault"))
    play_boards(monkeypatch, folder, boards, seconds, refusals, now_s=now_s)
