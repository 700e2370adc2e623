"""What a run planned, and how its experiments are called: by the factors in which they differ, the same everywhere.

The standard library only: making a DAG loads this, and neither NumPy nor SciPy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llem_airflow.protocol.typed_json import from_json
from llem_airflow.study.names import ENGINES
from llem_airflow.study.plan.model import RateSearch

NAMED_BY_VALUE = ("engine", "model")
LONGEST = 80
"""A longer name says less than the id."""
_MISSING: Mapping[str, Any] = {}


class Named(Protocol):
    """What an experiment is named by."""

    @property
    def id(self) -> str:
        """``<slug>-<hash8>``."""

    @property
    def slug(self) -> str:
        """Readable name."""

    @property
    def factors(self) -> dict[str, Any]:
        """What sets it apart from the other experiments of the run."""


def experiment_labels(experiments: Sequence[Named]) -> list[str]:
    """A short distinct name for each experiment: what sets it apart, else its id."""
    return distinct_labels(
        [e.id for e in experiments], [factor_label(e.factors, e.slug) for e in experiments]
    )


def distinct_labels(ids: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The texts, or the ids where a text is too long or stands for two experiments."""
    fits = all(len(text) <= LONGEST for text in texts) and len(set(texts)) == len(texts)
    return list(texts) if fits else list(ids)


