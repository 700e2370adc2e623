"""What a run planned, from its plan.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.analysis.labels import factors


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
        stated: ``{"carbon", "price"}`` as the study states them.
    """

    experiments: dict[str, PlannedExperiment]
    cycles: tuple[tuple[str, int], ...]
    skipped: tuple[dict[str, Any], ...]
    precision_target: dict[str, Any] | None = None
    stated: dict[str, Any] = field(default_factory=dict)


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
