"""One Airflow for every test that needs no Docker: starting it is what takes the time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow.database import database
from tests.airflow.server import REPOSITORY, AirflowServer


def small(name: str, engine: str = "scripted") -> str:
    """The smallest study that really measures; by default on an engine that does not take seconds to import torch."""
    return f"""\
study_name: {name}
serving_mode: offline
study_execution: {{n_cycles: 1}}
engine: {engine}
task:
  model: tiny-llama-random
  max_input_tokens: 32
  max_output_tokens: 8
  dataset: {{source: builtin, n_prompts: 2}}
measurement: {{meter: cpu-estimate, min_window_seconds: 0.2, baseline: {{enabled: false}}}}
offline: {{warmup: {{enabled: false}}}}
runners: {{{engine}: process}}
airflow: {{retries: 0}}
"""


RELEASED = (
    small("released")
    + """\
versions:
  - {name: "lab/tiny@r1", released: 2026-01-01}
  - {name: r2-damaged, model: damaged, released: 2026-02-01}
  - {name: r3, revision: "0123abc", released: 2026-03-01}
"""
)


def batches(name: str, engine: str, section: str) -> str:
    """Two experiments of two cycles."""
    text = small(name, engine).replace("n_cycles: 1", "n_cycles: 2")
    return f"{text}sweep: {{{engine}.{section}.batch_size: [1, 2]}}\n"


CHOICE = batches("choice", "scripted", "engine_params")
NIGHTLY = small("nightly").replace(
    "{retries: 0}", '{retries: 0, schedule: "* * * * *", start_date: 2026-01-01, deadline: 1s}'
)
BROKEN = "study_name: broken\nserving_mode: offline\ntask: {model: m}\nengnie: transformers\n"
WATCHED = small("watched").replace("min_window_seconds: 0.2", "min_window_seconds: 40")
HELD = small("held").replace("tiny-llama-random", "damaged")


IN_TURN = """
from itertools import pairwise

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

from llem_airflow.factory.clone import precede, precede_whatever_comes

for dag_id, plan in {"in_turn": "true", "in_turn_without_plan": "false"}.items():
    with DAG(dag_id):
        first = BashOperator(task_id="plan", bash_command=plan)
        commands = {"skipped": "exit 99", "failed": "exit 1", "skipped_too": "exit 99", "last": "true"}
        tasks = [BashOperator(task_id=name, bash_command=command) for name, command in commands.items()]
        precede([first], tasks)
        for before, after in pairwise(tasks):
            precede_whatever_comes(before, after, f"{before.task_id}_ended")
"""
"""DAGs of tasks that follow one another as the rates of a search do."""


QUEUE = f"""
from airflow.sdk import DAG

from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.study import load_study_text

study = load_study_text('''
{
    small("queue")
    .replace("n_cycles: 1", "n_cycles: 3")
    .replace("scripted: process", "scripted: container")
    .replace("min_window_seconds: 0.2", "min_window_seconds: 1")
}
images: {{scripted: "llem-airflow/debian-python:bookworm"}}
gpus: {{ids: ["1"]}}
''')
with DAG("queue", schedule=None, is_paused_upon_creation=False):
    for cycle in (1, 2, 3):
        LLEMExperimentOperator(
            task_id=f"cycle_{{cycle}}", study=study, experiment=study.experiments[0], cycle=cycle, gpu_wait_s=600
        )
"""
"""A DAG of cycles that may run at the same time, as far as they are given a GPU."""


@pytest.fixture(scope="package")
def process_airflow(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[AirflowServer]:
    """``airflow standalone`` with studies that run as processes, until the last of these tests.

    Not for the whole session: while other tests run, it would take a third of a core to do nothing.
    """
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_model, models / "tiny-llama-random")
    # Under the name that the shipped examples ask for.
    shutil.copytree(tiny_model, models / "SmolLM2-135M-Instruct")
    (models / "damaged").mkdir()
    (models / "damaged" / "config.json").write_text("{}")
    with database() as where:
        server = AirflowServer(
            tmp_path_factory.mktemp("airflow"),
            {
                "released.yaml": RELEASED,
                "paged.yaml": RELEASED.replace("study_name: released", "study_name: paged"),
                "choice.yaml": CHOICE,
                "looked-at.yaml": batches("looked-at", "transformers", "llem_execution"),
                "watched.yaml": WATCHED,
                "followed.yaml": batches("followed", "transformers", "llem_execution"),
                "nightly.yaml": NIGHTLY,
                "held.yaml": HELD,
                "broken.yaml": BROKEN,
                "starter.yaml": (REPOSITORY / "llem_airflow" / "cli" / "starter.yaml").read_text(),
            },
            {
                "LLEM_MODELS_DIR": str(models),
                "OMP_NUM_THREADS": "1",
                "LLEM_RUNNER_TRANSFORMERS": "process",
                "AIRFLOW__LLEM__NOTIFIER": "tests.operators.test_notify.FileNotifier",
                "AIRFLOW__LLEM__NOTIFIER_ARGS": json.dumps({"path": str(models / "told")}),
                **where,
            },
        )
        (server.home / "dags" / "in_turn.py").write_text(IN_TURN)
        (server.home / "dags" / "queue.py").write_text(QUEUE)
        shutil.copytree(REPOSITORY / "llem_airflow" / "example_dags", server.home / "dags" / "example_dags")
        try:
            server.start()
            yield server
        finally:
            server.stop()
