"""What a power reading is the mean of: the window that it looks back at, from a load whose edges are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llem_airflow.gpu_check.register import Floats, Writes

KNOWN_RATIO = 0.02
"""A window is known when it may be off by no more than this."""
LONGEST_LAG_S = 0.2
_EARLIEST_S = -0.002
"""Instants of writes are known to about the time between two readings: a lag of 0 may look like a negative one."""
_SHORTEST_S, _LONGEST_S = 0.002, 3.0
_EXPLAINED = 0.9
"""Share of the readings' variance that a window must explain to be one."""
_FEWEST = 20
_FEWEST_ON_EDGES = 6
_ON_EDGE = 0.02
"""A reading is on an edge when the window's length moves it by so much of the step."""
_MOST = 3000
"""More writes than this tell nothing new and cost time."""


@dataclass(frozen=True)
class Load:
    """A load that was switched on and off.

    Attributes:
        on_s: When it was switched on each time, ascending, in seconds.
        off_s: When it was switched off again.
    """

    on_s: Floats
    off_s: Floats

    def worked_s(self, t_s: Floats) -> Floats:
        """For how long it was on before each instant, in seconds."""
        edges_s = np.column_stack([self.on_s, self.off_s]).ravel()
        total_s = np.repeat(np.concatenate([[0.0], np.cumsum(self.off_s - self.on_s)]), 2)[1:-1]
        worked_s: Floats = np.interp(t_s, edges_s, total_s)
        return worked_s

    def share(self, t_s: Floats, window_s: float, lag_s: float) -> Floats:
        """Share of a window that ends ``lag_s`` before each instant in which it was on."""
        return (self.worked_s(t_s - lag_s) - self.worked_s(t_s - lag_s - window_s)) / window_s


@dataclass(frozen=True)
class Window:
    """What one reading is the mean of; a number is None when it cannot be known.

    Attributes:
        window_s: Length of the mean, in seconds.
        window_uncertainty_s: How far that may be off: three standard errors.
        lag_s: From the end of the mean to the write.
        lag_uncertainty_s: How far that may be off.
        why: Why the window is not known; empty when it is.
    """

    window_s: float | None
    window_uncertainty_s: float | None = None
    lag_s: float | None = None
    lag_uncertainty_s: float | None = None
    why: str = ""


def find_window(writes: Writes, load: Load) -> Window:
    """The window and lag that explain the writes best.

    Formula: power = a + b (share of the window in which the load was on) + c t, by least squares, for the window and
    lag whose residual is least. Uncertainty: three standard errors of the fit that is linear around them, and of
    the instants of the writes on the edges.
    """
    if len(load.on_s) < 3 or len(writes.t_s) < _FEWEST:
        return Window(None, why="too few edges or readings")
    writes = Writes(writes.t_s[:_MOST], writes.values[:_MOST], writes.off_s)
    values = writes.values - writes.values.mean()
    if not float(values @ values) > 0:
        return Window(None, why="power did not follow the load")
    plain = np.column_stack([np.ones_like(writes.t_s), writes.t_s - writes.t_s.mean()])
    basis, _ = np.linalg.qr(plain)
    rest = values - basis @ (basis.T @ values)
    window_s, lag_s, left = _search(writes, load, basis, rest)
    if 1 - left / float(rest @ rest) < _EXPLAINED:
        return Window(None, why="no window explains the readings: noise or other work hides the edges")
    return _with_uncertainty(writes, load, plain, values, window_s, lag_s)


def _search(writes: Writes, load: Load, basis: Floats, rest: Floats) -> tuple[float, float, float]:
    """Window, lag and what they leave unexplained: a grid, then finer ones around its best point.

    A longer window with a smaller lag has the same middle and nearly the same readings: the finer grids keep it.
    """
    windows_s, lags_s = np.geomspace(_SHORTEST_S, _LONGEST_S, 36), np.linspace(0.0, LONGEST_LAG_S, 21)
    points = np.stack([np.repeat(windows_s, len(lags_s)), np.tile(lags_s, len(windows_s))], axis=1)
    best = _best(writes, load, basis, rest, points)
    width, reach_s = float(windows_s[1] / windows_s[0]), float(lags_s[1])
    for _ in range(12):
        windows_s = np.repeat(best[0] * np.geomspace(1 / width, width, 7), 7)
        moved_s = np.tile(np.linspace(-reach_s, reach_s, 7), 7)
        lags_s = np.maximum(best[1] - (windows_s - best[0]) / 2 + moved_s, _EARLIEST_S)
        found = _best(writes, load, basis, rest, np.stack([windows_s, lags_s], axis=1))
        best = min(best, found, key=lambda one: one[2])
        width, reach_s = width**0.6, reach_s * 0.6
    return best


def _best(
    writes: Writes, load: Load, basis: Floats, rest: Floats, points: Floats
) -> tuple[float, float, float]:
    """The best of pairs of a window and a lag, and what it leaves unexplained."""
    left = np.empty(len(points))
    for rows in np.array_split(np.arange(len(points)), max(len(points) * len(rest) // 500_000, 1)):
        windows_s, lags_s = points[rows, :1], points[rows, 1:]
        end_s = writes.t_s[None, :] - lags_s
        shares = (load.worked_s(end_s) - load.worked_s(end_s - windows_s)) / windows_s
        shares -= (shares @ basis) @ basis.T
        norm = np.maximum((shares**2).sum(axis=1), 1e-12)
        left[rows] = float(rest @ rest) - np.maximum(shares @ rest, 0.0) ** 2 / norm
    at = int(left.argmin())
    return float(points[at, 0]), float(points[at, 1]), float(left[at])


def _with_uncertainty(
    writes: Writes, load: Load, plain: Floats, values: Floats, window_s: float, lag_s: float
) -> Window:
    step_s = 0.01 * window_s
    share = load.share(writes.t_s, window_s, lag_s)
    by_window = (
        load.share(writes.t_s, window_s + step_s, lag_s) - load.share(writes.t_s, window_s - step_s, lag_s)
    ) / (2 * step_s)
    by_lag = (
        load.share(writes.t_s, window_s, lag_s + step_s) - load.share(writes.t_s, window_s, lag_s - step_s)
    ) / (2 * step_s)
    linear = np.column_stack([plain, share])
    (_, _, height), *_ = np.linalg.lstsq(linear, values, rcond=None)
    jacobian = np.column_stack([linear, height * by_window, height * by_lag])
    residual = values - linear @ np.linalg.lstsq(linear, values, rcond=None)[0]
    on_edges = np.abs(by_window * window_s) > _ON_EDGE
    if on_edges.sum() < _FEWEST_ON_EDGES:
        return Window(None, why="too few readings fell on an edge of the load")
    # Readings far from an edge fit whatever the window is: they must not make the fit look better than it is.
    variance = max(
        float(residual @ residual) / max(len(values) - 5, 1),
        float((residual[on_edges] ** 2).sum()) / (on_edges.sum() - 2),
    )
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * variance
    uncertain_s, lag_uncertain_s = (3 * float(np.sqrt(max(covariance[i, i], 0.0))) for i in (3, 4))
    uncertain_s += 3 * writes.off_s / np.sqrt(3 * on_edges.sum())
    if uncertain_s > KNOWN_RATIO * window_s:
        why = f"{window_s * 1e3:.3g} ms, but it may be off by {uncertain_s / window_s:.0%}"
        return Window(None, uncertain_s, why=why)
    return Window(window_s, uncertain_s, max(lag_s, 0.0), lag_uncertain_s)
