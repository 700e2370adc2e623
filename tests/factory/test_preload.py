"""A task imports nothing to parse its DAG file: the scheduler has done so before the executor forked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from llem_airflow.study import load_study

STUDY = """\
study_name: one
serving_mode: offline
study_execution: {n_cycles: 1}
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate}
"""
SCHEDULER = """\
import json, os, sys
from airflow.jobs.job import Job
from pathlib import Path
from llem_airflow.web.plugin import LLEMPlugin
(listener,) = LLEMPlugin.listeners
start = set(sys.modules)
listener.on_starting(component=Job.__new__(Job))
other = sorted(set(sys.modules) - start)
import airflow.cli.commands.scheduler_command
listener.on_starting(component=Job.__new__(Job))
preloaded = set(sys.modules)
from airflow.dag_processing.dagbag import BundleDagBag
folder = Path(sys.argv[1])
os.environ |= {"_AIRFLOW_PARSING_CONTEXT_DAG_ID": "one", "_AIRFLOW_PARSING_CONTEXT_TASK_ID": sys.argv[2]}
bag = BundleDagBag(folder / "dag.py", safe_mode=False, load_op_links=False, bundle_path=folder, bundle_name="b")
bag.dags["one"].get_task(sys.argv[2])
parsed = sorted({name.partition(".")[0] for name in set(sys.modules) - preloaded})
threads = [name for name in ("numpy", "pyarrow") if name in preloaded]
print(json.dumps({"other": other, "parsed": parsed, "threads": threads}))
"""


def test_only_the_scheduler_imports_what_tasks_need_and_a_task_s_parse_then_imports_nothing_of_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "one.yaml").write_text(STUDY)
    (tmp_path / "dag.py").write_text(
        "from pathlib import Path\nfrom llem_airflow.factory import study_dags\n"
        "study_dags(Path(__file__).parent / 'studies', globals())\n"
    )
    task_id = f"{load_study(tmp_path / 'studies' / 'one.yaml').experiments[0].id}.cycle_1"
    done = subprocess.run(
        [sys.executable, "-c", SCHEDULER, str(tmp_path), task_id],
        env={
            **os.environ,
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__LLEM__PLAN_CACHE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["other"] == said["threads"] == []
    assert not [name for name in said["parsed"] if not name.startswith(("airflow", "encodings", "unusual_"))]
