"""Which model, hardware and engine answers for the fewest joules within a latency limit, workload by workload."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llem_airflow.analysis.cycle import HAS_RESULT
from llem_airflow.analysis.hosts import kinds_of
from llem_airflow.analysis.plan import distinct_labels, factor_label, short
from llem_airflow.analysis.statistics import tells_interval
from llem_airflow.results import StoredRun, layout
from llem_airflow.results.parquet import read_table
from llem_airflow.text.wording import counted

ENERGY = "energy_per_output_token_j"

LATENCIES = tuple(
    f"{name}_{share}_s" for name in ("ttft", "tpot", "e2el") for share in ("mean", "p50", "p90", "p95", "p99")
)
"""Metrics that a limit may be set on."""

_JUDGED = {"slo", "seed", "request_timeout_seconds"}
"""Keys of the traffic that say how a result is judged or drawn, not what is asked."""
_LOADS = ("rate", "concurrency")
"""Keys of the traffic that say how much is asked at a time: of a server's rates one competes, as of batch sizes."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One experiment of one run.

    Attributes:
        source: What leads to it: study, run, DAG, experiment and its label, release.
        model: Name of the model.
        hardware: What its energy was read of; every kind where its cycles were measured on several.
        engine: Engine and version.
        workload: What was asked of it; only entrants of one workload are compared.
        energy_kind: measured, estimate, attributed or mixed.
        n: Cycles with a value.
        energy_per_output_token_j: Mean over cycles.
        low_j: Lower end of its 95 % interval; None where too few cycles tell it.
        high_j: Upper end.
        output_tokens_per_s: Mean over cycles; None is not known.
        latencies_s: Mean over cycles of each of LATENCIES; None is not known.
        hosts: How many hosts measured it.
        meets_slo: Whether every cycle of a server met its study's bounds; None where there are none.
        saturated: Whether a server's backlog grew in some cycle: its latencies are not steady.
    """

    source: Mapping[str, Any]
    model: str
    hardware: str
    engine: str
    workload: str
    energy_kind: str
    n: int
    energy_per_output_token_j: float
    low_j: float | None
    high_j: float | None
    output_tokens_per_s: float | None
    latencies_s: Mapping[str, float | None]
    hosts: int = 1
    meets_slo: bool | None = None
    saturated: bool = False

    def competes(self, latency: str, limit_s: float | None) -> bool:
        """Whether it may have a place: in a steady state, and within the limit; without one, within its study's bounds.

        Args:
            latency: One of LATENCIES.
            limit_s: The most that it may be, in seconds; None for no limit.
        """
        if self.saturated:
            return False
        if limit_s is None:
            return self.meets_slo is not False
        value = self.latencies_s.get(latency)
        return value is not None and value <= limit_s

    @property
    def contender(self) -> tuple[str, str, str]:
        """What has one place on the board."""
        return self.model, self.hardware, self.engine


@dataclass(frozen=True, slots=True)
class Ranked:
    """A place on the board.

    Attributes:
        entrant: The configuration of its model, hardware and engine with the fewest joules within the limit.
        rank: From 1.
        level: Whether its interval reaches that of the first: the order of the two may be chance.
        tried: Configurations of the same model, hardware and engine.
    """

    entrant: Entrant
    rank: int
    level: bool
    tried: int


@dataclass(frozen=True, slots=True)
class Board:
    """One workload.

    Attributes:
        workload: What was asked.
        ranked: Measured energy within the limit, the least first.
        beyond: The quickest configuration of each model, hardware and engine of which none is within the limit, or
            meets its study's bounds in a steady state.
        unknown: One of each for which the latency is not known.
        apart: Energy that was not measured but estimated or attributed; it has no rank.
    """

    workload: str
    ranked: tuple[Ranked, ...]
    beyond: tuple[Entrant, ...]
    unknown: tuple[Entrant, ...]
    apart: tuple[Entrant, ...]


def boards(
    entrants: Iterable[Entrant], latency: str = LATENCIES[0], limit_s: float | None = None
) -> list[Board]:
    """A board for each workload, the one with the most contenders first.

    Args:
        entrants: All that may compete.
        latency: One of LATENCIES.
        limit_s: The most that it may be, in seconds; None for no limit.

    Raises:
        ValueError: There is no such latency, or the limit is not above 0.
    """
    if latency not in LATENCIES:
        raise ValueError(f"latency {latency!r}: choose one of {', '.join(LATENCIES)}")
    if limit_s is not None and not limit_s > 0:
        raise ValueError(f"limit {limit_s!r}: a number of seconds above 0, or none")
    by_workload: dict[str, list[Entrant]] = {}
    for one in entrants:
        by_workload.setdefault(one.workload, []).append(one)
    found = [_board(workload, own, latency, limit_s) for workload, own in by_workload.items()]
    return sorted(found, key=lambda one: (-len(one.ranked), -len(one.beyond), one.workload))


def _board(workload: str, entrants: Sequence[Entrant], latency: str, limit_s: float | None) -> Board:
    apart = [one for one in entrants if one.energy_kind != "measured"]
    best, beyond, unknown = [], [], []
    for own in _by_contender(one for one in entrants if one.energy_kind == "measured").values():
        known = [(value, one) for one in own if (value := one.latencies_s.get(latency)) is not None]
        within = [one for one in own if one.competes(latency, limit_s)]
        if within:
            best.append((_least(within), len(own)))
        elif known:
            beyond.append(
                min(known, key=lambda item: (item[1].saturated, item[0], item[1].energy_per_output_token_j))[
                    1
                ]
            )
        else:
            unknown.append(_least(own))
    best.sort(key=lambda item: item[0].energy_per_output_token_j)
    return Board(
        workload=workload,
        ranked=tuple(
            Ranked(one, rank, _level(best[0][0], one), tried)
            for rank, (one, tried) in enumerate(best, start=1)
        ),
        beyond=tuple(beyond),
        unknown=tuple(unknown),
        apart=tuple(
            _least([one for one in own if one.competes(latency, None)] or own)
            for own in _by_contender(apart).values()
        ),
    )


def _by_contender(entrants: Iterable[Entrant]) -> dict[tuple[str, str, str], list[Entrant]]:
    found: dict[tuple[str, str, str], list[Entrant]] = {}
    for one in entrants:
        found.setdefault(one.contender, []).append(one)
    return found


def _least(entrants: Sequence[Entrant]) -> Entrant:
    return min(entrants, key=lambda one: one.energy_per_output_token_j)


def _level(first: Entrant, other: Entrant) -> bool:
    """Whether the intervals of two meet; without an interval nothing tells them apart."""
    if first is other:
        return False
    if first.high_j is None or other.low_j is None:
        return True
    return other.low_j <= first.high_j


def entrants_of(run: StoredRun) -> list[Entrant]:
    """The experiments of a run that have energy per output token, each with what was asked of it.

    Raises:
        ResultReadError: A file of the run does not read.
    """
    metrics = [
        ENERGY,
        f"{ENERGY}_n",
        f"{ENERGY}_low",
        f"{ENERGY}_high",
        "output_tokens_per_s",
        *LATENCIES,
        "hosts",
        "slo_met_ratio",
        "flags",
    ]
    facts = ["experiment", "engine", "engine_version", "model", "energy_kind", "energy_boundary", "factors"]
    rows = read_table(run.folder, layout.EXPERIMENTS_TABLE, [*facts, *metrics], optional=metrics).to_pylist()
    fingerprints = _fingerprints(run)
    configs = {str(item["id"]): item.get("config") or {} for item in run.plan().get("experiments", ())}
    ids = [str(row["experiment"]) for row in rows]
    texts = [factor_label(json.loads(row["factors"] or "{}"), row["experiment"]) for row in rows]
    found = []
    for name, label, row in zip(ids, distinct_labels(ids, texts), rows, strict=True):
        if row.get(ENERGY) is None:
            continue
        told, n = fingerprints.get(name, [{}]), int(row.get(f"{ENERGY}_n") or 0)
        config = configs.get(name, {})
        load = _load(config)
        hosts = len(row.get("hosts") or ()) or 1
        shown = tells_interval(n, hosts)
        found.append(
            Entrant(
                source={
                    "study": run.study,
                    "run_id": run.run_id,
                    "experiment": name,
                    "label": label if load in label else f"{label}, {load}",
                },
                model=str(row["model"] or "-"),
                hardware=" and ".join(kinds_of(told)) or "not known",
                engine=f"{row['engine']} {row['engine_version'] or ''}".strip(),
                workload=_workload(told[0], config, row["energy_boundary"]),
                energy_kind=str(row["energy_kind"]),
                n=n,
                energy_per_output_token_j=float(row[ENERGY]),
                low_j=row.get(f"{ENERGY}_low") if shown else None,
                high_j=row.get(f"{ENERGY}_high") if shown else None,
                output_tokens_per_s=row.get("output_tokens_per_s"),
                latencies_s={key: row.get(key) for key in LATENCIES},
                hosts=hosts,
                meets_slo=None if (met := row.get("slo_met_ratio")) is None else met == 1.0,
                saturated="saturated" in (row.get("flags") or ()),
            )
        )
    return found


def _fingerprints(run: StoredRun) -> dict[str, list[dict[str, Any]]]:
    """The distinct ones of each experiment's cycles with a result."""
    columns = ["experiment", "status", "fingerprint"]
    found: dict[str, dict[str, None]] = {}
    for row in read_table(run.folder, layout.CYCLES_TABLE, columns, optional=columns).to_pylist():
        if row.get("status") in HAS_RESULT:
            found.setdefault(str(row["experiment"]), {})[row.get("fingerprint") or "{}"] = None
    return {name: [*map(json.loads, texts)] for name, texts in found.items()}


