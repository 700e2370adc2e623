"""An engine that a third party brings as an installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import docker
import pytest

from tests.engines.boxes import OUTPUT_TOKENS, PROMPTS, experiment, observe

EXAMPLE = Path(__file__).parent / "plugin_example"
STUDY = """\
study_name: s
serving_mode: offline
engine: echo
task: {model: none, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: none}
echo: {engine_params: {step_s: 0.002}}
runners: {echo: container}
images: {echo: "python:3.12-slim"}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the installed example."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "example"  # building leaves files beside the sources
    shutil.copytree(EXAMPLE, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run(
        [*command, *options, str(source)], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    return target


def with_plugin(installed: Path, code: str, *arguments: str) -> str:
    """Output of a Python that finds the plugin beside llem-airflow."""
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def bundle(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    code = "import sys, pathlib, llem_airflow.container.bundle as b; print(b.build_bundle(pathlib.Path(sys.argv[1])))"
    return Path(with_plugin(installed, code, str(tmp_path_factory.mktemp("bundles"))))


def test_the_bundle_takes_an_installed_engine_along_with_its_entry_point(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
    assert "llem_echo.py" in names
    assert "llem_echo_engine-1.0.dist-info/entry_points.txt" in names
    assert len(names) == len(set(names))


def test_a_study_may_name_an_installed_engine(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(STUDY)
    code = (
        "import sys; from llem_airflow.study import load_study; e = load_study(sys.argv[1]).experiments[0];"
        "print(e.engine, e.runner, e.image, e.config['echo']['engine_params'])"
    )
    said = with_plugin(installed, code, str(tmp_path / "s.yaml"))
    assert said == "echo container python:3.12-slim {'step_s': 0.002}"


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
        "from llem_airflow.measurement.engines.registry import engine_names; print(*engine_names())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["transformers", "vllm", "tensorrt", "echo"]
