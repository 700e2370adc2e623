"""Power over time: a panel a cycle, or the cycles of an experiment over each other where there are many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from llem_airflow.analysis.curves import Curve
from llem_airflow.analysis.svg import INK, MUTED, PHASE, SERIES, WIDTH_IN, drawing, inline_svg

_PHASE_LABELS = {
    "baseline_bare": "baseline",
    "baseline_context": "baseline",
    "baseline_loaded": "baseline",
    "warmup": "warm-up",
}


def power_panels(experiment: str, curves: Sequence[Curve]) -> Markup | None:
    """Power over time of the cycles of one experiment, each in a panel with its phases shaded and named."""
    drawn = [one for one in curves if one.series]
    if not drawn:
        return None
    top = max(float(watts.max()) for one in drawn for _, watts in one.series.values()) * 1.38 or 1.0
    right = max(
        max([end for *_, end in one.phases] + [float(t[-1]) for t, _ in one.series.values()]) for one in drawn
    )
    with drawing():
        # Placed by hand: the layout engine would draw every panel twice.
        height_in = 0.5 + 1.75 * len(drawn)
        figure = Figure(figsize=(WIDTH_IN, height_in))
        right_edge = 0.9 if any(len(one.series) > 1 for one in drawn) else 0.995
        figure.subplots_adjust(0.055, 0.45 / height_in, right_edge, 1 - 0.25 / height_in, hspace=0.3)
        panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        for axes, one in zip(panels, drawn, strict=True):
            _phases(axes, one, 0.0, top, right)
            for index, (gpu, (t_s, watts)) in enumerate(one.series.items()):
                axes.plot(t_s, watts, color=SERIES[index % len(SERIES)], linewidth=1.1, label=_short_gpu(gpu))
            axes.set_xlim(0, right)
            _frame(axes, one, top, f"cycle {one.cycle}", legend=len(one.series) > 1)
        panels[-1].set_xlabel("seconds since the attempt's first phase")
        shown = f"Power over time of {experiment}, cycles {', '.join(str(one.cycle) for one in drawn)}"
        return inline_svg(figure, f"power-{experiment}", shown)


def power_overlay(experiment: str, curves: Sequence[Curve]) -> Markup | None:
    """The cycles of one experiment over each other, aligned at the begin of the measured window.

    Power is the sum of the devices; the phases are those of the first cycle.
    """
    drawn = [one for one in curves if one.series]
    if not drawn:
        return None
    lines = []
    for one in drawn:
        t_s, watts = _total(one)
        lines.append((one.cycle, t_s - _window_begin(one), watts))
    top = max(float(watts.max()) for *_, watts in lines) * 1.3 or 1.0
    left, right = min(float(t[0]) for _, t, _ in lines), max(float(t[-1]) for _, t, _ in lines)
    with drawing():
        figure = Figure(figsize=(WIDTH_IN, 2.5))
        figure.subplots_adjust(0.055, 0.2, 0.91, 0.9)
        axes = figure.subplots()
        _phases(axes, drawn[0], _window_begin(drawn[0]), top, right - left)
        for index, (cycle, t_s, watts) in enumerate(lines):
            label = f"cycle {cycle}" if index < len(SERIES) else None
            axes.plot(t_s, watts, color=SERIES[index % len(SERIES)], linewidth=0.9, label=label)
        axes.set_xlim(left, right)
        devices = len(drawn[0].series)
        title = f"sum of {devices} devices" if devices > 1 else ""
        _frame(axes, drawn[0], top, title, legend=len(lines) > 1)
        axes.set_xlabel("seconds since the begin of the measured window")
        shown = (
            f"Power over time of {experiment}, cycles {', '.join(str(one.cycle) for one in drawn)} overlaid"
        )
        return inline_svg(figure, f"power-{experiment}", shown)


def _total(one: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(one.series) == 1:
        return next(iter(one.series.values()))
    t_s = np.unique(np.concatenate([t for t, _ in one.series.values()]))
    return t_s, np.sum([np.interp(t_s, t, watts) for t, watts in one.series.values()], axis=0)


def _window_begin(one: Curve) -> float:
    return next((begin for name, begin, _ in one.phases if name == "measure"), 0.0)


def _phases(axes: Axes, one: Curve, origin: float, top: float, width: float) -> None:
    for name, begin, end in one.phases:
        axes.axvspan(begin - origin, end - origin, color=PHASE.get(name, PHASE["cooldown"]), linewidth=0)
        if end - begin > width * 0.018:
            label = _PHASE_LABELS.get(name, name)
            fits = (end - begin) / width > 0.012 * len(label)
            axes.text(
                (begin + end) / 2 - origin,
                top * 0.97,
                label,
                ha="center",
                va="top",
                fontsize=7.5 if fits else 6.5,
                color=MUTED,
                rotation=0 if fits else 90,
            )


def _frame(axes: Axes, one: Curve, top: float, title: str, *, legend: bool) -> None:
    axes.set_ylim(0, top)
    axes.set_ylabel("W (estimate)" if one.estimate else "W")
    axes.locator_params(axis="y", nbins=4)
    axes.set_title(title, loc="left", color=INK)
    if legend:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=7, labelcolor=INK)


def _short_gpu(gpu: str) -> str:
    return gpu if len(gpu) <= 16 else f"{gpu[:12]}…"
