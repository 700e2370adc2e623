"""The delay of averaged power: learnt from boards that average in every way, or not corrected."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.averaging import BOARDS, WINDOWS_S, simulated
from llem_airflow.analysis.series import Floats, delay_s


@pytest.mark.parametrize("name", BOARDS)
def test_the_delay_is_learnt_from_instant_power_beside_it(name: str) -> None:
    board, true_s = BOARDS[name]
    assert simulated(board).delay_s(alone=False) == pytest.approx(true_s, abs=0.1)


@pytest.mark.parametrize("name", BOARDS)
def test_averaged_power_alone_is_moved_by_its_own_shape_or_not_at_all(name: str) -> None:
    board, true_s = BOARDS[name]
    found_s = simulated(board).delay_s(alone=True)
    if true_s < 0.1:
        assert found_s == 0.0
    else:  # a short averaging may be the load's own slow rise: not corrected, or by what it is
        assert found_s == pytest.approx(true_s, abs=0.2) or (found_s == 0.0 and true_s < 0.4)


@pytest.mark.parametrize("name", BOARDS)
def test_the_integral_is_never_worse_than_holding_the_last_sample(name: str) -> None:
    board, _ = BOARDS[name]
    errors = [simulated(board, seed).errors(*window) for seed in range(4) for window in WINDOWS_S]
    alone, beside, held, _ = np.mean(errors, axis=0)
    assert max(alone, beside) <= held


@pytest.mark.parametrize("power_w", [np.full(100, 300.0), np.linspace(100, 400, 100), np.array([])])
def test_power_without_a_step_tells_no_delay(power_w: Floats) -> None:
    at_s = np.arange(len(power_w)) / 10
    assert delay_s(at_s, np.full(len(at_s), np.nan), power_w) == 0.0
