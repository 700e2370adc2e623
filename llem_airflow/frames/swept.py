"""The keys that a study varies, as a typed column each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llem_airflow.analysis.plan import factors
from llem_airflow.frames.asked import Problems
from llem_airflow.frames.typed import column, kind_of
from llem_airflow.results import StoredRun
from llem_airflow.study.file.yaml import Source
from llem_airflow.study.names import canonical_key


@dataclass(frozen=True)
class Swept:
    """The values of the swept keys by run and experiment.

    Attributes:
        values: By URL of the run, then by id of the experiment: ``{dotted key: value}``.
        kinds: Arrow type of each key's column, over all runs.
    """

    values: Mapping[str, Mapping[str, Mapping[str, Any]]]
    kinds: Mapping[str, Any]

    @classmethod
    def of(cls, runs: Iterable[StoredRun], problems: Problems) -> Swept:
        """Those of runs: the keys that differ between two experiments of a study, and the axes of its sweep.

        A key has its value in all runs of that study, also where only a part was measured. In a study that does not
        vary the key it is null.
        """
        points: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
        axes: dict[str, dict[str, None]] = {}
        for run in runs:
            with problems.caught(run):
                axes.setdefault(run.study, {}).update(_axes(run.study_text()))
                for item in run.plan().get("experiments", ()):
                    point = (run.url, str(item["id"]), item.get("config") or {})
                    points.setdefault(run.study, []).append(point)
        values: dict[str, dict[str, dict[str, Any]]] = {}
        by_key: dict[str, list[Any]] = {}
        for name, study in points.items():
            told = factors([config for *_, config in study])
            for (url, experiment, config), found in zip(study, told, strict=True):
                alone = {key: _at(config, key) for key in axes[name] if key not in found}
                values.setdefault(url, {})[experiment] = found | alone
                for key, value in (found | alone).items():
                    by_key.setdefault(key, []).append(value)
        known = {key: found for key, found in by_key.items() if any(value is not None for value in found)}
        return cls(values, {key: kind_of(found) for key, found in known.items()})

    def of_experiment(self, run: StoredRun, experiment: str | None) -> dict[str, Any]:
        """The values of one experiment, None where it has none."""
        found = self.values.get(run.url, {}).get(experiment or "", {})
        return {key: found.get(key) for key in self.kinds}

    def beside(self, table: Any, run: StoredRun) -> Any:
        """A run's table, which has a column ``experiment``, with a column for each key that it does not have yet."""
        names = table.column("experiment").combine_chunks()
        many = pa.types.is_dictionary(names.type)
        names = names if many else names.dictionary_encode()
        told = [self.of_experiment(run, name) for name in names.dictionary.to_pylist()]
        for key, kind in self.kinds.items():
            if key not in table.column_names:
                values = column([one[key] for one in told], kind)
                table = table.append_column(key, _spread(values, names.indices, many=many))
        return table


def _axes(study_text: str | None) -> dict[str, None]:
    """The plain axes of a study's sweep: with one value, or where one was measured alone, no experiment differs."""
    sweep = Source("study.yaml", study_text).value.get("sweep") if study_text else None
    return dict.fromkeys(map(canonical_key, sweep)) if isinstance(sweep, Mapping) else {}


def _at(config: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none, or a whole section."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return None if isinstance(config, Mapping) else config


def _spread(values: Any, indices: Any, *, many: bool) -> Any:
    """A value for each row; in a table of many rows, text is stored once for all of an experiment."""
    if not (many and pa.types.is_string(values.type)):
        return values.take(indices)
    once = values.dictionary_encode()
    return pa.DictionaryArray.from_arrays(once.indices.take(indices), once.dictionary)
