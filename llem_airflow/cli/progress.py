"""What a person sees while a study runs: Airflow's output, boiled down to the cycles and what each is doing."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from llem_airflow.text.terminal import Folding, Whole, show

_OURS = re.compile(
    r"^\S+ \[(?P<level>\w+)\s*\] (?P<text>.*?)\s*\[airflow\.task\.operators\.llem_airflow[^\]]*\](?: loc=\S+)?\s*$"
)
_STAMPED = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z? \[\w+\s*\]")
_STARTED = re.compile(r"\[DAG TEST\] starting task_id=(?P<task>\S+)")
_ORDERING = re.compile(r"\.ended(_\d+)?$")
"""Tasks that only keep others in order."""
_ENDED = re.compile(r"\[DAG TEST\] end task task_id=(?P<task>\S+)")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Timeout|Interrupt)\b.*")
_KEPT_AT_MOST, _KEPT_FIRST = 12, 4


def _ends(lines: list[str]) -> list[str]:
    """The first lines, which say what happened, and the last, which hold the error and where the evidence lies."""
    if len(lines) <= _KEPT_AT_MOST:
        return lines
    return [*lines[:_KEPT_FIRST], "  …", *lines[_KEPT_FIRST - _KEPT_AT_MOST :]]


class RunProgress:
    """Shows the progress of one run; every line of Airflow's output also goes to a file.

    Args:
        console: Where to show it. Not a terminal: plain lines instead of a bar.
        cycles: How many cycles are planned.
        log: File that gets everything.
    """

    def __init__(self, console: Console, cycles: int, log: Path) -> None:
        self._console = console
        self._log = log.open("w", encoding="utf-8")
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("cycles"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=cycles)
        self._live = Live(console=console, transient=True, auto_refresh=console.is_terminal)
        self._doing("starting Airflow")
        self._current = ""
        self._failure: list[str] | None = None
        self._failed: set[str] = set()

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._log.close()

    def line(self, text: str) -> None:
        """Take one line of Airflow's output."""
        print(text, file=self._log, flush=True)
        if self._failure is not None and self._in_failure(text):
            return
        if ours := _OURS.match(text):
            self._say(ours["text"])
        elif started := _STARTED.search(text):
            self._current = started["task"]
        elif ended := _ENDED.search(text):
            self._end(ended["task"])
        elif "Task failed with exception" in text:
            self._failure = []

    def _say(self, text: str) -> None:
        self._doing(f"{self._current}: {text}")
        if not self._console.is_terminal or text.startswith("Runner of "):
            self._plain(f"  {text}")

    def _doing(self, text: str) -> None:
        """What is under way, below the bar: a long name has the whole width, and more than one line."""
        self._live.update(Group(self._bar, Folding(" ".join(text.split()), indent=2)))

    def _end(self, task: str) -> None:
        if ".cycle_" in task:
            self._bar.advance(self._task)
        if task in self._failed:
            self._failed.discard(task)  # a further try of it may end well
        elif not _ORDERING.search(task):
            self._plain(f"finished {task}")

    def _in_failure(self, text: str) -> bool:
        """Collect the exception's own text from a traceback; False once the next log entry begins."""
        assert self._failure is not None
        if not _STAMPED.match(text):
            if _EXCEPTION.match(text):
                self._failure = [text]  # the last exception of a chain is the one that was raised
            elif self._failure and not text.startswith("  File ") and text.strip():
                self._failure.append(text)
            return True
        self._failed.add(self._current)
        for line in (f"FAILED {self._current}", *_ends(self._failure)):
            self._plain(line, style="red")
        self._failure = None
        return False

    def _plain(self, text: str, style: str | None = None) -> None:
        show(self._console, Whole(text, style or ""))
