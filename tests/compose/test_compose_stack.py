"""The whole stack for real, in both profiles: Airflow's services, an experiment in a container beside them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import parts
from tests.compose.stack import Stack, make_env

pytestmark = [pytest.mark.compose, pytest.mark.docker, pytest.mark.engine, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, cpu_image: str, smol_model: Path) -> Iterator[Stack]:
    airflow, services = parts.build_image("airflow"), parts.build_image("services")
    env_file = tmp_path_factory.mktemp("compose") / "env"
    secrets = make_env(env_file)
    project, port = f"llem-test-{os.getpid()}", parts.free_port()
    with env_file.open("a") as file:
        file.write(
            f"LLEM_AIRFLOW_IMAGE={airflow}\nPOSTGRES_IMAGE={services}\nREDIS_IMAGE={services}\n"
            f"HAPROXY_IMAGE={services}\nLLEM_IMAGE_TRANSFORMERS={cpu_image}\n"
            f"LLEM_MODELS_VOLUME={project}-models\nAIRFLOW_BIND=127.0.0.1:{port}\nOMP_NUM_THREADS=1\n"
        )
    running = Stack(project, env_file, port, secrets["AIRFLOW_ADMIN_PASSWORD"])
    try:
        running.up("local")
        running.compose("cp", str(smol_model), "scheduler:/opt/airflow/models/")
        running.sign_in()
        yield running
    finally:
        running.close()
    # Taken down here and not in a test, so that it is checked after the last one.
    assert left_behind(project) == []


def left_behind(project: str) -> list[str]:
    kinds = (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
    label = ["--quiet", "--filter", f"name={project}"]
    return [
        name
        for kind in kinds
        for name in subprocess.check_output(["docker", *kind, *label], text=True).splitlines()
    ]


def left_of(run_id: str) -> list[str]:
    """Containers and volumes of the attempts of one run: the engine may keep those of other installations."""
    label = ["--quiet", "--filter", f"label=llem.run_id={run_id}"]
    found = subprocess.check_output(["docker", "ps", "--all", *label], text=True).split()
    return found + subprocess.check_output(["docker", "volume", "ls", *label], text=True).split()


def measured(stack: Stack) -> dict[str, Any]:
    """A run of the quickstart study, which leaves its results and nothing else."""
    run = stack.run("quickstart", cycles=1, experiments="*batch_size-8*")
    assert run["state"] == "success", stack.logs_of(run)
    summary = json.loads(
        stack.compose(
            "exec",
            "scheduler",
            "sh",
            "-c",
            'cat "$(ls -td /opt/airflow/results/quickstart/*/ | head -1)summary.json"',
        )
    )
    assert summary["missing"] == []
    assert left_of(run["dag_run_id"]) == []
    return run


def test_the_quickstart_study_runs_in_the_stack_and_leaves_its_results(stack: Stack) -> None:
    run = measured(stack)
    page = stack.page("/llem/run", dag_id="quickstart", run_id=run["dag_run_id"])
    assert "<svg" in page


def test_nobody_gets_in_without_a_password(stack: Stack) -> None:
    assert stack.status_of("/api/v2/dags") == 401


def test_the_same_stack_goes_on_with_workers(stack: Stack) -> None:
    name = stack.get("/api/v2/variables/llem_installation")
    stack.up("celery")
    stack.sign_in()
    run = measured(stack)
    assert stack.get("/api/v2/variables/llem_installation") == name
    workers = {task["hostname"] for task in stack.tasks_of(run)} - {""}  # a skipped task ran nowhere
    assert workers == {stack.compose("exec", "worker", "sh", "-c", "echo $HOSTNAME").strip()}
