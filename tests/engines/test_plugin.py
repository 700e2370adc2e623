"""An engine that a third party brings: from a clean environment with two packages to a measured study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import docker
import pytest

from tests.engines.boxes import OUTPUT_TOKENS, PROMPTS, experiment, observe
from tests.parts import REPOSITORY

pytestmark = pytest.mark.timeout(600)  # the first one installs Airflow once more

EXAMPLE = Path(__file__).parent / "plugin_example"
STUDY = """\
study_name: echoes
serving_mode: offline
study_execution: {n_cycles: 1}
engine: echo
task: {model: none, max_output_tokens: 16, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate, min_window_seconds: 0.5, baseline: {enabled: false}}
offline: {warmup: {n_prompts: 1, convergence_detection: false}}
echo: {engine_params: {step_s: 0.002}}
runners: {echo: process}
airflow: {retries: 0}
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment: this package's wheel and the example, as `pip install` brings them."""
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "example"  # building leaves files beside the sources
    shutil.copytree(EXAMPLE, source)
    uv = [sys.executable, "-m", "uv"]
    python = folder / "venv" / "bin" / "python"
    for command in (
        [*uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(REPOSITORY)],
        [*uv, "venv", "--quiet", str(folder / "venv"), "--python", sys.executable],
        [*uv, "pip", "install", "--quiet", "--python", str(python), str(source)],
    ):
        wheel = [str(path) for path in folder.glob("*.whl")] if "install" in command else []
        done = subprocess.run(
            [*command, *wheel], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, done.stderr
    return python.parent


def in_clean(clean: Path, *command: str, **environment: str) -> str:
    """Output of a command of that environment, which knows nothing of this one."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "DOCKER_HOST") if name in os.environ}
    done = subprocess.run(
        [str(clean / command[0]), *command[1:]],
        check=False,
        env={"PATH": f"{clean}:/usr/bin:/bin", **kept, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def bundle(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    code = "import sys, pathlib, llem_airflow.runners.bundle as b; print(b.build_bundle(pathlib.Path(sys.argv[1])))"
    return Path(in_clean(clean, "python", "-c", code, str(tmp_path_factory.mktemp("bundles"))))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_the_host_knows_the_installed_engine(clean: Path, study: Path) -> None:
    assert "1 experiment, 1 cycle" in in_clean(clean, "llem-airflow", "validate", str(study))
    plan = json.loads(in_clean(clean, "llem-airflow", "plan", "--json", str(study)))
    assert [(one["engine"], one["runner"]) for one in plan["experiments"]] == [("echo", "process")]


@pytest.mark.airflow
def test_a_study_of_the_installed_engine_runs_through_airflow_to_a_report(
    clean: Path, study: Path, tmp_path: Path
) -> None:
    environment = {"AIRFLOW_HOME": str(tmp_path / "airflow"), "LLEM_RESULTS_ROOT": str(tmp_path / "results")}
    in_clean(clean, "llem-airflow", "run", str(study), **environment)
    (summary,) = (tmp_path / "results" / "echoes").glob("*/summary.json")
    said = json.loads(summary.read_text())
    assert (said["planned"], said["valid"]) == (1, 1)
    (one,) = said["experiments"]
    assert (one["engine"], one["engine_version"]) == ("echo", "1.0")
    assert "echo" in (summary.parent / "report.html").read_text()


def test_the_bundle_takes_an_installed_engine_along_with_its_entry_point(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
    assert "llem_echo.py" in names
    assert "llem_echo_engine-1.0.dist-info/entry_points.txt" in names
    assert len(names) == len(set(names))


@pytest.mark.docker
def test_an_installed_engine_runs_in_a_container_that_holds_nothing_but_python(
    docker_api: docker.APIClient, python_image: str, bundle: Path, tmp_path: Path
) -> None:
    spec = experiment("echo", None, {"engine_params": {"step_s": 0.002}})
    observed = observe(docker_api, python_image, spec, tmp_path / "out", tmp_path, bundle)
    assert observed.result.engine == "echo"
    assert observed.result.engine_version == "1.0"
    assert observed.result.window.output_tokens == OUTPUT_TOKENS * len(observed.measured)
    first = observed.measured[0]
    assert bytes(first["output_token_ids"][:5]) == PROMPTS[first["prompt_index"]].encode()[:5]


def test_an_engine_that_is_not_installed_is_named_with_those_that_are(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from llem_airflow.measurement.engines.contract import engine_names; print(*engine_names())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["transformers", "vllm", "tensorrt", "echo"]