def _workload(fields: Mapping[str, Any], config: Mapping[str, Any], boundary: str | None) -> str:
    """What has to be equal for a place on one board: prompts, lengths, arrivals, and what the joules include."""
    task = _section(config, "task")
    dataset = _section(task, "dataset")
    prompts = str(fields.get("prompts_sha256") or "")[:8]
    number = fields.get("n_prompts")
    how_many = counted(int(number), "prompt") if number else "prompts"
    parts = [
        f"{how_many} {dataset.get('source') or ''} ({prompts or 'not known'})",
        *(f"{key} {short(task[key])}" for key in ("max_input_tokens", "max_output_tokens") if key in task),
        _arrivals(config),
        f"energy of {boundary or 'what is not known'}",
        f"formulas {fields.get('energy_semantics', '?')}",
    ]
    return ", ".join(" ".join(part.split()) for part in parts)


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _arrivals(config: Mapping[str, Any]) -> str:
    traffic = _section(_section(config, "server"), "traffic")
    if config.get("serving_mode") != "server" or not traffic:
        return "batches"
    left_out = _JUDGED.union(_LOADS)
    told = {key: value for key, value in traffic.items() if key not in left_out and value is not None}
    loop = "open loop" if traffic.get("concurrency") is None else "closed loop"
    return f"served ({', '.join((loop, *(f'{key} {short(value)}' for key, value in sorted(told.items()))))})"


def _load(config: Mapping[str, Any]) -> str:
    """``rate 4`` or ``concurrency 8`` of a server; empty for batches."""
    traffic = _section(_section(config, "server"), "traffic")
    return next((f"{key} {short(traffic[key])}" for key in _LOADS if traffic.get(key) is not None), "")
