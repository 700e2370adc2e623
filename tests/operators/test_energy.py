"""``measurement.require_energy``: stored first, then failed, then measured again."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException

from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.operators.gates import require_energy
from llem_airflow.results import CycleRef, ResultsRoot
from llem_airflow.study import Study, load_study_text
from tests.measurement.running import HASH, Ran, run_on_gpu

STUDY = """\
study_name: one
serving_mode: offline
study_execution: {n_cycles: 1}
engine: transformers
task: {model: m}
measurement: {meter: nvml, require_energy: REQUIRED, baseline: {enabled: false}}
runners: {transformers: process}
"""


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """An attempt whose GPU stops answering before its window."""
    fault = "fault = lost call=nvmlDeviceGetFieldValues after_calls=150"
    return run_on_gpu(tmp_path_factory.mktemp("lost"), f"const 250\n{fault}", baselines=False)


def study(required: str) -> Study:
    return load_study_text(STUDY.replace("REQUIRED", required))


def stored(of: Study, ran: Ran, root: Path) -> CycleRef:
    (experiment,) = of.experiments
    run = ResultsRoot(str(root)).run("one", "manual__x")
    (ran.out / f"{HASH}_config.json").write_text((ran.out.parent / f"{HASH}_config.json").read_text())
    record = {"try_number": 1, "finished_epoch_ns": time.time_ns(), "runner": "process"}
    run.commit_cycle(experiment.id, 1, ran.out, record)
    ref = run.cycle(experiment.id, 1)
    assert ref is not None
    return ref


def second_try(of: Study) -> Any:
    task = LLEMExperimentOperator(task_id="one.cycle_1", study=of, experiment=of.experiments[0].id)
    ti = SimpleNamespace(
        dag_id="one", run_id="manual__x", task_id="one.cycle_1", map_index=-1, try_number=2, max_tries=0
    )
    return task.execute({"ti": ti})  # type: ignore[typeddict-item]  # as Airflow gives it, as far as it is read


def test_a_stored_cycle_without_the_required_energy_fails_its_task_with_the_reason_and_the_evidence(
    lost: Ran, tmp_path: Path
) -> None:
    of = study("true")
    ref = stored(of, lost, tmp_path)
    with pytest.raises(AirflowException) as caught:
        require_energy(of.experiments[0], ref)
    said = str(caught.value)
    assert "cycle 1: stored, but its energy is withheld" in said
    assert "`measurement.require_energy: true`. gpu_lost: GPU-5741d000-" in said
    assert said.endswith(f"Evidence: {ref.folder.url}")
    require_energy(study("false").experiments[0], ref)


def test_a_later_try_measures_again_what_lacks_the_required_energy_and_nothing_else(
    lost: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path))
    monkeypatch.setenv("LLEM_PYTHON", "/nowhere/python")
    ref = stored(study("false"), lost, tmp_path)
    assert second_try(study("false"))["result"] == ref.folder.url
    stored(study("true"), lost, tmp_path)
    with pytest.raises(AirflowException, match="the model 'm' is not to be had"):
        second_try(study("true"))
