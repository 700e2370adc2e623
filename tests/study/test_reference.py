from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

import llem_airflow.study
from llem_airflow.study.config.base import Section
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.schema import value_schema, values
from llem_airflow.study.config.study import StudyKeys
from llem_airflow.study.file.check import allowed
from llem_airflow.study.names import ENGINE_ALIASES
from tests.study.texts import report

README = (Path(llem_airflow.study.__file__).parent / "README.md").read_text("utf-8")


def key_reference() -> str:
    """Two Markdown tables: keys of an experiment, keys of the study."""
    parts = []
    for title, model in (("Keys of an experiment", Experiment), ("Keys of the study", StudyKeys)):
        rows = "\n".join(_rows(model))
        parts.append(
            f"### {title}\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n{rows}\n"
        )
    return "\n".join(parts)


def _rows(model: type[Section]) -> Iterator[str]:
    for path, owner, field in values(model):
        if ENGINE_ALIASES.keys().isdisjoint(path):
            value = allowed(value_schema(owner, path[-1]))
            yield f"| `{'.'.join(path)}` | {value} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if field.default is None:
        return ""
    return str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}"


def test_the_readme_has_the_key_reference_of_the_models() -> None:
    assert key_reference() in README, "put in what python -m tests.study.test_reference prints"


def test_the_sample_of_problems_in_the_readme_is_what_is_said() -> None:
    text = report("sweep:\n  vllm.sampling_params.temperature: [-1, -2]\n")
    assert text in README
    said = report("engine: vlm\n", head="study_nme: x\n").splitlines()
    assert next(line for line in said if "study_nme" in line).removeprefix("study.yaml") in README


if __name__ == "__main__":
    print(key_reference())  # noqa: T201  # a page for the README
