"""One cycle through the operator, with a real engine, as a process and in a container."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from llem_airflow.operators import LLEMAggregateOperator, LLEMExperimentOperator, experiment
from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.retries import AttemptRetryableError
from llem_airflow.protocol.files import result_name
from llem_airflow.results import ResultsRoot
from llem_airflow.study import Study, load_study
from tests.parts import left_by
from tests.runners.programs import HASH, RESULT
from tests.standins.build import Standins

INSTALLATION = f"test-{uuid.uuid4().hex[:8]}"
STUDY = """\
study_name: one
serving_mode: offline
study_execution: {n_cycles: 1}
engine: transformers
task:
  model: tiny-llama-random
  max_input_tokens: 32
  max_output_tokens: 8
  dataset: {source: builtin, n_prompts: 4}
measurement: {meter: cpu-estimate, min_window_seconds: 0.5, baseline: {enabled: false}}
offline: {warmup: {n_prompts: 2, thermal_floor_seconds: 0}}
transformers: {llem_execution: {batch_size: 2}}
sweep: {task.random_seed: [1]}
runners: {transformers: RUNNER}
"""


def study_at(folder: Path, runner: str, text: str = STUDY) -> Study:
    path = folder / "one.yaml"
    path.write_text(text.replace("RUNNER", runner))
    return load_study(path)


def context(task_id: str = "one.cycle_1", try_number: int = 1, max_tries: int = 0) -> Any:
    """A task instance as Airflow gives it; clearing a task raises ``max_tries`` by the tries that were made."""
    return {
        "ti": SimpleNamespace(
            dag_id="one",
            run_id="manual__x",
            task_id=task_id,
            map_index=-1,
            try_number=try_number,
            max_tries=max_tries,
        )
    }


def operator(study: Study, **kwargs: Any) -> LLEMExperimentOperator:
    return LLEMExperimentOperator(
        task_id="one.cycle_1", study=study, experiment=study.experiments[0].id, **kwargs
    )


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("LLEM_INSTALLATION", INSTALLATION)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if "tiny_model" in request.fixturenames:
        monkeypatch.setenv("LLEM_MODELS_DIR", str(request.getfixturevalue("tiny_model").parent))


def check_result(study: Study, tmp_path: Path) -> None:
    run = ResultsRoot(tmp_path / "results").run("one", "manual__x")
    (cycle,) = run.cycles()
    result = cycle.result()
    assert result.window.output_tokens == result.window.requests * 8
    assert result.meter.kind == "cpu-estimate"
    assert result.meter.energy_kind == "estimate"
    summary = LLEMAggregateOperator(task_id="aggregate", study=study).execute(context("aggregate"))
    assert (summary["planned"], summary["valid"]) == (1, 1)
    assert (Path(summary["report"])).read_text().count("estimate") > 0


@pytest.mark.engine
def test_a_cycle_runs_as_a_process_and_is_stored_and_a_missing_one_fails_the_aggregate_which_names_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    study = study_at(tmp_path, "process")
    operator(study).execute(context())
    check_result(study, tmp_path)
    study = study_at(tmp_path, "process", STUDY.replace("n_cycles: 1", "n_cycles: 2"))
    with pytest.raises(AirflowFailException, match="1 of 2 planned cycles without a result") as caught:
        LLEMAggregateOperator(task_id="aggregate", study=study).execute(context("aggregate"))
    assert f"{study.experiments[0].id} cycle 2" in str(caught.value)
    summary = LLEMAggregateOperator(task_id="aggregate", study=study, allow_missing=True).execute(
        context("aggregate")
    )
    assert summary["valid"] == 1


def test_a_model_that_is_nowhere_is_told_at_once_with_where_it_was_looked_for(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    study = study_at(tmp_path, "process", STUDY.replace(tiny_model.name, "tiny-lama-random"))
    with pytest.raises(AirflowException) as caught:
        operator(study).execute(context())
    for text in (
        str(tiny_model.parent.resolve()),
        f"did you mean '{tiny_model.name}'?",
        "[model_missing]",
        "Evidence: ",
    ):
        assert text in str(caught.value)
    (failed,) = ResultsRoot(tmp_path / "results").run("one", "manual__x").failures()
    assert failed.reason()[0] == "model_missing"
    assert failed.advice() == (
        "Correct task.model, or set LLEM_MODELS_DIR to the folder that has it ([llem] models_dir)."
    )
    assert not failed.folder.exists("events.jsonl")  # no process began
    # A log that goes on with the causes ends with what helps least.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.docker
@pytest.mark.engine
def test_a_cycle_runs_in_a_container_and_nothing_stays(
    tmp_path: Path, tiny_model: Path, docker_api: docker.APIClient, cpu_image: str
) -> None:
    study = study_at(tmp_path, "container")
    operator(study, image=cpu_image).execute(context())
    check_result(study, tmp_path)
    assert left_by(docker_api, INSTALLATION) == []


@pytest.mark.engine
def test_a_stored_result_is_not_measured_again_unless_a_person_clears_the_task(
    tmp_path: Path, tiny_model: Path
) -> None:
    study = study_at(tmp_path, "process")
    first = operator(study).execute(context())
    died_after_storing = operator(study).execute(context(try_number=2))
    assert died_after_storing == first
    run = ResultsRoot(tmp_path / "results").run("one", "manual__x")
    assert len(run.cycles(repeats=True)) == 1
    cleared = operator(study).execute(context(try_number=3, max_tries=2))
    assert cleared["result"] == first["result"] + "-repeat-1"
    assert [ref.folder.url for ref in run.cycles()] == [cleared["result"]]


@pytest.mark.docker
def test_a_further_try_runs_the_image_of_the_first_although_the_tag_moved_until_a_person_clears_the_task(
    tmp_path: Path, tiny_model: Path, docker_api: docker.APIClient, python_image: str, cpu_image: str
) -> None:
    study = study_at(tmp_path, "container")
    name, tag = "llem-airflow/moving", uuid.uuid4().hex[:8]
    docker_api.tag(python_image, name, tag)  # without the engine: it fails at once
    try:
        with pytest.raises(AirflowException):
            operator(study, image=f"{name}:{tag}", retries=1).execute(context(try_number=1, max_tries=1))
        docker_api.tag(cpu_image, name, tag, force=True)
        with pytest.raises(AirflowException):
            operator(study, image=f"{name}:{tag}", retries=1).execute(context(try_number=2, max_tries=1))
        (run,) = ResultsRoot(tmp_path / "results").runs("one")
        first, second = (each.provenance() for each in run.failures())
        assert first["image_digest"] == second["image_digest"]
        assert first["image"] == second["image"] == f"{name}:{tag}"
        operator(study, image=f"{name}:{tag}", retries=1).execute(context(try_number=3, max_tries=3))
        assert run.is_committed(study.experiments[0].id, 1)
    finally:
        docker_api.remove_image(f"{name}:{tag}", noprune=True)


def test_a_missing_image_says_what_where_and_what_to_do(
    tmp_path: Path, tiny_model: Path, docker_api: docker.APIClient
) -> None:
    study = study_at(tmp_path, "container")
    with pytest.raises(AirflowException) as caught:
        operator(study, image="llem-airflow/does-not-exist:1").execute(context())
    text = str(caught.value)
    assert "llem-airflow/does-not-exist:1" in text
    assert f"Evidence: {tmp_path / 'results'}" in text
    assert left_by(docker_api, INSTALLATION) == []
    run = ResultsRoot(tmp_path / "results").run("one", "manual__x")
    assert len(run.failures()) == 1


@pytest.mark.docker
@pytest.mark.engine
def test_killing_the_engine_in_its_container_is_a_typed_failure_with_evidence(
    tmp_path: Path, tiny_model: Path, docker_api: docker.APIClient, cpu_image: str
) -> None:
    study = study_at(
        tmp_path, "container", STUDY.replace("min_window_seconds: 0.5", "min_window_seconds: 60")
    )
    killer = threading.Thread(target=kill_engine, args=(docker_api,), daemon=True)
    killer.start()
    with pytest.raises(AirflowException) as caught:
        operator(study, image=cpu_image).execute(context())
    killer.join(timeout=10)
    text = str(caught.value)
    assert "exit code 137" in text
    assert "Evidence:" in text
    assert left_by(docker_api, INSTALLATION) == []
    (failure,) = ResultsRoot(tmp_path / "results").run("one", "manual__x").failures()
    kept = set(failure.folder.files())
    assert {"config.json", "events.jsonl", "container.log", "provenance.json"} <= kept


@pytest.mark.docker
@pytest.mark.alone
@pytest.mark.engine
def test_a_gpu_is_leased_given_by_uuid_and_measured_on_its_counter_inside_and_on_the_host(
    tmp_path: Path,
    tiny_model: Path,
    docker_api: docker.APIClient,
    cpu_image: str,
    standin: Standins,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in standin.environment(standin.script).items():  # the worker sees the GPUs of its engine
        monkeypatch.setenv(name, value)
    text = STUDY.replace("cpu-estimate, min_window_seconds: 0.5", "nvml, min_window_seconds: 2")
    study = study_at(tmp_path, "container", text + "gpus: {count: 1, kind: full}\npower: {sampling: host}\n")
    operator(study, image=cpu_image).execute(context())
    run = ResultsRoot(tmp_path / "results").run("one", "manual__x")
    (cycle,) = run.cycles()
    (gpu,) = cycle.provenance()["gpus"]
    assert gpu.startswith("GPU-")
    assert cycle.result().meter.devices == (gpu,)
    assert cycle.result().meter.note.startswith("Sampled on the host, beside the container.")
    check = cycle.check()
    assert check is not None
    assert check[0].devices == (gpu,)
    assert left_by(docker_api, INSTALLATION) == []
    LLEMAggregateOperator(task_id="aggregate", study=study).execute(context("aggregate"))
    summary = run.summary()
    assert summary is not None
    (experiment,) = summary["experiments"]
    assert experiment["energy_kind"] == "measured"
    codes = {doubt["code"] for doubt in experiment["doubts"]}
    assert "stand_in" in codes
    assert "samplers_disagree" not in codes
    report = (Path(run.url) / "report.html").read_text()
    assert "STAND-IN" in report
    assert "nvml (measured, board, not characterised)" in report
    assert "other_device" in codes  # the model of this image computes on the CPU


def kill_engine(api: docker.APIClient) -> None:
    """SIGKILL the Python process that holds the engine, as the kernel's OOM killer would."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        for container in api.containers(filters={"label": f"llem.installation={INSTALLATION}"}):
            processes = api.top(container["Id"], ps_args="-eo pid,ppid,args")["Processes"]
            engines = [
                int(pid)
                for pid, _ppid, args in processes
                if "llem.pyz" in args and "sampler" not in args and "init" not in args
            ]
            log = api.logs(container["Id"]).decode(errors="replace")
            if engines and "measure" in log:
                os.kill(min(engines), signal.SIGKILL)
                return
        time.sleep(0.2)


