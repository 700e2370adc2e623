"""A synthetic board: registers that are written at their own time and look back at a window, read every 2 ms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llem_airflow.gpu_check.register import Readings
from llem_airflow.gpu_check.window import Load
from llem_airflow.measurement.board.plan import square_edges


@dataclass(frozen=True)
class Board:
    """What it is, and how noisy."""

    period_s: float = 0.1
    window_s: float = 0.025
    lag_s: float = 0.0
    jitter_s: float = 0.0
    noise_w: float = 0.5
    step_mj: float = 1.0
    low_w: float = 60.0
    high_w: float = 360.0


def load_of(seconds: float) -> Load:
    edges = np.array(square_edges(1.0, seconds - 1.0))
    return Load(edges[:, 0], edges[:, 1])


def read(
    board: Board, seconds: float, seed: int, spacing_s: float = 0.002
) -> tuple[Readings, Readings, Load]:
    """Readings of power in watts and of the counter in millijoules, and the load that they tell of."""
    rng = np.random.default_rng(seed)
    load = load_of(seconds)
    before_s = np.cumsum(rng.uniform(0.8, 1.2, int(seconds / spacing_s)) * spacing_s)
    after_s = before_s + rng.uniform(3e-5, 1e-4, len(before_s))
    after_s[rng.random(len(after_s)) < 0.001] += 0.015  # a stalled host
    before_s, after_s = np.sort(before_s), np.maximum.accumulate(after_s)
    before_s = np.maximum(before_s, np.concatenate([[0.0], after_s[:-1]]))
    after_s = np.maximum(after_s, before_s)
    numbers = np.arange(-1, seconds / board.period_s + 2)
    written_s = rng.uniform(0, board.period_s) + numbers * board.period_s
    written_s = np.sort(written_s + rng.normal(0, board.jitter_s, len(numbers)))
    power_w = board.low_w + (board.high_w - board.low_w) * load.share(written_s, board.window_s, board.lag_s)
    power_w = np.round((power_w + rng.normal(0, board.noise_w, len(numbers))) * 1e3) / 1e3
    energy_j = board.low_w * written_s + (board.high_w - board.low_w) * load.worked_s(written_s)
    counter_mj = np.floor((energy_j + 1e4) * 1e3 / board.step_mj) * board.step_mj
    shown = np.maximum(np.searchsorted(written_s, (before_s + after_s) / 2) - 1, 0)
    return Readings(before_s, after_s, power_w[shown]), Readings(before_s, after_s, counter_mj[shown]), load
