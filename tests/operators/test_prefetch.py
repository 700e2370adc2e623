"""Images and models come before the first experiment, once each, and a run keeps to what it found."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from airflow.sdk.exceptions import AirflowFailException

from llem_airflow.factory import study_dag
from llem_airflow.operators import (
    LLEMAggregateOperator,
    LLEMExperimentOperator,
    LLEMPrefetchOperator,
    LLEMTextPrefetchOperator,
)
from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.inputs import model_name, pin, pinned
from llem_airflow.runners import images
from llem_airflow.runners.images import exact_name
from llem_airflow.study import Study, load_study_text
from tests.parts import left_by

TEXT = """\
study_name: fetched
serving_mode: offline
study_execution: {n_cycles: 1}
engine: transformers
task: {dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate}
sweep: {task.model: [lab/a, lab/b], task.max_output_tokens: [8, 16]}
runners: {transformers: container}
images: {transformers: IMAGE}
"""
INSTALLATION = f"tests-fetch-{uuid.uuid4().hex[:8]}"


def study(image: str = "some:1") -> Study:
    return load_study_text(TEXT.replace("IMAGE", image))


def context() -> Any:
    ti = SimpleNamespace(
        dag_id="fetched", run_id="manual__x", task_id="prefetch_1", map_index=-1, try_number=1, max_tries=0
    )
    return {"ti": ti, "outlet_events": {}}


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("LLEM_INSTALLATION", INSTALLATION)
    monkeypatch.delenv("LLEM_MODELS_DIR", raising=False)


@pytest.mark.parametrize("render", ["static", "mapped"])
def test_each_image_and_model_has_one_task_before_the_cycles_that_need_it(render: str) -> None:
    dag = study_dag(study(), render=render)
    fetches = [task for task in dag.tasks if isinstance(task, LLEMPrefetchOperator)]
    assert [task.task_display_name for task in fetches] == [
        "fetch transformers, lab/a",
        "fetch transformers, lab/b",
    ]
    assert all(task.upstream_task_ids == {"plan"} for task in fetches)
    if render == "static":
        for task in dag.tasks:
            if type(task) is LLEMExperimentOperator:
                wanted = {each.task_id for each in fetches if task.experiment.id in each.experiments}
                assert task.upstream_task_ids == {"plan", *wanted}
    else:
        assert dag.get_task("cycle").upstream_task_ids == {"plan", "prefetch_1", "prefetch_2"}


def test_processes_of_the_worker_need_no_such_task() -> None:
    assert not any("prefetch" in each for each in study_dag(study(), runner="process").task_ids)


def test_a_run_keeps_what_a_name_meant_first() -> None:
    run = open_run(study(), context())
    assert pinned(run, "image", "a/b:1") is None
    pin(run, "image", "a/b:1", "a/b@sha256:0")
    assert pinned(run, "image", "a/b:1") == "a/b@sha256:0"
    assert pinned(run, "image", "a/b:2") is None
    assert (model_name("m", None), model_name("m", "main")) == ("m", "m@main")


def fetch(image: str) -> dict[str, Any]:
    asked = study(image)
    first = [each.id for each in asked.experiments if each.model == "lab/a"]
    task = LLEMPrefetchOperator(
        task_id="prefetch_1", study=asked, experiments=tuple(first), network_mode="host"
    )
    return task.execute(context())


@pytest.mark.docker
def test_a_model_of_a_third_party_s_engine_is_not_asked_of_the_hub(
    docker_api: docker.APIClient, python_image: str
) -> None:
    asked = study(python_image)
    theirs = [replace(each, engine="echo") for each in asked.experiments]
    asked = replace(asked, plan=replace(asked.plan, experiments=theirs))
    task = LLEMPrefetchOperator(task_id="prefetch_1", study=asked, experiments=(theirs[0].id,))
    assert set(task.execute(context())) == {"image", "image_exact"}


@pytest.mark.docker
def test_an_image_that_is_not_to_be_had_fails_once_with_a_hint_and_the_report_says_so(
    docker_api: docker.APIClient,
) -> None:
    with pytest.raises(Exception, match=r"image llem-airflow/none:1 cannot be pulled") as caught:
        fetch("llem-airflow/none:1")
    assert "What to do: " in str(caught.value)
    with pytest.raises(AirflowFailException, match="skipped: image llem-airflow/none:1 cannot be pulled"):
        LLEMAggregateOperator(task_id="aggregate", study=study("llem-airflow/none:1")).execute(context())


@pytest.mark.docker
def test_of_a_pasted_study_each_image_is_fetched_and_one_that_is_not_to_be_had_does_not_stop_the_others(
    docker_api: docker.APIClient, python_image: str, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setenv("LLEM_MODELS_DIR", str(tiny_model.parent))
    engines = f"engine: [transformers, vllm]\ntask: {{model: {tiny_model.name}, "
    text = TEXT.replace("engine: transformers\ntask: {", engines).replace("task.model: [lab/a, lab/b], ", "")
    text = text.replace("{transformers: container}", "{transformers: container, vllm: container}")
    text = text.replace(
        "{transformers: IMAGE}", f"{{transformers: {python_image}, vllm: llem-airflow/none:1}}"
    )
    task = LLEMTextPrefetchOperator(task_id="prefetch")
    (fetched,) = task.execute(context() | {"params": {"study": text}})
    exact = exact_name(docker_api, python_image)
    assert fetched == {"image": python_image, "image_exact": exact}
    assert pinned(open_run(load_study_text(text), context()), "image", python_image) == exact


COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"twice",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        type(self).asked.append(self.path)
        name = self.path.rpartition("/")[2].partition("?")[0]
        if "/tree/" in self.path:
            files = [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in FILES.items()]
            data = json.dumps(files).encode()
        elif self.path.startswith("/api/"):
            data = json.dumps(
                {"id": "lab/a", "sha": COMMIT, "siblings": [{"rfilename": file} for file in FILES]}
            ).encode()
        elif name in FILES:
            data = FILES[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its signature
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient) -> Iterator[type[Hub]]:
    """A model hub on this machine, and a cache of its own."""
    handler = type("OneHub", (Hub,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = f"llem-test-hub-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AIRFLOW__LLEM__HUB_CACHE", cache)
    yield handler
    server.shutdown()
    server.server_close()
    docker_api.remove_volume(cache)


@pytest.mark.docker
def test_a_model_is_downloaded_into_the_shared_cache_and_its_commit_holds_for_the_run_also_offline(
    hub: type[Hub], docker_api: docker.APIClient, cpu_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = fetch(cpu_image)
    assert fetched["model_commit"] == COMMIT
    assert fetched["image_exact"] == exact_name(docker_api, cpu_image)
    run = open_run(study(cpu_image), context())
    assert pinned(run, "model", "lab/a") == COMMIT
    assert pinned(run, "image", cpu_image) == fetched["image_exact"]
    assert any("model.safetensors" in path for path in hub.asked)
    assert not any("pytorch_model.bin" in path for path in hub.asked)  # the same weights a second time
    assert left_by(docker_api, INSTALLATION) == []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert fetch(cpu_image)["model_commit"] == COMMIT


def test_the_commit_is_found_whatever_a_progress_bar_leaves_on_the_other_stream(tmp_path: Path) -> None:
    """Two pipes are read in any order; a bar may end without its line."""
    hub = """
import sys
def list_repo_files(name, revision):
    return ["model.safetensors"]
def snapshot_download(name, revision, ignore_patterns):
    sys.stderr.write("Fetching 2 files: 100%")
    return "/cache/snapshots/0123abcd"
"""
    (tmp_path / "huggingface_hub.py").write_text(hub)
    command = [sys.executable, "-c", images._DOWNLOAD, "lab/a", ""]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert lines[0] == "Fetching 2 files: 100%"
    assert [images._commit_in(line) for line in lines] == [None, "0123abcd"]


@pytest.mark.docker
def test_a_model_that_the_hub_does_not_have_says_what_to_do(
    hub: type[Hub], cpu_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"model lab/a cannot be fetched \(revision: the newest\)") as caught:
        fetch(cpu_image)
    assert "What to do: the network or the hub did not answer" in str(caught.value)