@pytest.mark.engine
def test_an_engine_that_raises_says_so_and_is_not_tried_again(tmp_path: Path, tiny_model: Path) -> None:
    broken = STUDY.replace(
        "batch_size: 2}}", "batch_size: 2}, engine_params: {attn_implementation: nonsense}}"
    )
    study = study_at(tmp_path, "process", broken)
    with pytest.raises(AirflowFailException, match="nonsense"):
        operator(study).execute(context())


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_container_without_an_engine_to_run_it_says_what_to_do(tmp_path: Path) -> None:
    study = study_at(tmp_path, "container")
    with pytest.raises(AttemptRetryableError, match="needs a Docker engine, and none answers"):
        operator(study, docker_url="unix:///nowhere/docker.sock").execute(context())
    gc.collect()  # docker-py leaves the socket of a failed connection to the collector; let it be this test's


def test_a_stored_result_counts_also_where_what_its_tries_left_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "GRACE_S", 0.0)
    study = study_at(tmp_path, "container", STUDY.replace("cpu-estimate", "none"))
    (asked,) = study.experiments
    run = open_run(study, context())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / result_name(asked.hash)).write_text(RESULT.replace(HASH, asked.hash))
    stored = run.commit_cycle(asked.id, 1, tmp_path / "out", {"try_number": 1, "runner": "container"})
    task = operator(study, docker_url="unix:///nowhere/docker.sock", retries=1)
    assert task.execute(context(try_number=2, max_tries=1))["result"] == stored
    assert "What earlier tries left could not be removed: " in capsys.readouterr().out
