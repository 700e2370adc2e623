"""The pictures of a report: intervals, energy against speed, latency."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.quantity import number, scale
from llem_airflow.analysis.report_cells import itl_is_tpot
from llem_airflow.analysis.statistics import Description
from llem_airflow.analysis.summary import ExperimentSummary
from llem_airflow.analysis.svg import INK, LINE, MUTED, PAPER, SERIES, WIDTH_IN, drawing, inline_svg
from llem_airflow.text.wording import counted

NAMED_UP_TO = 40
"""With more points than this, the picture of energy against speed names the unbeaten ones alone."""

_NAME_WIDTH = 48
"""Longest line of a point's name, in characters."""
_LINE_IN = 0.17
"""Height of a line of a name, in inches."""


def forest(
    experiments: Sequence[ExperimentSummary], name: str, labels: Sequence[str], cycles: Sequence[Cycle] = ()
) -> Markup | None:
    """Every cycle, the mean and the 95 % interval of a metric, one line an experiment, in the order given."""
    rows = [
        (label, summary.all, e)
        for e, label in zip(experiments, labels, strict=True)
        if (summary := e.metric(name))
    ]
    if not rows:
        return None
    metric = BY_NAME[name]
    unit, factor = scale(metric, max(found.mean for _, found, _ in rows))
    estimate = metric.energy and any(e.energy_kind == "estimate" for _, _, e in rows)
    places = {e.id: y for y, (_, _, e) in enumerate(rows)}
    dots = [
        (value * factor, places[row.experiment])
        for row in cycles
        if row.experiment in places and (value := row.measures.get(name)) is not None
    ]
    known = [(y, one) for y, (_, found, _) in enumerate(rows) if (one := found.shown_interval)]
    means = [found.mean * factor for _, found, _ in rows]
    with drawing():
        many = len(rows) > 12
        figure = Figure(figsize=(WIDTH_IN, 0.8 + (0.24 if many else 0.34) * len(rows)), layout="constrained")
        axes = figure.subplots()
        lows, highs = [one.low * factor for _, one in known], [one.high * factor for _, one in known]
        axes.hlines([y for y, _ in known], lows, highs, colors=SERIES[0], linewidth=2.2)
        axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=MUTED, markersize=3, zorder=3)
        axes.plot(
            means, range(len(rows)), "|", color=SERIES[0], markersize=9 if many else 12, markeredgewidth=2
        )
        _named_rows(axes, [f"{label}  ({_count(found)})" for label, found, _ in rows])
        _readable_scale(axes, "x", [*lows, *means, *(x for x, _ in dots)], signed=metric.signed)
        axes.set_xlabel(f"{metric.label}, {unit}" + (" (estimate)" if estimate else ""))
        axes.grid(visible=True, axis="x")
        return inline_svg(
            figure,
            f"forest-{name}",
            f"{metric.label} of {counted(len(rows), 'experiment')}: cycles, means and intervals",
        )


def _count(found: Description) -> str:
    return f"n = {found.n}" if found.shown_interval else f"n = {found.n}, no interval"


def trade_off(
    experiments: Sequence[ExperimentSummary],
    fronts: Mapping[str, set[str]],
    metrics: Mapping[str, str],
    labels: Sequence[str],
) -> Markup | None:
    """Energy per output token against throughput and latency, each point with its name; the unbeaten are filled."""
    energies = [e.metric("energy_per_output_token_j") for e in experiments]
    known = [found.all.mean for found in energies if found]
    if len(known) < 2:
        return None
    unit, factor = scale(BY_NAME["energy_per_output_token_j"], max(known))
    estimate = any(e.energy_kind == "estimate" for e in experiments)
    names = [textwrap.fill(label, _NAME_WIDTH) for label in labels]
    lines = 1 + max(name.count("\n") for name in names)
    height_in = max(3.0, 0.6 + _LINE_IN * lines * min(len(names), NAMED_UP_TO))
    with drawing():
        figure = Figure(figsize=(WIDTH_IN, height_in * len(metrics)), layout="constrained")
        panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
        for axes, (name, metric) in zip(panels, metrics.items(), strict=True):
            axes.set_ylabel(f"Energy per output token, {unit}" + ("\n(estimate)" if estimate else ""))
            _trade_off_panel(axes, experiments, metric, factor, fronts[name])
            points = _points(experiments, metric)
            named = points if len(points) <= NAMED_UP_TO else [p for p in points if p[0] in fronts[name]]
            by_id = dict(zip((e.id for e in experiments), names, strict=True))
            size = scale(BY_NAME[metric], max((x.mean for _, x, _ in points), default=1.0))[1]
            marks = [(by_id[key], x.mean * size, y.mean * factor) for key, x, y in named]
            _name_points(axes, marks, _LINE_IN * lines / height_in)
        return inline_svg(figure, "trade-off", "Energy per output token against throughput and latency")


