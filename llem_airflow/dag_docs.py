"""What the Airflow UI shows about a study's DAG and its tasks, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llem_airflow.study import Experiment, Study
from llem_airflow.study.runners import Layers, RunnerError, said_by_engine

ADHOC_DOC = """# A study from the trigger form

Trigger this DAG and paste the YAML of a study. Mistakes are shown with line and column in the log of `plan`, before
anything is measured. The cycles run one at a time; the *Energy* tab of the run shows the report.

The same from a terminal: `airflow dags trigger llem_adhoc --conf "$(jq -Rs '{study: .}' my-study.yaml)"`.
"""


def study_doc(study: Study, layers: Callable[[], Layers]) -> str:
    """The page of a study's DAG.

    Args:
        study: The study.
        layers: Tells what names runners beside the study; the host's connection is asked when a run is planned.
    """
    rows = "\n".join(f"| `{e.id}` | {e.engine} | {e.model} |" for e in study.experiments[:200])
    more = f"\n\n… and {len(study.experiments) - 200} more" if len(study.experiments) > 200 else ""
    return (
        f"# {study.name}\n\n{len(study.experiments)} experiments x {study.cycles} cycles "
        f"= {len(study.plan.runs)} containers, from `{study.path.name if study.path else 'text'}`.\n\n"
        f"| experiment | engine | model |\n|---|---|---|\n{rows}{more}\n\n"
        f"{_runners(study, layers)}"
        f"{_releases(study)}"
        "The *Energy* tab of a run shows its report."
    )


def _runners(study: Study, layers: Callable[[], Layers]) -> str:
    try:
        said = said_by_engine(layers(), study.experiments)
    except RunnerError as error:
        return f"No run can be planned: `{error}`\n\n"
    rows = "\n".join(f"| {engine} | {choice.told} |" for engine, choice in said.items())
    return f"| engine | runner, and what names it |\n|---|---|\n{rows}\n\n"


def invalid_doc(name: str, report: str) -> str:
    """The page of a DAG that stands for a file with mistakes: a fenced block, since Airflow drops raw HTML."""
    report = re.sub(r"<(?=[a-zA-Z/!])", "<\u200b", report)  # whatever renders it, no tag comes of it
    fence = "`" * (max(map(len, re.findall("`+", report)), default=0) + 3)
    return f"# `{name.replace('`', '')}` has mistakes\n\n{fence}text\n{report}\n{fence}\n"


def _releases(study: Study) -> str:
    if not study.versions:
        return ""
    rows = "\n".join(
        f"| `{v.name}` | {v.released} | {v.model or ''} {v.revision or ''} |" for v in study.versions
    )
    return (
        "Each run measures one model release: its partition key. *Trigger > Backfill* runs all of a range of dates.\n\n"
        f"| release | date | model |\n|---|---|---|\n{rows}\n\n"
    )


class ExperimentDocs:
    """The pages of the tasks of one study.

    Its experiments share the parts of their configurations in which they do not differ: those are written out once.
    """

    def __init__(self) -> None:
        self._written: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}

    def page(self, experiment: Experiment) -> str:
        """The page of a cycle's task: the experiment's whole configuration."""
        rows = self._rows(experiment.config, "")
        return f"### {experiment.slug}\n\nIdentity `{experiment.hash}`\n\n| key | value |\n|---|---|\n{rows}"

    def _rows(self, config: dict[str, Any], prefix: str) -> str:
        known = self._written.get((prefix, id(config)))
        if known is None:
            rows = "\n".join(
                self._rows(value, f"{prefix}{key}.")
                if isinstance(value, dict) and value
                else f"| `{prefix}{key}` | `{value}` |"
                for key, value in config.items()
            )
            known = self._written[prefix, id(config)] = rows, config  # held, so that its id stays its own
        return known[0]
