"""The page "In a notebook": its code runs, on a run made here and on a real quickstart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from llem_airflow import frames
from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.results import ResultsRoot
from llem_airflow.study import load_study
from tests import parts
from tests.results.recorded import Recording, provenance

PAGE = parts.REPOSITORY / "llem_airflow" / "frames" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
QUICKSTART = parts.REPOSITORY / "dags" / "studies" / "quickstart.yaml"
BATCH = "transformers.llem_execution.batch_size"


@pytest.fixture(params=["made", pytest.param("measured", marks=(pytest.mark.engine, pytest.mark.airflow))])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which ``results`` holds a run of the quickstart."""
    if request.param == "made":
        make(tmp_path)
    elif (run := newest_quickstart()) is not None:
        shutil.copytree(run, tmp_path / "results" / run.parent.name / run.name)
    else:
        measure(tmp_path, request.getfixturevalue("smol_model").parent)
    yield tmp_path
    plt.close("all")


def newest_quickstart() -> Path | None:
    """The run that ``make quickstart`` left last, if this code made it: that is, since any of it was changed."""
    code = (parts.REPOSITORY / "llem_airflow").rglob("*.py")
    changed_s = max(file.stat().st_mtime for file in [*code, QUICKSTART])
    root = ResultsRoot(os.environ.get("LLEM_RESULTS_ROOT", parts.REPOSITORY / "results"))
    for run in reversed(root.runs("quickstart")):
        summary = run.summary()
        whole = summary is not None and summary["valid"] == summary["planned"]
        if whole and run.started_epoch_ns() > changed_s * 1e9:
            return run.path
    return None


def measure(folder: Path, models: Path) -> None:
    """A real quickstart of two cycles."""
    told = {
        "LLEM_RESULTS_ROOT": str(folder / "results"),
        "LLEM_MODELS_DIR": str(models),
        "AIRFLOW_HOME": str(folder / "airflow"),
    }
    command = [str(Path(sys.executable).with_name("llem-airflow")), "run", str(QUICKSTART)]
    subprocess.run(
        [*command, "--runner", "process", "--cycles", "2"],
        env=os.environ | told,
        check=True,
        capture_output=True,
        timeout=800,
    )


def make(folder: Path) -> None:
    """A run of the quickstart's plan with recorded cycles."""
    study = load_study(QUICKSTART)
    run = ResultsRoot(folder / "results").run("quickstart", "r1")
    run.write_plan(study.text, study.plan.to_json(), {"dag_id": "quickstart", "started_epoch_ns": 1})
    for number, one in enumerate(study.plan.planned_cycles):
        experiment = study.experiment(one.experiment_id)
        watts = 200.0 / experiment.config["transformers"]["llem_execution"]["batch_size"] + one.cycle
        recording = Recording(
            hash=experiment.hash, cycle=one.cycle, power_w=watts, window_s=5.0, config=dict(experiment.config)
        )
        recording.write(folder / f"out-{number}")
        run.commit_cycle(one.experiment_id, one.cycle, folder / f"out-{number}", provenance(60.0 * number))
    aggregate_run(run)


@pytest.mark.timeout(900)
def test_the_code_of_the_page_runs_and_plots_the_summary_s_numbers(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results)
    shown: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), shown)  # the page's own code is what is tested
    assert (results / "energy.png").stat().st_size > 5_000
    [run] = ResultsRoot(results / "results").runs()
    summary = run.summary()
    assert summary is not None
    means = {
        item["id"]: next(m["all"] for m in item["metrics"] if m["name"] == shown["joules"])
        for item in summary["experiments"]
    }
    told = shown["found"].set_index("experiment")
    assert told[BATCH].tolist() == [1, 8]
    for name, metric in means.items():
        row = told.loc[name]
        interval = metric["interval"]
        ends = (row["energy_per_output_token_j_low"], row["energy_per_output_token_j_high"])
        assert row["energy_per_output_token_j"] == metric["mean"]
        assert ends == (interval["low"], interval["high"])
    line = plt.gca().get_lines()[0]
    assert np.asarray(line.get_ydata()).tolist() == [means[name]["mean"] for name in told.index]
    assert shown["problems"].empty
    assert shown["told"]["verdict"].notna().all()


def test_the_plot_takes_ten_lines() -> None:
    assert (
        len([line for line in BLOCKS[0].splitlines() if line and not line.startswith(("import", "from"))])
        <= 10
    )


def test_every_function_is_on_the_page() -> None:
    rows = set(re.findall(r"^\| `(\w+)\(", PAGE.read_text(), re.MULTILINE))
    assert rows == {name for name in frames.__all__ if name.endswith("_df")}