def factors(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration the dotted keys, with their values, in which not all are equal.

    An engine's section is compared among the experiments on that engine: without it, it is not another value of each
    of its keys.

    Args:
        configs: Configurations of experiments; what they share (as objects) is not looked into.
    """
    paths = list(_varying(list(configs), ()))
    found: list[dict[str, Any]] = [{} for _ in configs]
    for path in paths:
        for config, own in zip(configs, found, strict=True):
            own[".".join(path)] = _at(config, path)
    return found


def _varying(values: list[Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    different = list({id(value): value for value in values}.values())
    if len(different) < 2:
        return
    maps = [_MISSING if value is None else value for value in different]
    if not all(isinstance(value, Mapping) for value in maps):
        if len({repr(value) for value in different}) > 1:
            yield path
        return
    for key in sorted({key for value in maps for key in value}):
        of_engine = not path and key in ENGINES
        yield from _varying([m.get(key) for m in maps if not of_engine or key in m], (*path, str(key)))


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def factor_label(factors: Mapping[str, object], fallback: str) -> str:
    """What sets an experiment apart, as ``vllm, Qwen3-8B, batch_size 4``; the fallback when nothing does."""
    parts = []
    for key, value in factors.items():
        name = key.rpartition(".")[2]
        if value is None:
            continue
        if name in NAMED_BY_VALUE:
            parts.append(str(value).rstrip("/").rpartition("/")[2])
        else:
            parts.append(f"{name} {short(value)}")
    return ", ".join(parts) or fallback


def narrow_factor_label(factors: Mapping[str, object], fallback: str) -> str:
    """The same for a narrow column that cuts the end off: ``8, 32 (batch_size, max_output_tokens)``."""
    if not factors:
        return fallback
    named = {key: key.rpartition(".")[2] for key in factors}
    values = [
        str(value).rstrip("/").rpartition("/")[2] if named[key] in NAMED_BY_VALUE and value else short(value)
        for key, value in factors.items()
    ]
    return f"{', '.join(values)} ({', '.join(named.values())})"


def short(value: object) -> str:
    """A configuration value on one short line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {short(item)}" for key, item in value.items())
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ, in the order of the second."""
    return [key for key in dict.fromkeys([*other, *one]) if one.get(key) != other.get(key)]


def single_factor_levels(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, str] | None:
    """``1`` and ``batch_size 8``, where one key alone differs; None where several do, or none."""
    keys = differing_keys(before, after)
    if len(keys) != 1:
        return None
    (key,) = keys
    name = key.rpartition(".")[2]
    old, new = (_value(name, values.get(key)) for values in (before, after))
    return old, new if name in NAMED_BY_VALUE else f"{name} {new}"


def factor_changes(factors: Mapping[str, Sequence[Any]]) -> list[str]:
    """``batch_size 1 -> 8`` for each key; the whole dotted key where two would have the same name."""
    names = Counter(key.rpartition(".")[2] for key in factors)
    found = []
    for key, (old, new) in factors.items():
        name = key.rpartition(".")[2]
        found.append(f"{name if names[name] == 1 else key} {_value(name, old)} -> {_value(name, new)}")
    return found


def _value(name: str, value: object) -> str:
    if value is None:
        return "unset"
    return str(value).rstrip("/").rpartition("/")[2] if name in NAMED_BY_VALUE else short(value)


@dataclass(frozen=True, slots=True)
class PlannedExperiment:
    """One experiment of the plan.

    Attributes:
        id: ``<slug>-<hash8>``.
        slug: Readable name.
        hash: Identity, 16 hex digits.
        engine: Name of the engine.
        config: The experiment in the study's vocabulary, with defaults.
    """

    id: str
    slug: str
    hash: str
    engine: str
    config: dict[str, Any]

    @property
    def requires_energy(self) -> bool:
        """Whether a cycle whose energy is withheld counts as missing (``measurement.require_energy``)."""
        measurement = self.config.get("measurement")
        return isinstance(measurement, dict) and measurement.get("require_energy") is True

    @property
    def model(self) -> str:
        """Name of the model, or a dash when the plan does not tell."""
        task = self.config.get("task")
        return str(task.get("model", "-")) if isinstance(task, dict) else str(self.config.get("model", "-"))


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan of a run.

    Attributes:
        experiments: By id.
        cycles: (experiment id, cycle), in run order.
        skipped: Points of the sweep that the study left out: ``{"rule", "reason", "point"}``.
        precision_target: ``{"relative_half_width", "min_cycles"}`` when the study stops at a precision.
        rates: ``{"carbon", "price"}`` of energy as the study gives them (``stated`` in plan.json).
        searches: Searches for the highest rate that meets an SLO.
    """

    experiments: dict[str, PlannedExperiment]
    cycles: tuple[tuple[str, int], ...]
    skipped: tuple[dict[str, Any], ...]
    precision_target: dict[str, Any] | None = None
    rates: dict[str, Any] = field(default_factory=dict)
    searches: tuple[RateSearch, ...] = ()


def planned(plan: Mapping[str, Any]) -> Planned:
    """Read plan.json; an empty plan plans nothing."""
    experiments = {
        str(item["id"]): PlannedExperiment(
            id=str(item["id"]),
            slug=str(item.get("slug", item["id"])),
            hash=str(item.get("hash", "")),
            engine=str(item.get("engine", "")),
            config=item.get("config") or {},
        )
        for item in plan.get("experiments", ())
    }
    cycles = _in_order(plan.get("order", ())) or [
        (name, cycle) for cycle in range(1, int(plan.get("cycles") or 1) + 1) for name in experiments
    ]
    target = plan.get("precision_target")
    return Planned(
        experiments,
        tuple(cycles),
        tuple(plan.get("skipped", ())),
        dict(target) if target else None,
        dict(plan.get("stated") or {}),
        tuple(from_json(RateSearch, one, "plan.json: searches") for one in plan.get("searches") or ()),
    )


def _in_order(order: Any) -> list[tuple[str, int]]:
    """The k-th time that an experiment appears is its cycle k."""
    seen: Counter[str] = Counter()
    cycles = []
    for entry in order:
        if isinstance(entry, Mapping):
            cycles.append((str(entry.get("experiment") or entry["id"]), int(entry["cycle"])))
        else:
            seen[str(entry)] += 1
            cycles.append((str(entry), seen[str(entry)]))
    return cycles


def experiment_factors(experiments: Mapping[str, PlannedExperiment]) -> dict[str, dict[str, Any]]:
    """What differs between the experiments: for each, the configuration keys that are not all equal."""
    return dict(zip(experiments, factors([item.config for item in experiments.values()]), strict=True))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted keys; lists stay values."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return found
