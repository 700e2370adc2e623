"""What the Airflow UI shows about a study's DAG and its tasks, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llem_airflow.study import Experiment, Study

ADHOC_DOC = """# A study from the trigger form

Trigger this DAG and paste the YAML of a study. Mistakes are shown with line and column in the log of `plan`, before
anything is measured. The cycles run one at a time; the *Energy* tab of the run shows the report.

The same from a terminal: `airflow dags trigger llem_adhoc --conf "$(jq -Rs '{study: .}' my-study.yaml)"`.
"""


def study_doc(study: Study) -> str:
    """The page of a study's DAG."""
    rows = "\n".join(f"| `{e.id}` | {e.engine} | {e.model} | {e.runner} |" for e in study.experiments[:200])
    more = f"\n\n… and {len(study.experiments) - 200} more" if len(study.experiments) > 200 else ""
    return (
        f"# {study.name}\n\n{len(study.experiments)} experiments x {study.cycles} cycles "
        f"= {len(study.plan.runs)} containers, from `{study.path.name if study.path else 'text'}`.\n\n"
        f"| experiment | engine | model | runner |\n|---|---|---|---|\n{rows}{more}\n\n"
        f"{_releases(study)}"
        "The *Energy* tab of a run shows its report."
    )


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


def experiment_doc(experiment: Experiment) -> str:
    """The page of a cycle's task: the experiment's whole configuration."""
    rows = "\n".join(f"| `{key}` | `{value}` |" for key, value in _flat(experiment.config))
    return f"### {experiment.slug}\n\nIdentity `{experiment.hash}`\n\n| key | value |\n|---|---|\n{rows}"


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
