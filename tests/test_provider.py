"""What the provider tells Airflow is what there is, and Airflow takes all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag
from airflow.providers_manager import ProvidersManager, _create_provider_info_schema_validator
from airflow.sdk import BaseOperator

import llem_airflow
from llem_airflow import get_provider_info, operators
from tests import parts

PACKAGE = Path(llem_airflow.__file__).parent
OPTIONS = get_provider_info()["config"]["llem"]["options"]
_READ = re.compile(r"""(?:_read\(|_names\(|conf\.get\w*\(\s*"llem",\s*)"(\w+)\"""")


def named_classes(info: Any) -> Iterator[str]:
    yield from info["extra-links"]
    for kind in ("notifications", "triggers"):
        for entry in info.get(kind, ()):
            yield from [entry] if isinstance(entry, str) else entry["python-modules"]


def test_airflow_s_own_schema_accepts_it() -> None:
    _create_provider_info_schema_validator().validate(get_provider_info())  # type: ignore[no-untyped-call]


def test_airflow_finds_the_provider_by_its_entry_point() -> None:
    found = [point.value for point in entry_points(group="apache_airflow_provider")]
    assert found.count("llem_airflow:get_provider_info") == 1
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    assert manager.providers["llem-airflow"].version == llem_airflow.__version__
    assert set(get_provider_info()["extra-links"]) <= set(manager.extra_links_class_names)


def test_every_operator_s_module_is_listed_and_every_name_can_be_imported() -> None:
    info = get_provider_info()
    (listed,) = (set(entry["python-modules"]) for entry in info["operators"])
    if not (
        find_spec("kubernetes") or parts.in_ci()
    ):  # an extra, without which its operator says how to get it
        listed.discard("llem_airflow.operators.kubernetes")
        with pytest.raises(ImportError, match=r"llem-airflow\[kubernetes\]"):
            operators.__getattr__("LLEMKubernetesExperimentOperator")
    names = [
        name
        for name in operators.__all__
        if "llem_airflow.operators.kubernetes" in listed or "Kube" not in name
    ]
    public = [getattr(operators, name) for name in names]
    assert {each.__module__ for each in public if issubclass(each, BaseOperator)} == listed
    for name in named_classes(info):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


def test_every_option_is_read_by_something_and_nothing_else_is_read() -> None:
    read = {name for file in PACKAGE.rglob("*.py") for name in _READ.findall(file.read_text("utf-8"))}
    assert read == set(OPTIONS)


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_is_in_the_readme_s_table(option: str) -> None:
    assert f"\n| `{option}` |" in (parts.REPOSITORY / "README.md").read_text("utf-8")


def test_the_example_dags_are_a_bundle_of_their_own_where_examples_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "True")
    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    bundles = {bundle.name: bundle for bundle in manager.get_all_dag_bundles()}
    bag = DagBag(bundles["llem-airflow-example-dags"].path, load_op_links=False)
    assert bag.import_errors == {}
    assert set(bag.dags) == {"example_llem", "example_llem_after"}
    assert {"plan", "prefetch_1", "aggregate"} <= set(bag.dags["example_llem"].task_ids)
    assert len(bag.dags["example_llem"].tasks) == 7  # and two experiments x two cycles
