from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

import llem_airflow.study
from llem_airflow.study.config.base import Section
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.schema import value_schema, values
from llem_airflow.study.config.study import StudyKeys
from llem_airflow.study.file.document import allowed, check_value
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


UNITS = {
    "_seconds": "second",
    "_hours": "hour",
    "_ms": "millisecond",
    "_hz": "per second",
    "_watts": "watt",
    "_gb": "gigabyte",
    "_tokens": "token",
    "_g_per_kwh": "Grams",
    "_fraction": "share",
    "_ratio": "",
    "_stddev": "token",
}
"""How names of keys end that are quantities, and what the meaning says of each."""
STRANGE: tuple[Any, ...] = (
    -1,
    10**18,
    "",
    "x" * 600,
    "no such thing / at all!",
    1.5,
    7,
    [],
    [-1, -1],
    ["a", "a"],
    [""],
)
_BOUND = re.compile(r"(?:at most|from|to|above|or) ([\d,.]*\d)(?! of)")


def _keys() -> list[Any]:
    return [
        pytest.param(".".join(path), model, field, id=".".join(path))
        for one in (Experiment, StudyKeys)
        for path, model, field in values(one)
        if ENGINE_ALIASES.keys().isdisjoint(path)
    ]


@pytest.mark.parametrize(("key", "model", "field"), _keys())
def test_the_meaning_of_a_key_names_its_unit(key: str, model: type[Section], field: FieldInfo) -> None:
    unit = next((word for end, word in UNITS.items() if f"_{key}".endswith(end)), "")
    assert field.description
    assert unit in field.description


@pytest.mark.parametrize(("key", "model", "field"), _keys())
def test_every_bound_that_a_refusal_names_is_in_the_reference(
    key: str, model: type[Section], field: FieldInfo
) -> None:
    name = key.rsplit(".", 1)[-1]
    row = f"{allowed(value_schema(model, name))} {field.description}"
    said: list[str] = []
    for value in STRANGE:
        check_value(model, name, value, (name,), lambda _path, _found, what, *_, **__: said.append(what))
    bounds = {bound for what in said for bound in _BOUND.findall(what.partition("such as")[0])}
    assert bounds <= set(re.findall(r"[\d,.]*\d", row)), (bounds, row)


if __name__ == "__main__":
    print(key_reference())  # noqa: T201  # a page for the README
