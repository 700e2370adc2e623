"""What the Airflow UI shows about a study's DAG and its tasks, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llem_airflow.analysis.plan import distinct_labels, factor_label, factors, narrow_factor_label
from llem_airflow.runners.choice import AUTO, Choice, Layers, RunnerError, said_by_engine
from llem_airflow.study import Experiment, Study
from llem_airflow.text.wording import counted

ADHOC_DOC = """# A study from the trigger form

Trigger this DAG and paste the YAML of a study. Problems are shown with line and column in the *Energy* tab of the run
and in the log of `plan`, before anything is measured. The cycles run one at a time; then the tab shows the report.

The same from a terminal: `airflow dags trigger llem_adhoc --conf "$(jq -Rs '{study: .}' my-study.yaml)"`.
"""
_SHOWN = 200
_GRID_COLUMNS = 18
"""Airflow's grid cuts names behind about so many letters."""
_SHOWN_LINES = 400
_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])")
"""An underscore inside of a word is one."""
_SHORT = re.compile(r"^/(?:[^/:\n]+/)+(?=[^/:\n]+:\d)")
"""The folder of a file that a problem begins with."""
_PLACES = {
    "process": "each in a fresh process",
    "container": "each in a fresh container",
    "kubernetes": "each in a fresh pod",
}


def task_labels(experiments: Sequence[Experiment]) -> list[str]:
    """What the grid calls each experiment: what sets it apart from the others."""
    found = factors([e.config for e in experiments])
    texts = [factor_label(own, e.slug) for own, e in zip(found, experiments, strict=True)]
    if any(len(text) > _GRID_COLUMNS for text in texts):
        texts = [narrow_factor_label(own, e.slug) for own, e in zip(found, experiments, strict=True)]
    return distinct_labels([e.id for e in experiments], texts)


def study_doc(study: Study, layers: Callable[[], Layers]) -> str:
    """The page of a study's DAG.

    Args:
        study: The study.
        layers: Tells what names runners beside the study; the host's connection is asked when a run is planned.
    """
    try:
        said = said_by_engine(layers(), study.experiments)
        runners = _table(
            ("engine", "runner, and what names it"),
            ((plain(e), plain(choice.told)) for e, choice in said.items()),
        )
    except RunnerError as error:
        said, runners = {}, f"No run can be planned: {_code(str(error))}\n\n"
    planned, cycles = len(study.experiments), len(study.plan.planned_cycles)
    return (
        f"# {plain(study.name)}\n\n{counted(planned, 'experiment')}, {counted(cycles, 'cycle')} to measure"
        f"{_where(study, said)}, from {plain(study.path.name) if study.path else 'text'}. "
        "The *Energy* tab of a run shows its report.\n\n"
        f"{_experiments(study)}{runners}{_releases(study)}{_yaml(study.text)}"
    )


def _where(study: Study, said: Mapping[str, Choice]) -> str:
    if study.execution.in_sessions:
        return f" in {counted(len(study.plan.sessions), 'session')}, each one living container"
    places = {_PLACES.get(choice.runner, "") for choice in said.values()}
    place = places.pop() if len(places) == 1 else ""
    if not place and any(choice.runner == AUTO for choice in said.values()):
        return ", each in a fresh container or process as the table below says"
    return f", {place}" * bool(place)


def _experiments(study: Study) -> str:
    """What sets each experiment apart; its model only where a run measures that one.

    What is equal in all of them is said once: Airflow's window has room for three narrow columns.
    """
    shown = list(study.experiments[:_SHOWN])
    own = {"engine": [e.engine for e in study.experiments]}
    if not any(version.model for version in study.versions):
        own["model"] = [e.model for e in study.experiments]
    titles, columns = ["experiment"], [task_labels(study.experiments)[:_SHOWN]]
    for title, values in own.items():
        if len(set(values)) > 1:
            titles.append(title)
            columns.append(values[:_SHOWN])
    if columns[0] != (ids := [e.id for e in shown]):
        titles.append("id of its task group")
        columns.append(ids)
    same = [f"{title} {plain(values[0])}" for title, values in own.items() if len(set(values)) == 1]
    told = f"Measured with {' and '.join(same)}.\n\n" if same else ""
    rows = zip(*(map(plain, column) for column in columns), strict=True)
    more = len(study.experiments) - len(shown)
    return told + _table(titles, rows) + (f"… and {more} more\n\n" if more else "")


