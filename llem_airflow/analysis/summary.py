"""Summary: what the cycles of a run mean together, where it was measured, and whether the precision target is met.

Built from rows alone, without touching a power series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.analysis.contrast import Contrast, Measured, answer
from llem_airflow.analysis.cycle import Cycle, read_cycle
from llem_airflow.analysis.flags import FlagSummary, gravity, summed_flags
from llem_airflow.analysis.hosts import gpus_text, host_flags, n_text
from llem_airflow.analysis.metrics import BY_NAME, METRICS, Derived, derived
from llem_airflow.analysis.plan import Planned, experiment_factors, experiment_labels
from llem_airflow.analysis.sessions import session_flags, sessions_text
from llem_airflow.analysis.statistics import FEW_CYCLES, SHOWN_FROM_N, Description, describe, slope_ratio
from llem_airflow.protocol.failures import how_to_rerun
from llem_airflow.protocol.typed_json import UNLESS_DEFAULT, from_json, to_json
from llem_airflow.results import ResultReadError, StoredRun, layout
from llem_airflow.study.plan.model import RateSearch
from llem_airflow.text.wording import counted

ORDER = ("model", "release", "engine", "hardware", "driver", "meter", "host", "sessions")
"""In which people read them; JSON does not keep an order."""


def setup(
    cycles: Sequence[Cycle], environments: Iterable[Mapping[str, Any]], release: str | None = None
) -> dict[str, Any]:
    """The distinct values of each, by name; what no cycle tells is left out.

    Args:
        cycles: Rows of the run.
        environments: ``{"cycles", "environment"}`` of each distinct environment.
        release: Model release that was measured, if the study has any.
    """
    told = [dict(item["environment"]) for item in environments]
    found = {
        "model": [row.model for row in cycles if row.model != "-"],
        "release": [release or ""],
        "engine": [_engine(row) for row in cycles if row.has_result] or [row.engine for row in cycles],
        "hardware": [_hardware(one) for one in told],
        "driver": [str(one.get("driver") or "") for one in told],
        "meter": [_meter(row) for row in cycles if row.has_result],
        "host": [row.host for row in cycles],
        "sessions": [sessions_text(cycles)],
    }
    distinct = {name: [value for value in dict.fromkeys(values) if value] for name, values in found.items()}
    return {name: values for name, values in distinct.items() if values}


def setup_texts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people: name and values."""
    return [(name, ", ".join(found[name])) for name in ORDER if name in found]


def _engine(row: Cycle) -> str:
    return f"{row.engine} {row.engine_version}".strip()


def _hardware(environment: Mapping[str, Any]) -> str:
    """The GPUs, or the CPU where there is none."""
    if gpus := gpus_text(environment):
        return gpus
    cpu = environment.get("cpu")
    if not isinstance(cpu, Mapping) or not cpu.get("model"):
        return ""
    return f"{cpu['model']}, {cpu.get('usable') or cpu.get('count') or '?'} CPUs"


def _meter(row: Cycle) -> str:
    """``nvml (measured, counter, board)``, and for NVIDIA's whether gpu-check characterised it, and when."""
    name = str(row.fingerprint.get("meter") or "")
    if row.energy_kind == "none":
        return name
    parts = dict.fromkeys(
        [row.energy_kind, row.energy_source or "", row.energy_boundary or "", row.characterised or ""]
    )
    return f"{name} ({', '.join(part for part in parts if part)})"


SUMMARY_VERSION = 1


@dataclass(frozen=True)
class MetricSummary:
    """One metric of one experiment over its cycles.

    Attributes:
        name: Name in ``metrics.METRICS``.
        all: Over every cycle with a value.
        undoubted: Over the cycles without a warning, when that leaves some but not all of them.
        outlier_cycles: Cycles that are outliers; they are in every number.
        slope_ratio: Drift per position in the run order, relative to the median.
    """

    name: str
    all: Description
    undoubted: Description | None = None
    outlier_cycles: tuple[int, ...] = ()
    slope_ratio: float | None = None


