"""The pictures of a report: intervals, energy against speed, latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.quantity import number, scale
from llem_airflow.analysis.summary import ExperimentSummary
from llem_airflow.analysis.svg import INK, SERIES, WIDTH_IN, drawing, inline_svg


def forest(experiments: Sequence[ExperimentSummary], name: str, labels: Sequence[str]) -> Markup | None:
    """Mean and 95 % interval of a metric, one line an experiment, in the order given."""
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
    with drawing():
        many = len(rows) > 12
        figure = Figure(figsize=(WIDTH_IN, 0.8 + (0.24 if many else 0.34) * len(rows)), layout="constrained")
        axes = figure.subplots()
        known = [(y, found.interval) for y, (_, found, _) in enumerate(rows) if found.interval]
        axes.hlines(
            [y for y, _ in known],
            [one.low * factor for _, one in known],
            [one.high * factor for _, one in known],
            colors=SERIES[0],
            linewidth=2.2,
        )
        axes.plot(
            [found.mean * factor for _, found, _ in rows],
            range(len(rows)),
            "o",
            color=SERIES[0],
            markersize=4 if many else 6,
        )
        _named_rows(axes, [f"{label}  (n = {found.n})" for label, found, _ in rows])
        _readable_scale(
            axes, "x", [one.low * factor for _, one in known] + [f.mean * factor for _, f, _ in rows]
        )
        axes.set_xlabel(f"{metric.label}, {unit}" + (" (estimate)" if estimate else ""))
        axes.grid(visible=True, axis="x")
        return inline_svg(
            figure, f"forest-{name}", f"{metric.label} of {len(rows)} experiments with intervals"
        )


def trade_off(
    experiments: Sequence[ExperimentSummary], fronts: Mapping[str, set[str]], metrics: Mapping[str, str]
) -> Markup | None:
    """Energy per output token against throughput and latency; what nothing beats in both is filled and numbered.

    The number is the experiment's place in the tables: names would cover each other.
    """
    energies = [e.metric("energy_per_output_token_j") for e in experiments]
    known = [found.all.mean for found in energies if found]
    if len(known) < 2:
        return None
    unit, factor = scale(BY_NAME["energy_per_output_token_j"], max(known))
    estimate = any(e.energy_kind == "estimate" for e in experiments)
    with drawing():
        figure = Figure(figsize=(WIDTH_IN, 3.8), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, (name, metric) in zip(panels, metrics.items(), strict=True):
            _trade_off_panel(axes, experiments, metric, factor, fronts[name])
        _readable_scale(panels[0], "y", [value * factor for value in known])
        panels[0].set_ylabel(f"Energy per output token, {unit}" + (" (estimate)" if estimate else ""))
        return inline_svg(figure, "trade-off", "Energy per output token against throughput and latency")


def latencies(experiments: Sequence[ExperimentSummary], labels: Sequence[str]) -> Markup | None:
    """Median to 99th percentile of TTFT, TPOT, ITL and E2EL: means over cycles."""
    kinds = [
        name
        for name in ("ttft", "tpot", "itl", "e2el")
        if any(e.metric(f"{name}_p50_s") for e in experiments)
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


def _trade_off_panel(
    axes: Axes, experiments: Sequence[ExperimentSummary], metric: str, factor: float, front: set[str]
) -> None:
    points = [
        (place, other.all.mean, energy.all.mean * factor, e.id in front)
        for place, e in enumerate(experiments, start=1)
        if (energy := e.metric("energy_per_output_token_j")) and (other := e.metric(metric))
    ]
    unit, size = scale(BY_NAME[metric], max((x for _, x, _, _ in points), default=1.0))
    for _, x, y, best in points:
        face = SERIES[0] if best else "none"
        axes.plot([x * size], [y], "o", markersize=7, markeredgecolor=SERIES[0], markerfacecolor=face)
    for place, x, y in _apart([point for point in points if point[3] or len(points) <= 12]):
        axes.annotate(str(place), (x * size, y), xytext=(6, 5), textcoords="offset points", fontsize=8.5)
    line = sorted((x * size, y) for _, x, y, best in points if best)
    axes.plot([x for x, _ in line], [y for _, y in line], color=SERIES[0], linewidth=0.8, zorder=0)
    better = "right" if BY_NAME[metric].better == "higher" else "left"
    axes.set_xlabel(f"{BY_NAME[metric].label}, {unit}  (better: {better} and down)")
    axes.margins(x=0.1, y=0.12)
    axes.grid(visible=True)


def _apart(points: Sequence[tuple[int, float, float, bool]]) -> list[tuple[int, float, float]]:
    """Points whose numbers would not cover each other; the table names all of them."""
    width = max((x for _, x, _, _ in points), default=0.0) or 1.0
    kept: list[tuple[int, float, float]] = []
    for place, x, y, _ in points:
        if all(abs(x - a) > 0.02 * width or abs(y - b) > 0.15 * abs(b) for _, a, b in kept):
            kept.append((place, x, y))
    return kept


def _readable_scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Logarithmic where the values span more than a factor of eight: differences are shares here."""
    if min(values) <= 0 or max(values) < 8 * min(values):
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
    rows = [(y, [m.all.mean * factor for m in row if m]) for y, row in enumerate(found)]
    rows = [(y, values) for y, values in rows if len(values) == 3]
    at = [y for y, _ in rows]
    p50, p95, p99 = ([values[k] for _, values in rows] for k in range(3))
    axes.hlines(at, p50, p99, colors=SERIES[0], linewidth=1.6)
    axes.plot(p50, at, "o", color=SERIES[0], markersize=5)
    axes.plot(p95 + p99, at + at, "|", color=SERIES[0], markersize=8, markeredgewidth=1.6)
    axes.set_title(kind.upper(), loc="left", color=INK)
    axes.set_xlabel(unit)
    axes.set_xlim(0, largest * factor * 1.08 or 1.0)
    axes.grid(visible=True, axis="x")


def _named_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
