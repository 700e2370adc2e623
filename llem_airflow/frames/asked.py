"""Which stored runs a caller means, and what of them could not be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from llem_airflow.frames.typed import rows_table, typed
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.folder import first_line
from llem_airflow.results.store import locate_run

Root = ResultsRoot | str | Path | None
Run = StoredRun | str | Path
Both = tuple[pd.DataFrame, pd.DataFrame]
"""A frame, and the frame of what belongs into it and could not be read."""
Runs = Run | pd.DataFrame | Iterable[Run]

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
    found = [asked] if isinstance(asked, (str, int)) else list(asked)
    if missing := [one for one in found if one not in known]:
        raise ValueError(f"there is no {what} {missing[0]!r}; there are: {', '.join(map(str, known))}")
    return found
