"""What a study costs Airflow: its DAG, the parse that every task repeats, the gap between two tasks.

Run it with ``python -m benchmarks.airflow [build | parse | gap] [N ...]``.

- ``build``: the floor is a plain loop that makes as many DockerOperators with documentation, environment and retries;
  dag-factory, where it is installed, gets the equivalent file. CPU time, best of three, imports done.
- ``parse``: what a worker does before a task: Airflow's own loader on the DAG file, against an empty DAG. Once in a
  process that has imported what Airflow's task runner imports, so that the import of this package is in it, as with
  the CeleryExecutor; and once after the preload, as with the LocalExecutor.
- ``gap``: 20 experiments that end at once, one after the other in one pool, on ``airflow standalone`` with the shipped
  settings: from the end of a task to the start of the next one, as Airflow's database has them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from llem_airflow.cli.embedded import SETTINGS
from llem_airflow.factory import study_dag
from llem_airflow.study import load_study
from tests.airflow.server import AirflowServer

SIZES = (10, 100, 1000, 5000)
STUDY = """\
study_name: bench
serving_mode: offline
study_execution: {{n_cycles: 1}}
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
        print(" | ".join(row), flush=True)


PARSE = """\
import gc, os, sys, time
import airflow.sdk.execution_time.task_runner
from airflow.dag_processing.dagbag import BundleDagBag
from importlib import import_module
from llem_airflow.factory.preload import FOR_TASKS
from pathlib import Path
for name in FOR_TASKS if sys.argv[2] == "preloaded" else ():
    import_module(name)
gc.freeze()  # as the LocalExecutor does before it forks the process of a task
begin, cpu = time.perf_counter(), time.process_time()
file = Path(sys.argv[1])
bag = BundleDagBag(file, safe_mode=False, load_op_links=False, bundle_path=file.parent, bundle_name="b")
dag = bag.dags[os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"]]
dag.task_dict[os.environ["_AIRFLOW_PARSING_CONTEXT_TASK_ID"]]
print(time.process_time() - cpu, time.perf_counter() - begin)
"""
FILES = {
    "empty": "from airflow.sdk import DAG, BaseOperator\nwith DAG('bench'):\n    BaseOperator(task_id='t')\n",
    "study": "from pathlib import Path\nfrom llem_airflow.factory import study_dags\n"
    "study_dags(Path(__file__).parent / 'studies', globals(), render={render!r})  # airflow dag\n",
}


PROCESSES = ("fresh", "preloaded")


def parse_s(folder: Path, task_id: str, process: str) -> tuple[float, float]:
    """CPU time and wall time of a worker's parse, medians of five processes after a first that nobody counts."""
    environment = {
        **os.environ,
        "_AIRFLOW_PARSING_CONTEXT_DAG_ID": "bench",
        "_AIRFLOW_PARSING_CONTEXT_TASK_ID": task_id,
        "AIRFLOW__LLEM__PLAN_CACHE": str(folder / "plans"),
        # A worker reads compiled modules; the first process, which nobody counts, writes them.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
    }
    command = [sys.executable, "-c", PARSE, str(folder / "dag.py"), process]
    said = [
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        for _ in range(6)
    ]
    cpu_s, wall_s = zip(*(map(float, text.splitlines()[-1].split()) for text in said[1:]), strict=True)
    return statistics.median(cpu_s), statistics.median(wall_s)


def measure_parse(sizes: Sequence[int]) -> None:
    """A worker's parse over that of an empty DAG."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "dag.py").write_text(FILES["empty"])
        empty_s = {process: parse_s(Path(name), "t", process) for process in PROCESSES}
    print("empty DAG: " + ", ".join(f"{process} {empty_s[process][0]:.3f} s CPU" for process in PROCESSES))
    for n in sizes:
        for render in ("static", "mapped"):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "studies").mkdir()
                (folder / "studies" / "bench.yaml").write_text(STUDY.format(seeds=list(range(n))))
                (folder / "dag.py").write_text(FILES["study"].format(render=render))
                last = load_study(folder / "studies" / "bench.yaml").experiments[-1].id
                task_id = f"{last}.cycle_1" if render == "static" else "cycle"
                found_s = {process: parse_s(folder, task_id, process) for process in PROCESSES}
            over = [
                f"{process} {found_s[process][0] - empty_s[process][0]:+.3f} s CPU, "
                f"{found_s[process][1] - empty_s[process][1]:+.3f} s wall"
                for process in PROCESSES
            ]
            print(f"{n:>6} {render}: over an empty DAG {'; '.join(over)}", flush=True)


ENDS = """\
# airflow dag
from pathlib import Path
from llem_airflow.factory import study, study_dags

class Ends(study.LLEMExperimentOperator):
    def execute(self, context):
        return None

study.LLEMExperimentOperator = Ends
study._fetch_first = lambda *_: None  # there is no model to fetch
study_dags(Path(__file__).parent / "studies", globals())
"""


def measure_gap(n: int) -> None:
    """Between two tasks of one pool, with the settings that ship."""
    with tempfile.TemporaryDirectory() as name:
        text = STUDY.format(seeds=list(range(n))) + "airflow: {max_active_cycles: 1}\n"
        server = AirflowServer(Path(name) / "home", {"bench.yaml": text}, SETTINGS)
        (server.home / "dags" / "studies.py").write_text(ENDS)
        try:
            server.start()
            server.run("bench")  # cold
            run = server.run("bench")
            tasks = [t for t in server.instances("bench", run["dag_run_id"]) if "cycle" in t["task_id"]]
        finally:
            server.stop()
    moments = sorted(
        [datetime.fromisoformat(t[name]) for name in ("start_date", "end_date", "queued_when")] for t in tasks
    )
    gaps_s = [(after[0] - before[1]).total_seconds() for before, after in pairwise(moments)]
    queued_s = [(after[2] - before[1]).total_seconds() for before, after in pairwise(moments)]
    lengths_s = [(end - start).total_seconds() for start, end, _ in moments]
    print(
        f"{len(tasks)} tasks: gap median {statistics.median(gaps_s):.2f} s, longest {max(gaps_s):.2f} s, until the "
        f"task is queued {statistics.median(queued_s):.2f} s; a task that does nothing takes "
        f"{statistics.median(lengths_s):.2f} s, its parse included"
    )


def main() -> None:
    words = sys.argv[1:]
    parts = [word for word in words if not word.isdigit()] or ["build", "parse", "gap"]
    sizes = [int(word) for word in words if word.isdigit()] or SIZES
    if "build" in parts:
        measure(10)  # the first pass pays for lazy imports
        print("--- warm")
        for n in sizes:
            measure(n)
    if "parse" in parts:
        measure_parse(sizes)
    if "gap" in parts:
        measure_gap(20)


if __name__ == "__main__":
    main()