def _releases(study: Study) -> str:
    if not study.versions:
        return ""
    own = ", ".join(dict.fromkeys(e.model for e in study.experiments))
    revisions = ", ".join(dict.fromkeys(e.revision or "" for e in study.experiments))
    rows = (
        (
            _code(v.name),
            v.released or "",
            plain(v.model or own),
            plain(v.revision or ("" if v.model else revisions) or "newest"),
        )
        for v in study.versions
    )
    return (
        "Each run measures one model release: its partition key. *Trigger > Backfill* runs all of a range of dates.\n\n"
        + _table(("release", "date", "model", "revision"), rows)
    )


def _yaml(text: str) -> str:
    lines = text.splitlines()
    more = len(lines) - _SHOWN_LINES
    told = f"\n… and {counted(more, 'more line')} in the file\n" if more > 0 else ""
    return "The study:\n\n" + _fenced("\n".join(lines[:_SHOWN_LINES]), "yaml") + told


def invalid_doc(name: str, report: str) -> str:
    """The page of a DAG that stands for a file with problems: as a list, and as the command prints them.

    Airflow drops raw HTML, and its window cuts the lines of a fenced block.
    """
    report = re.sub(r"<(?=[a-zA-Z/!])", "<\u200b", report)  # whatever renders it, no tag comes of it
    listed = "\n".join(f"- {plain(_SHORT.sub('', line))}" for line in report.splitlines() if line.strip())
    return f"# {plain(name)} has problems\n\n{listed}\n\nIn full:\n\n{_fenced(report, 'text')}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown already."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n\n"


def _code(text: str) -> str:
    """The text in a code span, where Markdown takes nothing for itself; a pipe would end a table's cell."""
    text = " ".join(text.split()).replace("|", "\\|")
    if "`" not in text:
        return f"`{text}`" if text else ""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def plain(text: str) -> str:
    """The text outside of a code span: Markdown takes nothing in it for itself.

    Airflow draws a code span as a box that hides the underscores of the line above, wherever a name is folded.
    """
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


class ExperimentDocs:
    """The pages of the tasks of one study.

    Its experiments share the parts of their configurations in which they do not differ: those are written out once.
    """

    def __init__(self, study: Study) -> None:
        self._written: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}
        released = {
            "task.model": any(v.model for v in study.versions),
            ".engine_params.revision": any(v.revision for v in study.versions),
        }
        self._released = tuple(name for name, replaced in released.items() if replaced)

    def page(self, experiment: Experiment) -> str:
        """The page of a cycle's task: the experiment's whole configuration."""
        rows = self._rows(experiment.config, "")
        return f"### {plain(experiment.slug)}\n\nIdentity `{experiment.hash}`\n\n| key | value |\n|---|---|\n{rows}"

    def _rows(self, config: dict[str, Any], prefix: str) -> str:
        known = self._written.get((prefix, id(config)))
        if known is None:
            rows = "\n".join(
                self._rows(value, f"{prefix}{key}.")
                if isinstance(value, dict) and value
                else f"| {plain(prefix + str(key))} | {self._value(prefix + str(key), value)} |"
                for key, value in config.items()
            )
            known = self._written[prefix, id(config)] = rows, config  # held, so that its id stays its own
        return known[0]

    def _value(self, key: str, value: object) -> str:
        if self._released and key.endswith(self._released):
            return "that of the run's release"
        return plain(str(value))