def latencies(experiments: Sequence[ExperimentSummary], labels: Sequence[str]) -> Markup | None:
    """Median to 99th percentile of TTFT, TPOT, ITL and E2EL, as far as they are told: means over cycles."""
    kinds = [
        name
        for name in ("ttft", "tpot", "itl", "e2el")
        if any(e.metric(f"{name}_p50_s") for e in experiments)
        and not (name == "itl" and itl_is_tpot(experiments))
    ]
    if not kinds:
        return None
    with drawing():
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.3 * len(experiments)), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            _latency_panel(axes, kind, experiments)
        _named_rows(panels[0], labels)
        return inline_svg(figure, "latency", "Median, 95th and 99th percentile of the latencies")


def _points(
    experiments: Sequence[ExperimentSummary], metric: str
) -> list[tuple[str, Description, Description]]:
    """Id, the metric and the energy per output token of the experiments that have both."""
    return [
        (e.id, other.all, energy.all)
        for e in experiments
        if (energy := e.metric("energy_per_output_token_j")) and (other := e.metric(metric))
    ]


def _trade_off_panel(
    axes: Axes, experiments: Sequence[ExperimentSummary], metric: str, factor: float, front: set[str]
) -> None:
    points = _points(experiments, metric)
    unit, size = scale(BY_NAME[metric], max((x.mean for _, x, _ in points), default=1.0))
    for key, x, y in points:
        at = x.mean * size, y.mean * factor
        if one := x.shown_interval:
            axes.hlines(at[1], one.low * size, one.high * size, colors=MUTED, linewidth=0.8)
        if one := y.shown_interval:
            axes.vlines(at[0], one.low * factor, one.high * factor, colors=MUTED, linewidth=0.8)
        face = SERIES[0] if key in front else PAPER
        axes.plot([at[0]], [at[1]], "o", markersize=7, markeredgecolor=SERIES[0], markerfacecolor=face)
    line = sorted((x.mean * size, y.mean * factor) for key, x, y in points if key in front)
    axes.plot([x for x, _ in line], [y for _, y in line], color=SERIES[0], linewidth=0.8, zorder=0)
    better = "right" if BY_NAME[metric].better == "higher" else "left"
    axes.set_xlabel(f"{BY_NAME[metric].label}, {unit}  (better: {better} and down)")
    axes.margins(x=0.1, y=0.12)
    axes.grid(visible=True)
    _readable_scale(axes, "x", [x.mean * size for _, x, _ in points])
    _readable_scale(axes, "y", [y.mean * factor for _, _, y in points])


def _name_points(axes: Axes, points: Sequence[tuple[str, float, float]], gap: float) -> None:
    """The name of each point in a column beside the panel, with a line to it: so no name covers another.

    Args:
        axes: The panel, with its scales set.
        points: Name and place.
        gap: Height of a name as a share of the panel's.
    """
    to_share = axes.transData + axes.transAxes.inverted()
    axes.get_ylim()  # the limits are found when they are asked for
    wanted = sorted((float(to_share.transform((x, y))[1]), name, x, y) for name, x, y in points)
    places: list[float] = []
    for share, *_ in wanted:
        places.append(max(share, places[-1] + gap) if places else share)
    above = max(0.0, places[-1] - 1.0) if places else 0.0
    for k in range(len(places) - 1, -1, -1):
        highest = places[k + 1] - gap if k + 1 < len(places) else places[k] - above
        places[k] = min(places[k], highest)
    for place, (_, name, x, y) in zip(places, wanted, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.02, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )


def _readable_scale(axes: Axes, which: str, values: Sequence[float], *, signed: bool = False) -> None:
    """Logarithmic where the values span more than a factor of eight: differences are shares here.

    The axis of a quantity that cannot be negative does not go below 0.
    """
    if not values or min(values) <= 0 or max(values) < 8 * min(values):
        limits = axes.get_xlim() if which == "x" else axes.get_ylim()
        if min(limits) < 0 and not signed:
            axes.set(**{f"{which}lim": (0, max(limits))})
        return
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(NullLocator())


def _latency_panel(axes: Axes, kind: str, experiments: Sequence[ExperimentSummary]) -> None:
    metric = BY_NAME[f"{kind}_p50_s"]
    found = [[e.metric(f"{kind}_{part}_s") for part in ("p50", "p95", "p99")] for e in experiments]
    largest = max((m.all.mean for row in found for m in row if m), default=1.0)
    unit, factor = scale(metric, largest)
    rows = [(y, [m.all.mean * factor for m in row if m]) for y, row in enumerate(found) if row[0]]
    at = [y for y, _ in rows]
    axes.hlines(at, [values[0] for _, values in rows], [values[-1] for _, values in rows], colors=SERIES[0])
    axes.plot([values[0] for _, values in rows], at, "o", color=SERIES[0], markersize=5)
    ticks = [(value, y) for y, values in rows for value in values[1:]]
    axes.plot(
        [x for x, _ in ticks], [y for _, y in ticks], "|", color=SERIES[0], markersize=8, markeredgewidth=1.6
    )
    axes.set_title(kind.upper(), loc="left", color=INK)
    axes.set_xlabel(unit)
    axes.set_xlim(0, largest * factor * 1.08 or 1.0)
    axes.grid(visible=True, axis="x")


def _named_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
