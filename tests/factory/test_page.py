"""The tables of the factory's page are made from the code: ``python -m tests.factory.test_page`` prints them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from llem_airflow import factory
from llem_airflow.operators.gates import GATES
from llem_airflow.study import load_study_text

PAGE = Path(factory.__file__).parent / "README.md"
STUDY = """\
study_name: two
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate}
sweep: {transformers.llem_execution.batch_size: [1, 2]}
study_execution: {n_cycles: 2, canary: true}
airflow: {retries: 3}
"""


def explained(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument."""
    text = inspect.getdoc(function) or ""
    arguments = re.split(r"\n(?=\w+:\n)", text.partition("Args:\n")[2])[0]
    found = re.findall(r"^    (\S+?): (.*?)(?=\n    \S|\n\n|\Z)", arguments, re.DOTALL | re.MULTILINE)
    return {name: " ".join(what.split()).replace("``", "`") for name, what in found}


def argument_rows() -> Iterator[str]:
    yield "| function | argument | default | meaning |\n|---|---|---|---|"
    for name in ("study_dag", "study_dags", "adhoc_dag", "StudyTaskGroup", "study_asset", "study_params"):
        function = getattr(factory, name)
        defaults = inspect.signature(function).parameters
        for argument, what in explained(function).items():
            default = getattr(defaults.get(argument.lstrip("*")), "default", inspect.Parameter.empty)
            shown = "" if default is inspect.Parameter.empty else f"`{default!r}`"
            meaning = re.sub(":func:`(.*?)`", "`\\1`", what).replace("|", "\\|")
            yield f"| `{name}` | `{argument}` | {shown} | {meaning} |"


def task_rows() -> Iterator[str]:
    dag: DAG = factory.study_dag(load_study_text(STUDY))
    yield "| task | operator | starts after | trigger rule | retries |\n|---|---|---|---|---|"
    order = ("plan", "prefetch_1", "transformers", "aggregate")
    for task in sorted(
        dag.tasks, key=lambda task: (order.index(task.task_id.partition("-")[0]), task.task_id)
    ):
        after = ", ".join(f"`{name}`" for name in sorted(task.upstream_task_ids)) or ""
        rule = str(getattr(task.trigger_rule, "value", task.trigger_rule))
        yield f"| `{task.task_id}` | `{type(task).__name__}` | {after} | `{rule}` | {task.retries} |"


def test_the_page_has_every_argument_and_every_task_as_they_are() -> None:
    page = PAGE.read_text("utf-8")
    assert "\n".join(argument_rows()) in page
    assert "\n".join(task_rows()) in page


def test_the_page_has_the_gates_in_their_order() -> None:
    rows = PAGE.read_text("utf-8").partition("| gate | set by |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [gate.__name__ for gate in GATES]


if __name__ == "__main__":
    print("\n".join((*argument_rows(), "", *task_rows())))  # noqa: T201 - it is asked to print
