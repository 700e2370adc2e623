"""Which stored runs a caller means, the keys that their studies vary, and what of them could not be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, cast, overload

import pandas as pd
import pyarrow as pa

from llem_airflow.analysis.plan import factors
from llem_airflow.frames.typed import column, kind_of, rows_table, typed
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.folder import first_line
from llem_airflow.results.store import locate_run
from llem_airflow.study.file.yaml import Source
from llem_airflow.study.names import canonical_key

Root = ResultsRoot | str | Path | None
Run = StoredRun | str | Path
Both = tuple[pd.DataFrame, pd.DataFrame]
"""A frame, and the frame of what belongs into it and could not be read."""
Runs = Run | pd.DataFrame | Iterable[Run]
P = ParamSpec("P")

_PROBLEMS_SCHEMA = pa.schema(
    [
        ("study", pa.string()),
        ("run_id", pa.string()),
        ("experiment", pa.string()),
        ("cycle", pa.int64()),
        ("problem", pa.string()),
        ("url", pa.string()),
    ]
)
_SHOWN = 5


class Reads(Protocol[P]):
    """A function that returns a frame, and with ``strict=False`` two."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the other has its arguments, strict among them
        self, *args: Any, strict: Literal[False], **kwargs: Any
    ) -> Both: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> pd.DataFrame: ...


def reads(function: Callable[P, pd.DataFrame | Both]) -> Reads[P]:
    """The function, of the type that its argument ``strict`` gives it."""
    return cast("Reads[P]", function)


class FrameError(ResultReadError):
    """Something that belongs into a frame cannot be read; the message names it."""


@dataclass
class Problems:
    """What belongs into a frame and is not in it.

    Attributes:
        found: One row each.
    """

    found: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, run: StoredRun | None, problem: str, experiment: str | None = None, cycle: int | None = None
    ) -> None:
        """Keep a problem of a run, or of one of its cycles; of no run where it is not known which."""
        of_run = {"study": run.study, "run_id": run.run_id, "url": run.url} if run else {}
        row = {**of_run, "experiment": experiment, "cycle": cycle, "problem": problem}
        if row not in self.found:  # a file that two parts of a frame come from
            self.found.append(row)

    @contextmanager
    def caught(
        self,
        run: StoredRun | None,
        experiment: str | None = None,
        cycle: int | None = None,
        *,
        errors: tuple[type[Exception], ...] = (OSError, ValueError, pa.ArrowException),
    ) -> Iterator[None]:
        """Keep what reading in the block raises, and go on."""
        try:
            yield
        except errors as error:
            self.add(run, first_line(error), experiment, cycle)

    def beside(self, frame: pd.DataFrame, *, strict: bool) -> pd.DataFrame | Both:
        """The frame with the problems beside it, or, if strict, the frame alone.

        Raises:
            FrameError: Strict, and there is a problem.
        """
        if not strict:
            return frame, typed(rows_table(self.found, _PROBLEMS_SCHEMA))
        if self.found:
            told = list(dict.fromkeys(str(row["problem"]) for row in self.found))
            more = f"\nand {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
            raise FrameError(
                "\n".join(told[:_SHOWN])
                + f"{more}\nstrict=False gives what can be read, and the problems beside it"
            )
        return frame


def results_root(root: Root = None) -> ResultsRoot:
    """The results under a folder or URL; by default those of the command line: LLEM_RESULTS_ROOT, then ./results."""
    if isinstance(root, ResultsRoot):
        return root
    return ResultsRoot(root or os.environ.get("LLEM_RESULTS_ROOT") or "results")


def stored_runs(runs: Runs, root: Root = None) -> list[StoredRun]:
    """The runs that a caller names, each once.

    Args:
        runs: A frame of ``runs_df`` or a row of one, a stored run, a name as the command line takes it
            (``study/run``, a study for its newest run, ``latest``), a path or URL of a run's folder, or several.
        root: Where names are looked up, and whose storage options hold for the URLs below it.

    Raises:
        NoSuchRunError: One of them names no run.
        ValueError: A frame has no column ``url``.
    """
    where = results_root(root)
    url = getattr(runs, "url", None)  # also of a row of a frame, whatever way it was taken
    if isinstance(runs, StoredRun):
        return [runs]
    if isinstance(url, str):
        runs = [url]
    elif isinstance(runs, (str, Path)):
        runs = [runs]
    elif isinstance(runs, pd.DataFrame):
        if "url" not in runs:
            raise ValueError(
                f"a frame of runs has a column 'url', as runs_df gives it; found {list(runs)[:8]}"
            )
        runs = [str(one) for one in runs["url"]]
    found = [one if isinstance(one, StoredRun) else _named(str(one), where) for one in runs]
    return list({run.url: run for run in found}.values())


def _named(text: str, root: ResultsRoot) -> StoredRun:
    inside = text.removeprefix(f"{root.url}/").strip("/").split("/")
    if text.startswith(f"{root.url}/") and len(inside) == 2:
        run = StoredRun.at(root.folder.child(*inside))
        if run.is_run():
            return run
    return locate_run(text, root)


def wanted(asked: Any, known: Sequence[Any], what: str) -> list[Any] | None:
    """The experiments or cycles that a caller asked for; None for all.

    Raises:
        ValueError: One of them is not among the known ones.
    """
    if asked is None:
        return None
    found = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, str) else [asked]
    if missing := [one for one in found if one not in known]:
        raise ValueError(f"there is no {what} {missing[0]!r}; there are: {', '.join(map(str, known))}")
    return found


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

    @classmethod
    def of_run(cls, run: StoredRun) -> Swept:
        """Those of one run.

        Raises:
            ResultReadError: Its plan or study is damaged.
        """
        problems = Problems()
        found = cls.of([run], problems)
        if problems.found:
            raise ResultReadError(str(problems.found[0]["problem"]))
        return found

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
