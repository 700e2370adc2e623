"""The pictures of a report: intervals, energy against throughput, power over time, latency."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llem_airflow.analysis.curves import Curve
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.quantity import scale
from llem_airflow.analysis.summary import ExperimentSummary
from llem_airflow.analysis.svg import INK, MUTED, PHASE, SERIES, drawing, inline_svg

_WIDTH_IN = 11.1
_PHASE_LABELS = {
    "baseline_bare": "baseline",
    "baseline_context": "baseline",
    "baseline_loaded": "baseline",
    "warmup": "warm-up",
}


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
        figure = Figure(figsize=(_WIDTH_IN, 0.8 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, (_, found, _) in enumerate(rows):
            if found.interval:
                ends = [found.interval.low * factor, found.interval.high * factor]
                axes.plot(ends, [y, y], color=SERIES[0], linewidth=2.2, solid_capstyle="butt")
            axes.plot([found.mean * factor], [y], "o", color=SERIES[0], markersize=6)
        _named_rows(axes, [f"{label}  (n = {found.n})" for label, found, _ in rows])
        axes.set_xlabel(f"{metric.label}, {unit}" + (" (estimate)" if estimate else ""))
        axes.grid(visible=True, axis="x")
        return inline_svg(
            figure, f"forest-{name}", f"{metric.label} of {len(rows)} experiments with intervals"
        )


def trade_off(
    experiments: Sequence[ExperimentSummary], labels: Sequence[str], best: set[str]
) -> Markup | None:
    """Energy per output token against throughput; experiments that nothing beats in both are filled."""
    points = [
        (joules.all.mean, rate.all.mean, label, e)
        for e, label in zip(experiments, labels, strict=True)
        if (joules := e.metric("energy_per_output_token_j")) and (rate := e.metric("output_tokens_per_s"))
    ]
    if len(points) < 2:
        return None
    unit, factor = scale(BY_NAME["energy_per_output_token_j"], max(point[0] for point in points))
    estimate = any(e.energy_kind == "estimate" for *_, e in points)
    with drawing():
        figure = Figure(figsize=(_WIDTH_IN, 3.6), layout="constrained")
        axes = figure.subplots()
        for energy, speed, label, e in points:
            face = SERIES[0] if e.id in best else "none"
            axes.plot(
                [speed], [energy * factor], "o", markersize=7, markeredgecolor=SERIES[0], markerfacecolor=face
            )
            if len(points) <= 12:
                axes.annotate(
                    label, (speed, energy * factor), xytext=(7, 4), textcoords="offset points", fontsize=8
                )
        axes.set_xlabel("Output tokens per second")
        axes.set_ylabel(f"Energy per output token, {unit}" + (" (estimate)" if estimate else ""))
        axes.margins(x=0.18, y=0.18)
        axes.grid(visible=True)
        return inline_svg(figure, "trade-off", "Energy per output token against output tokens per second")


def power_curves(experiment: str, curves: Sequence[Curve]) -> Markup | None:
    """Power over time of the cycles of one experiment, each with its phases shaded and named."""
    drawn = [one for one in curves if one.series]
    if not drawn:
        return None
    top = max(float(watts.max()) for one in drawn for _, watts in one.series.values()) * 1.38 or 1.0
    right = max(
        max([end for *_, end in one.phases] + [float(t[-1]) for t, _ in one.series.values()]) for one in drawn
    )
    with drawing():
        # Placed by hand: the layout engine would draw every panel twice, and a study has hundreds.
        height_in = 0.5 + 1.75 * len(drawn)
        figure = Figure(figsize=(_WIDTH_IN, height_in))
        right_edge = 0.9 if any(len(one.series) > 1 for one in drawn) else 0.995
        figure.subplots_adjust(0.055, 0.45 / height_in, right_edge, 1 - 0.25 / height_in, hspace=0.3)
        panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        for axes, one in zip(panels, drawn, strict=True):
            _panel(axes, one, top, right)
        panels[-1].set_xlabel("seconds since the attempt's first phase")
        shown = f"Power over time of {experiment}, cycles {', '.join(str(one.cycle) for one in drawn)}"
        return inline_svg(figure, f"power-{experiment}", shown)


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
        figure = Figure(figsize=(_WIDTH_IN, 0.9 + 0.3 * len(experiments)), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            _latency_panel(axes, kind, experiments)
        _named_rows(panels[0], labels)
        return inline_svg(figure, "latency", "Median, 95th and 99th percentile of the latencies")


def _panel(axes: Axes, one: Curve, top: float, right: float) -> None:
    for name, begin, end in one.phases:
        axes.axvspan(begin, end, color=PHASE.get(name, PHASE["cooldown"]), linewidth=0)
        if end - begin > right * 0.018:
            label = _PHASE_LABELS.get(name, name)
            fits = (end - begin) / right > 0.012 * len(label)
            axes.text(
                (begin + end) / 2,
                top * 0.97,
                label,
                ha="center",
                va="top",
                fontsize=7.5 if fits else 6.5,
                color=MUTED,
                rotation=0 if fits else 90,
            )
    for index, (gpu, (t_s, watts)) in enumerate(one.series.items()):
        axes.plot(t_s, watts, color=SERIES[index % len(SERIES)], linewidth=1.1, label=_short_gpu(gpu))
    axes.set_xlim(0, right)
    axes.set_ylim(0, top)
    axes.set_ylabel("W (estimate)" if one.estimate else "W")
    axes.set_title(f"cycle {one.cycle}", loc="left", color=INK)
    if len(one.series) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=7, labelcolor=INK)


def _latency_panel(axes: Axes, kind: str, experiments: Sequence[ExperimentSummary]) -> None:
    metric = BY_NAME[f"{kind}_p50_s"]
    found = [[e.metric(f"{kind}_{part}_s") for part in ("p50", "p95", "p99")] for e in experiments]
    largest = max((m.all.mean for row in found for m in row if m), default=1.0)
    unit, factor = scale(metric, largest)
    for y, row in enumerate(found):
        values = [m.all.mean * factor for m in row if m]
        if len(values) == 3:
            axes.plot([values[0], values[2]], [y, y], color=SERIES[0], linewidth=1.6)
            axes.plot(values[:1], [y], "o", color=SERIES[0], markersize=5)
            axes.plot(values[1:], [y, y], "|", color=SERIES[0], markersize=8, markeredgewidth=1.6)
    axes.set_title(kind.upper(), loc="left", color=INK)
    axes.set_xlabel(unit)
    axes.set_xlim(0, largest * factor * 1.08 or 1.0)
    axes.grid(visible=True, axis="x")


def _named_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def _short_gpu(gpu: str) -> str:
    return gpu if len(gpu) <= 16 else f"{gpu[:12]}…"
