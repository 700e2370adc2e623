"""A further try loads the commit that the first try loaded, whatever the branch stands for by then."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llem_airflow.operators.inputs import EarlierTries
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import experiment_spec, load_study_text

STUDY = load_study_text("""\
study_name: pinned
serving_mode: offline
study_execution: {n_cycles: 1}
engine: transformers
task: {model: lab/m, dataset: {source: builtin, n_prompts: 2}}
transformers: {engine_params: {revision: main}}
""")
EXPERIMENT = STUDY.experiments[0]


@pytest.fixture
def spec() -> ExperimentSpec:
    return experiment_spec(STUDY, EXPERIMENT, 1)


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    """A run whose first try came as far as loading the model, and whose second found the branch moved."""
    stored = ResultsRoot(tmp_path / "results").run("pinned", "manual__x")
    for attempt, commit in ((1, "aaaa"), (2, "bbbb")):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        (folder / "environment.json").write_text(json.dumps({"model": {"commit": commit}}))
        stored.commit_failed(EXPERIMENT.id, 1, attempt, folder, {"experiment_hash": EXPERIMENT.hash})
    return stored


def test_the_first_try_decides_until_a_person_clears_the_task(run: StoredRun, spec: ExperimentSpec) -> None:
    assert spec.model.hub_revision == "main"
    assert EarlierTries.of(run, EXPERIMENT.id, 1, 0).pin_model(spec).model.hub_revision == "aaaa"
    assert EarlierTries.of(run, EXPERIMENT.id, 1, 1).pin_model(spec).model.hub_revision == "bbbb"
    assert EarlierTries.of(run, EXPERIMENT.id, 1, 2).pin_model(spec).model.hub_revision == "main"


def test_what_the_study_asks_for_stays_in_the_record_and_only_the_same_experiment_is_pinned(
    run: StoredRun, spec: ExperimentSpec
) -> None:
    earlier = EarlierTries.of(run, EXPERIMENT.id, 1, 0)
    assert earlier.pin_model(spec).model.revision == "main"
    assert earlier.pin_model(replace(spec, experiment_hash="0" * 16)).model.commit is None
    assert EarlierTries.of(run, EXPERIMENT.id, 2, 0).pin_model(spec) == spec


def test_weights_that_lie_here_are_asked_of_no_hub(run: StoredRun) -> None:
    local = experiment_spec(STUDY, EXPERIMENT, 1, model_path="/models/m")
    assert EarlierTries.of(run, EXPERIMENT.id, 1, 0).pin_model(local).model.hub_revision is None
