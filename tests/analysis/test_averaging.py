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


T_S = np.arange(-3.0, 6.0, 0.02)
UNKNOWN = np.full(len(T_S), np.nan)


def mean_over(window_s: float, low_w: float = 100.0, high_w: float = 300.0) -> Floats:
    """Power that steps up at 0 s, as its mean over a window."""
    found: Floats = low_w + (high_w - low_w) * np.clip(T_S / window_s, 0.0, 1.0)
    return found


def smoothed(tau_s: float, low_w: float = 100.0, high_w: float = 300.0) -> Floats:
    """The same through an exponential filter."""
    found: Floats = high_w - (high_w - low_w) * np.exp(-np.clip(T_S, 0.0, None) / tau_s)
    return found


@pytest.mark.parametrize(
    ("power_w", "told_s"),
    [
        (mean_over(0.6), 0.3),
        (mean_over(1.0), 0.5),
        (mean_over(1.5), 0.75),
        (mean_over(1.0, 300.0, 100.0), 0.5),  # down
        (mean_over(0.35), 0.0),  # so fast it may be the load's own
        (smoothed(0.3), 0.3),
        (smoothed(0.5), 0.5),
        (mean_over(1.0, 210.0, 290.0), 0.0),  # a step of 28 % of the highest power
        (mean_over(1.0, 200.0, 295.0), 0.5),  # of 32 %
    ],
)
def test_a_step_alone_tells_a_mean_by_its_straight_rise_and_a_filter_by_its_bend(
    power_w: Floats, told_s: float
) -> None:
    """A filter has not quite landed within the flight: its step seems smaller, and so its time by up to a tenth."""
    assert delay_s(T_S, UNKNOWN, power_w) == pytest.approx(told_s, rel=0.1)


def test_thirty_readings_tell_no_delay() -> None:
    """A step through a mean over 1 s, read ten times a second from 1.5 s before it on."""
    t_s = np.arange(-1.0, 2.2, 0.1)
    power_w = 100 + 200 * np.clip(t_s, 0.0, 1.0)
    unknown = np.full(len(t_s), np.nan)
    assert delay_s(t_s[-31:], unknown[-31:], power_w[-31:]) == pytest.approx(0.5, rel=0.1)
    assert delay_s(t_s[-30:], unknown[-30:], power_w[-30:]) == 0.0


def filtered(instant_w: Floats, t_s: Floats, *, window_s: float = 0.0, tau_s: float = 0.0) -> Floats:
    """By the definition, on a grid ten times as fine."""
    fine_s = np.arange(t_s[0], t_s[-1] + 1e-9, (t_s[1] - t_s[0]) / 10)
    fine_w = np.interp(fine_s, t_s, instant_w)
    step_s = fine_s[1] - fine_s[0]
    if window_s:
        n = round(window_s / step_s)
        kernel = np.full(n, 1 / n)
    else:
        kernel = np.exp(-np.arange(0, 8 * tau_s, step_s) / tau_s)
        kernel /= kernel.sum()
    padded = np.concatenate([np.full(len(kernel) - 1, fine_w[0]), fine_w])
    found: Floats = np.interp(t_s, fine_s, np.convolve(padded, kernel, mode="valid"))
    return found


@pytest.mark.parametrize(
    ("how", "late_s"),
    [
        ({"window_s": 0.2}, 0.1),
        ({"window_s": 0.75}, 0.375),
        ({"window_s": 2.0}, 1.0),
        ({"tau_s": 0.1}, 0.1),
        ({"tau_s": 0.45}, 0.45),
        ({"tau_s": 1.0}, 1.0),
    ],
)
def test_the_delay_is_that_of_the_filter_that_makes_averaged_of_instant_power(
    how: dict[str, float], late_s: float
) -> None:
    t_s = np.arange(0.0, 20.0, 0.05)
    instant_w = 200 + 80 * np.sin(t_s) + 60 * np.sign(np.sin(t_s * 1.7))
    assert delay_s(t_s, instant_w, filtered(instant_w, t_s, **how)) == pytest.approx(late_s, abs=0.026)
    assert delay_s(t_s, instant_w, instant_w) == 0.0


def test_averaged_power_that_no_filter_makes_tells_nothing_and_steady_power_neither() -> None:
    t_s = np.arange(0.0, 20.0, 0.05)
    instant_w = 200 + 80 * np.sin(t_s)
    assert delay_s(t_s, instant_w, 200 + 30 * np.cos(3.1 * t_s)) == 0.0
    steady_w = 200 + 1.0 * np.sin(t_s)  # a deviation of 0.7, of 2 that would tell
    assert delay_s(t_s, steady_w, filtered(steady_w, t_s, window_s=1.0)) == 0.0
    moving_w = 200 + 6.0 * np.sin(t_s)
    assert delay_s(t_s, moving_w, filtered(moving_w, t_s, window_s=1.0)) == pytest.approx(0.5, abs=0.026)
