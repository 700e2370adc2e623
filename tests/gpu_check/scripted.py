"""A stand-in board that plays gpu-check's plan by itself: the script of its power, and the instant it begins."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llem_airflow.measurement.board.load import SCRIPTED
from llem_airflow.measurement.board.plan import plan
from tests.standins.gpus import use_script

LOW_W, HIGH_W = 60.0, 360.0
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
    monkeypatch: pytest.MonkeyPatch, folder: Path, boards: list[str], seconds: float, extra: str = ""
) -> None:
    """Let each board, given by further lines of its script, play its plan one after the other."""
    begins_in_s = PREPARATION_S * len(boards)
    lines = [f"gpus = {len(boards)}"]
    for number, board in enumerate(boards):
        power = folder / f"power-{number}.csv"
        write_plan(power, seconds, after_s=number * seconds)
        lines += [f"gpu.{number}.idle_w = {LOW_W}", f"gpu.{number}.power = csv {power}"]
        lines += [f"gpu.{number}.{line}" for line in board.splitlines()]
    monkeypatch.setenv(SCRIPTED, f"{time.time_ns() / 1e9 + begins_in_s:.6f}")
    use_script(monkeypatch, folder, "\n".join([*lines, extra]), starts_in_s=begins_in_s)
