"""The first visit to a GPU, on the stand-in, where nothing of Airflow can be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.on_gpu.__main__ import Step, carried, run, steps
from benchmarks.on_gpu.checks import CHECKS
from tests.engines.test_plugin import EXAMPLE
from tests.parts import REPOSITORY
from tests.standins.gpus import built

BLOCKED = """\
import sys

ABSENT = {"airflow", "pandas", "jinja2", "matplotlib", "croniter", "httpx", "fastapi", "pytest"}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
STUDY = """\
study_name: echoes
serving_mode: offline
engine: echo
task: {model: none, max_output_tokens: 16, dataset: {source: "synthetic:16x16", n_prompts: 2}}
measurement: {min_window_seconds: 0.5, baseline: {enabled: false}}
offline: {warmup: {thermal_floor_seconds: 0, n_prompts: 1, convergence_detection: false}}
echo: {engine_params: {step_s: 0.002}}
study_execution: {n_cycles: 1}
runners: {echo: process}
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment of one stand-in GPU and the example engine, without Airflow and what comes with it."""
    site = tmp_path / "site"
    metadata = site / "llem_echo_engine-1.0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(EXAMPLE / "llem_echo.py", site)
    (site / "sitecustomize.py").write_text(BLOCKED)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: llem-echo-engine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[llem_airflow.engines]\necho = llem_echo:EchoEngine\n")
    (metadata / "RECORD").write_text(f"llem_echo.py,,\n{metadata.name}/entry_points.txt,,\n")
    script = tmp_path / "gpus.conf"
    # a UUID of its own: the others belong to experiments of other tests
    uuid = "GPU-5741d000-0000-0000-0000-00000f125701"
    script.write_text(f"gpus = 1\ngpu.0.uuid = {uuid}\ngpu.0.power = square 100 400 0.737 0.3\n")
    return {**os.environ, **built().environment(script), "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


def test_the_visit_runs_without_airflow_and_leaves_one_small_folder(
    tmp_path: Path, bare: dict[str, str]
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.on_gpu", str(out), "--short"]
    given = ["--study", str(tmp_path / "study.yaml"), "--wheels", str(tmp_path / "none")]
    done = subprocess.run(
        [*command, *given], env=bare, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + (out / "log.txt").read_text()
    assert len(list(out.iterdir())) < 8
    said = (out / "summary.txt").read_text()
    assert said.strip() == done.stdout.strip()
    for part in (
        "STAND-IN",
        "1 of 1 cycles have a result",
        "J/output token (measured)",
        "keeps the contract",
        "register period 1",
        "not walked",
    ):
        assert part in said
    assert [one["state"] for one in json.loads((out / "summary.json").read_text())] == ["ok"] * 5
    with tarfile.open(out / "results.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert list(tmp_path.glob("results/.gpu-profiles/GPU-*.html"))
    (provenance,) = tmp_path.glob("results/**/cycle-1/provenance.json")
    assert "power_sensors" in json.loads(
        provenance.read_text()
    )  # the study already uses what gpu-check found out


@pytest.mark.parametrize(
    ("fault", "state"),
    [("fault = no_permission", "failed"), ("fault = lost after_calls=3", "failed")],
    ids=["no-permission", "lost-midway"],
)
def test_a_bad_driver_is_told_and_the_other_checks_go_on(
    fault: str, state: str, tmp_path: Path, bare: dict[str, str]
) -> None:
    script = Path(bare["STANDIN_NVML_SCRIPT"])
    script.write_text(f"{script.read_text()}{fault}\n")
    path = os.pathsep.join([str(REPOSITORY), bare["PYTHONPATH"]])
    step = Step("checks", ("benchmarks.on_gpu.checks", str(tmp_path)), 60)
    outcome = run(step, tmp_path / "log.txt", {**bare, "PYTHONPATH": path})
    assert outcome.state == state
    found = json.loads((tmp_path / "checks.json").read_text())
    assert len(found) == len(CHECKS)
    assert not all(one["ok"] for one in found)


def test_a_step_that_hangs_is_ended_with_all_that_it_started_and_one_that_fails_is_told(
    tmp_path: Path,
) -> None:
    log, environment = tmp_path / "log.txt", {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "hangs.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('> began'); print(child.pid, flush=True); time.sleep(60)\n"
    )
    outcome = run(Step("hangs", ("hangs",), 4.0), log, environment)
    assert (outcome.state, outcome.said[0]) == ("timeout", "began")
    child = int(outcome.said[-1])
    state, until_s = Path(f"/proc/{child}/stat"), time.monotonic() + 10
    while (
        state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    ):  # a busy machine kills slowly
        assert time.monotonic() < until_s
        time.sleep(0.02)
    (tmp_path / "breaks.py").write_text("raise SystemExit('why')\n")
    outcome = run(Step("breaks", ("breaks",), 20.0), log, environment)
    assert (outcome.state, outcome.said) == ("failed", ["why"])


def test_the_limits_of_the_steps_add_up_to_less_than_nine_minutes() -> None:
    assert sum(step.limit_s for step in steps(Path("out"), short=False, study=Path("study.yaml"))) < 9 * 60


def test_wheels_are_carried_for_what_is_not_installed(tmp_path: Path) -> None:
    for name in ("click", "not-installed-here"):
        module = name.replace("-", "_")
        with zipfile.ZipFile(tmp_path / f"{module}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}.py", "")
            wheel.writestr(
                f"{module}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
            )
    (tmp_path / "other_python-1-cp399-cp399-manylinux_2_28_x86_64.whl").write_bytes(b"for another Python")
    assert carried(tmp_path, tmp_path / "site") == ["not-installed-here"]
    assert (tmp_path / "site" / "not_installed_here.py").exists()
