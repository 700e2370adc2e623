"""The plots of a report as inline SVG: intervals, energy against speed, latency, power over time."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from llem_airflow.analysis.across_rates import Ladder
from llem_airflow.analysis.aggregate import Curve
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.formatting import number, scale
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.statistics import Description
from llem_airflow.analysis.summary import ExperimentSummary
from llem_airflow.report.view import itl_is_tpot
from llem_airflow.text.wording import counted

# Matplotlib knows no CSS variables. Each stand-in colour is used for nothing else and is replaced in the SVG.
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506", "#050507", "#050508")
PHASE = {
    "import": "#060601",
    "load": "#060602",
    "baseline_bare": "#060603",
    "baseline_context": "#060603",
    "baseline_loaded": "#060603",
    "warmup": "#060604",
    "measure": "#060605",
    "cooldown": "#060606",
}
WIDTH_IN = 11.1
"""Width of a picture: the width of the page."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--paper",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
    **{colour: f"--phase-{name.split('_')[0]}" for name, colour in PHASE.items()},
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # real text: readable by screen readers and searchable
    "text.parse_math": False,  # a dollar in a slug is a dollar
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in here, so that text and axes get the page's colours."""
    with mpl.rc_context(_SETTINGS):
        yield


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an ``<svg>`` element; the same figure gives the same text.

    Args:
        figure: Drawn inside ``drawing()``.
        name: Prefix of the element ids, distinct within a page.
        description: What it shows, for screen readers.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", text)
    width, height = figure.get_size_inches()
    label = str(Markup.escape(description))
    start = (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width * 72:g} {height * 72:g}" '
        f'style="width: {width * 96:g}px" xmlns="http://www.w3.org/2000/svg"'
    )
    return Markup(re.sub(r"<svg[^>]*", start, text, count=1))  # noqa: S704 - matplotlib escapes its texts


NAMED_UP_TO = 40
"""With more points than this, the plot of energy against speed names those of the Pareto front alone."""

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
    """Energy per output token against throughput and latency, each point named; the Pareto front is filled."""
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


def rates(servers: Sequence[Ladder]) -> Markup | None:
    """Energy per output token and the latency's tail of servers against the rate or the users; None without two."""
    drawn = [one for one in servers if len(one.levels) > 1]
    tails = dict.fromkeys(one.tail for one in drawn if one.tail)
    names = [
        name
        for name in ("energy_per_output_token_j", *tails)
        if any(level.experiment.metric(name) for one in drawn for level in one.levels)
    ]
    if not names:
        return None
    with drawing():
        loops = [row for closed in (False, True) if (row := [one for one in drawn if one.closed is closed])]
        figure = Figure(figsize=(WIDTH_IN, 3.2 * len(loops)), layout="constrained")
        panels = figure.subplots(len(loops), len(names), squeeze=False)
        for row, ladders in zip(panels, loops, strict=True):
            for axes, name in zip(row, names, strict=True):
                _rate_panel(axes, ladders, name)
        return inline_svg(figure, "rates", "Energy per output token and latency against the load")


def _rate_panel(axes: Axes, servers: Sequence[Ladder], name: str) -> None:
    known = [
        [(level, found.all) for level in one.levels if (found := level.experiment.metric(name))]
        for one in servers
    ]
    largest = max((value.mean for row in known for _, value in row), default=1.0)
    unit, factor = scale(BY_NAME[name], largest)
    for index, (one, row) in enumerate(zip(servers, known, strict=True)):
        colour = SERIES[index % len(SERIES)]
        text = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in one.factors)
        at = [(level.load, value.mean * factor) for level, value in row]
        axes.plot([x for x, _ in at], [y for _, y in at], color=colour, linewidth=1.2, label=text)
        for (x, y), (level, value) in zip(at, row, strict=True):
            face = PAPER if level.saturated else colour
            axes.plot([x], [y], "o", color=colour, markerfacecolor=face, markersize=5)
            if shown := value.shown_interval:
                axes.vlines(x, shown.low * factor, shown.high * factor, colors=colour, linewidth=0.8)
        if name == one.tail and (knee := one.knee):
            axes.axvline(knee.load, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_title(BY_NAME[name].label, loc="left", color=INK)
    axes.set(xlabel="users" if servers[0].closed else "requests/s, offered", ylabel=unit)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.03)
    axes.grid(visible=True)
    if len(servers) > 1:
        axes.legend(frameon=False, fontsize=8)


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


_PHASE_LABELS = {
    "baseline_bare": "idle power",
    "baseline_context": "idle power",
    "baseline_loaded": "idle power",
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
        title = f"sum of {counted(devices, 'device')}" if devices > 1 else ""
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
