"""What a run asks for is what is planned; what the study does not have is named with what it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.factory import study_params
from llem_airflow.operators.gates import matches
from llem_airflow.operators.request import RunRequest, cycle_of_run, study_in_form
from llem_airflow.study import load_study_text
from llem_airflow.study.plan.request import RunRequestError, requested

STUDY = load_study_text(
    """\
study_name: two
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate}
sweep: {transformers.llem_execution.batch_size: [1, 2]}
study_execution: {n_cycles: 3}
"""
)
RELEASES = load_study_text(
    STUDY.text + "versions: [{name: r1, revision: abc, released: 2026-01-01}, {name: r2, model: other}]\n"
)


def context(key: str | None = None, **conf: Any) -> Any:
    params = {
        "experiments": "*", "engines": None, "models": None, "cycles": None, "n_prompts": None, "dry_run": False,
    }  # fmt: skip
    return {"params": params | conf, "partition_key": key, "ti": SimpleNamespace()}


def test_nothing_asked_is_the_whole_study() -> None:
    assert requested(STUDY, RunRequest.of(context())).plan.planned_cycles == STUDY.plan.planned_cycles


def test_experiments_are_chosen_by_globs_on_names() -> None:
    asked = requested(STUDY, RunRequest.of(context(experiments="*batch_size-2*")))
    assert [each.slug for each in asked.experiments] == [STUDY.experiments[1].slug]
    assert len(asked.plan.planned_cycles) == 3


def test_cycles_are_the_first_ones() -> None:
    asked = requested(STUDY, RunRequest.of(context(cycles=2)))
    assert {run.cycle for run in asked.plan.planned_cycles} == {1, 2}
    assert asked.plan.to_json()["cycles"] == 2


def test_a_pattern_that_matches_nothing_is_refused_even_beside_one_that_does() -> None:
    with pytest.raises(
        RunRequestError, match=r"'bs9\*' is the name of no experiment of the study 'two'; it has "
    ):
        requested(STUDY, RunRequest.of(context(experiments="* bs9*")))


def test_another_number_of_prompts_is_another_measurement_under_the_same_name() -> None:
    (first, *_) = requested(STUDY, RunRequest.of(context(n_prompts=7))).experiments
    assert first.config["task"]["dataset"]["n_prompts"] == 7
    assert first.id == STUDY.experiments[0].id
    assert first.hash != STUDY.experiments[0].hash


def test_the_partition_key_chooses_the_release() -> None:
    asked = requested(RELEASES, RunRequest.of(context("r2")))
    assert {each.model for each in asked.experiments} == {"other"}
    assert {each.id for each in asked.experiments} == {each.id for each in RELEASES.experiments}


def test_a_run_without_a_release_is_refused_with_the_releases() -> None:
    with pytest.raises(RunRequestError, match=r"names none\..* Its releases: r1 \(2026-01-01\), r2 \(None\)"):
        requested(RELEASES, RunRequest.of(context()))


def test_a_dag_without_the_form_keeps_its_own_parameters() -> None:
    assert RunRequest.of({"params": {"experiments": "mine"}}) == RunRequest()


def test_a_cycle_that_is_not_asked_for_is_skipped_with_the_reason() -> None:
    with pytest.raises(AirflowSkipException, match=r"this run does not ask for .* cycle 3"):
        cycle_of_run(STUDY, STUDY.experiments[0].id, 3, context(cycles=2))
    with pytest.raises(AirflowSkipException, match="dry run: nothing is measured"):
        cycle_of_run(STUDY, STUDY.experiments[0].id, 1, context(dry_run=True))


def test_every_field_of_the_form_has_a_default_that_its_own_schema_accepts() -> None:
    for name, field in study_params(RELEASES).items():
        assert field.resolve() == field.value, name


def test_problems_of_a_text_are_all_named_with_their_lines() -> None:
    with pytest.raises(AirflowFailException, match=r"(?s)study:3:1: engnie.*study:4:"):
        study_in_form(context(study=STUDY.text.replace("engine:", "engnie:").replace("model: m", "modle: m")))
    with pytest.raises(
        AirflowFailException, match="this run has no study: give its YAML as the parameter 'study'"
    ):
        study_in_form(context())


def test_quarantine_takes_names_with_and_without_their_hash() -> None:
    assert matches("bs8-0123abcd", ["bs8"])
    assert matches("bs8-0123abcd", ["bs8-0123abcd"])
    assert not matches("bs8-0123abcd", ["bs"])
