"""What a study costs Airflow: building and serializing its DAG, and the parse that every task repeats.

Run it with ``python -m benchmarks.airflow [N ...]``. The floor is a plain loop that makes as many DockerOperators
with the same documentation, environment and retries; dag-factory, where it is installed, gets the equivalent file.
Times are the best of three in one process whose imports are done; ratios are what to look at.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from llem_airflow.factory import study_dag, study_dags
from llem_airflow.operators import LLEMExperimentOperator

SIZES = (10, 100, 1000, 5000)
STUDY = """\
study_name: bench
serving_mode: offline
engine: transformers
task: {{model: m, dataset: {{source: builtin, n_prompts: 2}}}}
measurement: {{meter: cpu-estimate}}
sweep: {{task.random_seed: {seeds}}}
"""


def best_s(make: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Shortest of some runs, in seconds, and what the last one made."""
    shortest, made = float("inf"), None
    for _ in range(times):
        begin = time.process_time()
        made = make()
        shortest = min(shortest, time.process_time() - begin)
    return shortest, made


def floor_dag(n: int) -> DAG:
    with DAG(
        "floor", schedule=None, default_args={"retries": 2, "retry_delay": timedelta(seconds=60)}
    ) as dag:
        for index in range(n):
            DockerOperator(
                task_id=f"experiment_{index}",
                image="engine:1",
                command=["python3", "/run/measure.py"],
                environment={"LLEM_CONFIG": f"/run/{index}.json"},
                auto_remove="force",
                mount_tmp_dir=False,
                doc_md=f"### experiment {index}\n\n| key | value |\n|---|---|\n| `task.random_seed` | `{index}` |",
                priority_weight=n - index,
                weight_rule="absolute",
            )
    return dag


def dag_factory_file(folder: Path, n: int) -> Path:
    tasks = [
        {
            "task_id": f"experiment_{index}",
            "operator": "airflow.providers.docker.operators.docker.DockerOperator",
            "image": "engine:1",
            "command": ["python3", "/run/measure.py"],
            "environment": {"LLEM_CONFIG": f"/run/{index}.json"},
            "mount_tmp_dir": False,
            "priority_weight": n - index,
        }
        for index in range(n)
    ]
    default_args = {"retries": 2, "retry_delay_sec": 60, "start_date": "2026-01-01"}
    path = folder / f"factory_{n}.yml"
    path.write_text(yaml.safe_dump({"bench_factory": {"default_args": default_args, "tasks": tasks}}))
    return path


def dag_factory_s(path: Path) -> float | None:
    if importlib.util.find_spec("dagfactory") is None:
        return None
    load_yaml_dags = importlib.import_module("dagfactory").load_yaml_dags  # only where it is installed

    return best_s(lambda: load_yaml_dags({}, config_filepath=str(path)), times=1)[0]


def worker_parse_s(folder: Path) -> float:
    """The parse of the DAG file that a worker repeats before its task."""
    full = study_dags(folder)["bench"]
    found = next((each for each in full.tasks if isinstance(each, LLEMExperimentOperator)), None)
    os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = "bench"
    os.environ["_AIRFLOW_PARSING_CONTEXT_TASK_ID"] = found.task_id if found else "cycle"
    try:
        return best_s(lambda: study_dags(folder))[0]
    finally:
        del os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"], os.environ["_AIRFLOW_PARSING_CONTEXT_TASK_ID"]


def shown(value_s: float | None, floor_s: float) -> str:
    return "-" if value_s is None else f"{value_s:.3f} ({value_s / floor_s:.2f}x)"


def measure(n: int) -> None:
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
        folder, elsewhere = Path(name), Path(other)
        path = folder / "bench.yaml"
        path.write_text(STUDY.format(seeds=list(range(n))))
        floor_s, floor = best_s(lambda: floor_dag(n))
        floor_stored_s, _ = best_s(lambda: DagSerialization.to_dict(floor), times=1)
        row = [f"{n:>6}", f"build: floor {floor_s:.3f} s"]
        for render in ("static", "auto"):
            ours_s, dag = best_s(lambda render=render: study_dag(path, render=render))  # type: ignore[misc] # bound now
            stored_s, _ = best_s(lambda dag=dag: DagSerialization.to_dict(dag), times=1)  # type: ignore[misc] # bound now
            row.append(f"{render} {shown(ours_s, floor_s)}, serialize {shown(stored_s, floor_stored_s)}")
        row.append(f"dag-factory {shown(dag_factory_s(dag_factory_file(elsewhere, n)), floor_s)}")
        row.append(f"a task's parse {worker_parse_s(folder):.3f} s")
        print(" | ".join(row), flush=True)


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    measure(10)  # the first pass pays for lazy imports
    print("--- warm")
    for n in sizes:
        measure(n)


if __name__ == "__main__":
    main()
