"""The cycles of an aggregated run as a comparison sees them; its table is read once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llem_airflow.analysis.cycle import HAS_RESULT
from llem_airflow.results import ResultReadError, StoredRun, layout
from llem_airflow.results.parquet import read_table


@dataclass(frozen=True)
class Side:
    """The cycles of one experiment of one run.

    Attributes:
        run: Where they come from.
        experiment: ``<slug>-<hash8>``.
        rows: Rows of cycles.parquet that have a result.
        excluded: Cycles that were left out because they were flagged and the caller asked for that.
        beside: Experiments of the run.
        config: What was configured, from plan.json; empty where the plan does not tell.
    """

    run: StoredRun
    experiment: str
    rows: tuple[dict[str, Any], ...]
    excluded: tuple[int, ...] = ()
    beside: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``study/run#experiment``."""
        return f"{self.run.study}/{self.run.folder.name}#{self.experiment}"

    def values(self, metric: str) -> dict[int, float]:
        """Value of the metric by cycle; what is not finite is not known."""
        return {
            int(row["cycle"]): float(value)
            for row in self.rows
            if (value := row.get(metric)) is not None and math.isfinite(value)
        }

    def positions(self) -> dict[int, int]:
        """Place in the run order by cycle."""
        return {int(row["cycle"]): int(row["position"]) for row in self.rows if row["position"] is not None}

    def conditions(self) -> dict[str, list[str]]:
        """Each field of the fingerprint with the distinct values that the cycles have, as JSON."""
        found: dict[str, set[str]] = {}
        for text in {row["fingerprint"] or "{}" for row in self.rows}:
            for key, value in json.loads(text).items():
                found.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
        return {key: sorted(values) for key, values in found.items()}


@dataclass(frozen=True)
class RunRows:
    """A run with the rows of its cycles.parquet.

    Attributes:
        run: The run.
        rows: One row a cycle, and one for each point that the study left out.
    """

    run: StoredRun
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, run: StoredRun | RunRows) -> RunRows:
        """Read them, where that was not done yet.

        Raises:
            ResultReadError: The run was not aggregated.
        """
        return run if isinstance(run, RunRows) else cls(run, tuple(cycle_rows(run)))

    @cached_property
    def _by_experiment(self) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["experiment"]:
                groups.setdefault(str(row["experiment"]), []).append(row)
        return groups

    @cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        return {str(item["id"]): item.get("config") or {} for item in self.run.plan().get("experiments", ())}

    @property
    def hashes(self) -> dict[str, str]:
        """Identity by experiment, in the order of the table; empty where no row tells it."""
        return {
            name: next((str(row["hash"]) for row in reversed(rows) if row["hash"]), "")
            for name, rows in self._by_experiment.items()
        }

    def sides(self, *, without_flagged: bool = False) -> dict[str, Side]:
        """Each experiment, in the order of the table."""
        return {
            name: self._side(name, rows, without_flagged=without_flagged)
            for name, rows in self._by_experiment.items()
        }

    def side(self, experiment: str, *, without_flagged: bool = False) -> Side:
        """The cycles of one experiment.

        Raises:
            ResultReadError: There is no such experiment.
        """
        rows = self._by_experiment.get(experiment)
        if rows is None:
            known = ", ".join(sorted(self._by_experiment))
            raise ResultReadError(f"{self.run.url}: no experiment {experiment!r}; there are: {known}")
        return self._side(experiment, rows, without_flagged=without_flagged)

    def by_all_but(self, factor: str) -> dict[str, str]:
        """Experiment by its configuration without the factor, a dotted key."""
        return {
            json.dumps(_without(item.get("config") or {}, factor), sort_keys=True): str(item["id"])
            for item in self.run.plan().get("experiments", ())
        }

    def _side(self, experiment: str, rows: list[dict[str, Any]], *, without_flagged: bool) -> Side:
        usable = [row for row in rows if row["status"] in HAS_RESULT]
        flagged = {int(row["cycle"]) for row in usable if without_flagged and row["doubtful"]}
        kept = tuple(row for row in usable if int(row["cycle"]) not in flagged)
        return Side(
            self.run,
            experiment,
            kept,
            tuple(sorted(flagged)),
            len(self._by_experiment),
            self._configs.get(experiment, {}),
        )


def cycle_rows(run: StoredRun) -> list[dict[str, Any]]:
    """Rows of cycles.parquet.

    Raises:
        ResultReadError: The run was not aggregated, or the table does not read.
    """
    if not run.folder.exists(layout.CYCLES_TABLE):
        raise ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")
    table = read_table(run.folder, layout.CYCLES_TABLE)
    if absent := sorted(_NEEDED - set(table.column_names)):
        raise ResultReadError(
            f"{run.url}/{layout.CYCLES_TABLE}: there is no column {absent[0]!r}; `llem-airflow report {run.url} "
            "--again` makes the table anew"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


_NEEDED = frozenset({"experiment", "cycle", "status", "hash", "reason", "flags", "energy_kind", "energy_j"})


def _without(config: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    key, _, rest = dotted.partition(".")
    kept = dict(config)
    if not rest:
        kept.pop(key, None)
    elif isinstance(kept.get(key), Mapping):
        kept[key] = _without(kept[key], rest)
    return kept