@dataclass(frozen=True)
class ExperimentSummary:
    """What the cycles of one experiment say.

    Attributes:
        id: ``<slug>-<hash8>``.
        slug: Readable name.
        hash: Identity, 16 hex digits.
        engine: Name of the engine.
        engine_version: Its version.
        model: Name of the model.
        factors: What sets it apart from the other experiments of the run.
        planned: Planned cycles.
        valid: Cycles with a valid result.
        statuses: Number of cycles by status.
        energy_kind: measured | estimate | attributed | none | mixed.
        energy_source: Where the joules come from.
        energy_boundary: What they include (board, cpu-package, …).
        active_over: Name of the baseline under the active energy.
        metrics: The metrics that have a value.
        doubts: Flags, the gravest first.
        precision_met: Whether the interval is as narrow as the study asks for; None when it does not ask.
        derived: CO2e and cost, when the study states an intensity or a price.
        hosts: Names of the hosts with a result, where they are several.
    """

    id: str
    slug: str
    hash: str
    engine: str
    engine_version: str
    model: str
    factors: dict[str, Any]
    planned: int
    valid: int
    statuses: dict[str, Any]
    energy_kind: str
    energy_source: str | None
    energy_boundary: str | None
    active_over: str | None
    metrics: tuple[MetricSummary, ...]
    doubts: tuple[FlagSummary, ...]
    precision_met: bool | None = None
    derived: tuple[Derived, ...] = ()
    hosts: tuple[str, ...] = field(default=(), metadata=UNLESS_DEFAULT)

    def metric(self, name: str) -> MetricSummary | None:
        """The metric of that name, if it has a value."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True)
class Summary:
    """What the cycles of a run mean together.

    Attributes:
        schema_version: Version of summary.json.
        study: Name of the study.
        run_id: Id of the run.
        planned: Planned cycles.
        valid: Planned cycles with a valid result.
        energy_kind: measured | estimate | attributed | none | mixed.
        experiments: In the order of the plan.
        missing: Planned cycles without a result: ``{"experiment", "cycle", "status", "reason"}``, and
            ``next_step`` where one is known.
        skipped: Points that the study left out: ``{"rule", "reason", "point"}``.
        reliability: Per host and engine: how many cycles, how many valid, how many for which no GPU came,
            failed attempts, reasons.
        environments: Distinct environments: ``{"cycles", "environment"}``.
        power_rows: Rows of the merged power series.
        power_absent: Cycles without a series: ``{"experiment", "cycle", "reason"}``.
        started_epoch_ns: When the first attempt began.
        finished_epoch_ns: When the last attempt ended.
        answer: What the run says to its study's question, as one sentence; None in summaries of an older version.
        contrasts: Each experiment against the first one, for the metric that the answer is about.
        setting: Model, engine, hardware, driver, meter, host and release: the distinct values of each.
        searches: Searches for the highest rate that meets an SLO.
    """

    schema_version: int
    study: str
    run_id: str
    planned: int
    valid: int
    energy_kind: str
    experiments: tuple[ExperimentSummary, ...]
    missing: tuple[dict[str, Any], ...]
    skipped: tuple[dict[str, Any], ...]
    reliability: tuple[dict[str, Any], ...]
    environments: tuple[dict[str, Any], ...]
    power_rows: int
    power_absent: tuple[dict[str, Any], ...]
    started_epoch_ns: int | None
    finished_epoch_ns: int | None
    answer: str | None = None
    contrasts: tuple[Contrast, ...] = ()
    setting: dict[str, Any] = field(default_factory=dict)
    searches: tuple[RateSearch, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """What each experiment is called, by its id."""
        return dict(
            zip((each.id for each in self.experiments), experiment_labels(self.experiments), strict=True)
        )

    @property
    def is_estimate(self) -> bool:
        """Whether some joules here are estimates."""
        return self.energy_kind == "estimate" or any(e.energy_kind == "estimate" for e in self.experiments)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        found: dict[str, Any] = to_json(self)
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "summary.json") -> Summary:
        """Read summary.json.

        Raises:
            ProtocolError: It is not what this version writes.
        """
        return from_json(cls, dict(data), where)


def load_summary(run: StoredRun) -> Summary | None:
    """The stored summary of a run, or None before it was aggregated.

    Raises:
        ResultReadError: A newer release wrote it.
        ProtocolError: It is not what this version writes.
    """
    data, where = run.summary(), f"{run.url}/{layout.SUMMARY}"
    if data is None:
        return None
    version = data.get("schema_version")
    if isinstance(version, int) and version > SUMMARY_VERSION:
        raise ResultReadError(
            f"{where}: schema_version {version} was written by a newer llem-airflow (this one reads up to "
            f"{SUMMARY_VERSION}); upgrade to read it"
        )
    return Summary.from_json(data, where)


def summarise(
    study: str,
    run_id: str,
    plan: Planned,
    cycles: Sequence[Cycle],
    *,
    environments: Iterable[dict[str, Any]] = (),
    power_rows: int = 0,
    power_absent: Iterable[dict[str, Any]] = (),
    release: str | None = None,
) -> Summary:
    """What the cycles mean together."""
    told = tuple(environments)
    varied = experiment_factors(plan.experiments)
    names = list(dict.fromkeys([*plan.experiments, *(row.experiment for row in cycles if row.experiment)]))
    by_name: dict[str, list[Cycle]] = {name: [] for name in names}
    for row in cycles:
        if row.cycle is not None:
            by_name[row.experiment].append(row)
    counted = Counter(name for name, _ in plan.cycles)
    of_sessions = session_flags(cycles)
    experiments = tuple(
        _experiment(name, plan, by_name[name], varied.get(name, {}), counted[name], of_sessions.get(name, ()))
        for name in names
        if not _left_out(by_name[name], plan)
    )
    valid = sum(row.status == "valid" for row in cycles)
    planned = len(plan.cycles) - sum(row.status == "skipped" for row in cycles)
    answered = answer(_measured(experiments, by_name), planned, valid)
    return Summary(
        schema_version=SUMMARY_VERSION,
        study=study,
        run_id=run_id,
        planned=planned,
        valid=valid,
        energy_kind=_one_of(experiment.energy_kind for experiment in experiments),
        experiments=experiments,
        missing=tuple(_missing(row) for row in cycles if _is_missing(row, plan)),
        skipped=plan.skipped,
        reliability=_reliability(cycles),
        environments=told,
        power_rows=power_rows,
        power_absent=tuple(power_absent),
        started_epoch_ns=min((row.started_epoch_ns for row in cycles if row.started_epoch_ns), default=None),
        finished_epoch_ns=max(
            (row.finished_epoch_ns for row in cycles if row.finished_epoch_ns), default=None
        ),
        answer=answered.sentence,
        contrasts=answered.contrasts,
        setting=setup(cycles, told, release),
        searches=plan.searches,
    )


def _left_out(rows: Sequence[Cycle], plan: Planned) -> bool:
    """Whether a search did not ask for an experiment."""
    return bool(plan.searches and rows) and all(row.status == "skipped" for row in rows)


def _measured(
    experiments: Sequence[ExperimentSummary], by_name: Mapping[str, Sequence[Cycle]]
) -> list[Measured]:
    return [
        Measured(e.id, label, e.factors, tuple(row for row in by_name[e.id] if row.has_result))
        for e, label in zip(experiments, experiment_labels(experiments), strict=True)
    ]


def _experiment(
    name: str,
    whole: Planned,
    rows: list[Cycle],
    varied: dict[str, Any],
    planned: int,
    of_sessions: Sequence[FlagSummary],
) -> ExperimentSummary:
    plan = whole.experiments.get(name)
    planned -= sum(row.status == "skipped" for row in rows)
    measured = [row for row in rows if row.has_result]
    first = measured[0] if measured else None
    hosts = tuple(dict.fromkeys(row.host for row in measured))
    metrics = tuple(found for metric in METRICS if (found := _metric(metric.name, measured)))
    per_token = next((metric.all for metric in metrics if metric.name == "energy_per_output_token_j"), None)
    return ExperimentSummary(
        id=name,
        slug=plan.slug if plan else name,
        hash=plan.hash if plan else (first.hash if first else ""),
        engine=plan.engine if plan else (first.engine if first else ""),
        engine_version=first.engine_version if first else "",
        model=first.model if first else (plan.model if plan else "-"),
        factors=varied,
        planned=planned,
        valid=sum(row.status == "valid" for row in rows),
        statuses=dict(Counter(row.status for row in rows)),
        energy_kind=_one_of(row.energy_kind for row in measured),
        energy_source=_shared(row.energy_source for row in measured),
        energy_boundary=_shared(row.energy_boundary for row in measured),
        active_over=_shared(row.active_over for row in measured),
        metrics=metrics,
        doubts=_flags(rows, measured, planned, metrics, whole.precision_target, of_sessions),
        precision_met=_precision_met(whole.precision_target, metrics),
        derived=derived(whole.rates, per_token),
        hosts=hosts if len(hosts) > 1 else (),
    )


def _metric(name: str, rows: Sequence[Cycle]) -> MetricSummary | None:
    known = [(row, value) for row in rows if (value := row.measures.get(name)) is not None]
    signed = BY_NAME[name].signed
    every = describe((value for _, value in known), signed=signed, hosts=[row.host for row, _ in known])
    if every is None:
        return None
    trusted = [(row.host, value) for row, value in known if not row.doubtful]
    positions = [(row.position, value, row.host) for row, value in known if row.position is not None]
    return MetricSummary(
        name=name,
        all=every,
        undoubted=describe(
            (value for _, value in trusted), signed=signed, hosts=[host for host, _ in trusted]
        )
        if len(trusted) < len(known)
        else None,
        outlier_cycles=tuple(known[index][0].cycle or 0 for index in every.outliers),
        slope_ratio=slope_ratio(*([*each] for each in zip(*positions, strict=True))) if positions else None,
    )


def _flags(
    rows: Sequence[Cycle],
    measured: Sequence[Cycle],
    planned: int,
    metrics: Sequence[MetricSummary],
    target: Mapping[str, Any] | None,
    of_sessions: Sequence[FlagSummary],
) -> tuple[FlagSummary, ...]:
    found = [
        *summed_flags((row.cycle or 0, flag) for row in measured for flag in row.flags),
        *of_sessions,
        *host_flags(measured),
    ]
    valid = sum(row.status == "valid" for row in rows)
    if valid < planned:
        found.append(
            FlagSummary(
                "incomplete",
                "warning",
                "not every planned cycle is valid",
                f"correct what each reason names, then {how_to_rerun()}; "
                "where the study has to change, start a new run",
            )
        )
    if 0 < valid < FEW_CYCLES:
        found.append(
            FlagSummary(
                "few_cycles",
                "warning",
                f"fewer than {FEW_CYCLES} cycles: the interval is wide, and absent below {SHOWN_FROM_N}",
                f"set study_execution.n_cycles to {FEW_CYCLES} or more",
            )
        )
    if target is not None and not _precision_met(target, metrics):
        found.append(
            FlagSummary(
                "precision_not_met",
                "warning",
                f"the interval is wider than the {float(target['relative_half_width']):.2%} of the mean that was asked "
                "for",
                "raise study_execution.precision_target.max_cycles, or look for what makes the cycles differ",
            )
        )
    headline = next((metric for metric in metrics if metric.name == "energy_per_output_token_j"), None)
    if headline and headline.outlier_cycles:
        found.append(
            FlagSummary(
                "outlier",
                "warning",
                "energy per output token lies over 3.5 scaled MAD from the median; the mean keeps it",
                "compare the median with the mean, and look at the power curve of the cycle",
                "3.5 x 1.4826 MAD (Iglewicz and Hoaglin)",
                headline.outlier_cycles,
            )
        )
    return tuple(sorted(found, key=lambda flag: (gravity(flag.severity), flag.code)))


def _precision_met(target: Mapping[str, Any] | None, metrics: Sequence[MetricSummary]) -> bool | None:
    if target is None:
        return None
    names = ("energy_per_output_token_j", "output_tokens_per_s")
    found = [metric.all.half_width_ratio for name in names for metric in metrics if metric.name == name]
    return bool(found) and found[0] is not None and found[0] <= float(target["relative_half_width"])


def _is_missing(row: Cycle, plan: Planned) -> bool:
    if row.cycle is None or row.status == "skipped":
        return False
    experiment = plan.experiments.get(row.experiment)
    required = experiment is not None and experiment.requires_energy
    return not row.has_result or (required and row.measures.get("energy_j") is None)


def _missing(row: Cycle) -> dict[str, Any]:
    reason = row.reason or "the study requires energy, and no meter gave any"
    told = {"experiment": row.experiment, "cycle": row.cycle, "status": row.status, "reason": reason}
    return {**told, "next_step": row.next_step} if row.next_step else told


def _reliability(cycles: Sequence[Cycle]) -> tuple[dict[str, Any], ...]:
    groups: dict[tuple[str, str], list[Cycle]] = {}
    for row in cycles:
        if row.cycle is not None:
            groups.setdefault((row.host, row.engine), []).append(row)
    return tuple(
        {
            "host": host,
            "engine": engine,
            "cycles": len(rows),
            "valid": sum(row.status == "valid" for row in rows),
            "missed": sum(row.status == "missed" for row in rows),
            "failed_attempts": sum(row.failed_attempts for row in rows),
            "reasons": dict(
                sorted(Counter(row.reason.partition(":")[0] for row in rows if row.status != "valid").items())
            ),
        }
        for (host, engine), rows in sorted(groups.items())
    )


def _shared(values: Iterable[str | None]) -> str | None:
    """As ``_one_of``; None where there is no cycle at all."""
    told = list(values)
    return _one_of(told) if told else None


def _one_of(values: Iterable[str | None]) -> str:
    distinct = {value for value in values if value and value != "none"}
    return distinct.pop() if len(distinct) == 1 else ("mixed" if distinct else "none")


@dataclass(frozen=True, slots=True)
class Precision:
    """How narrow the interval of an experiment is.

    Attributes:
        n: Cycles with a value.
        half_width_ratio: Half of the length of the 95 % t interval / |mean|; None below two cycles.
        met: Whether it is as narrow as asked for.
        reason: One sentence.
    """

    n: int
    half_width_ratio: float | None
    met: bool
    reason: str


def precision(
    values: Sequence[float], *, relative_half_width: float, min_cycles: int, hosts: Sequence[str] = ()
) -> Precision:
    """Judge the values of the cycles measured so far.

    Looking after every cycle lowers the coverage of the interval a little, hence the smallest number of cycles.

    Args:
        values: One value a cycle.
        relative_half_width: Half width / mean that is wanted.
        min_cycles: Cycles before it may be met.
        hosts: The host of each value.
    """
    found = describe(values, hosts=hosts)
    n, ratio = (found.n, found.half_width_ratio) if found else (0, None)
    if found is None or n < max(min_cycles, 2) or ratio is None:
        return Precision(
            n, ratio, met=False, reason=f"{n} of at least {counted(max(min_cycles, 2), 'cycle')}"
        )
    met = ratio <= relative_half_width
    word = "reached" if met else "not reached"
    after = n_text(n, found.hosts)
    reason = f"half width {ratio:.2%} of the mean after {after}; {relative_half_width:.2%} {word}"
    return Precision(n, ratio, met, reason)


def precision_of(
    run: StoredRun, experiment_id: str, *, relative_half_width: float, min_cycles: int
) -> Precision:
    """Judge the committed cycles of an experiment by energy per output token, or by tokens/s without a meter."""
    rows = [
        read_cycle(ref, position=None, failed_attempts=0)[0]
        for ref in run.cycles()
        if ref.experiment_id == experiment_id
    ]
    for name in ("energy_per_output_token_j", "output_tokens_per_s"):
        known = [(value, row.host) for row in rows if (value := row.measures.get(name)) is not None]
        if known:
            return precision(
                [value for value, _ in known],
                relative_half_width=relative_half_width,
                min_cycles=min_cycles,
                hosts=[host for _, host in known],
            )
    return Precision(0, None, met=False, reason="no cycle was measured yet")
