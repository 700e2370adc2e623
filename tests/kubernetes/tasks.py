"""The task of a study's one cycle, whose pod the stand-in cluster runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.operators import LLEMKubernetesExperimentOperator
from llem_airflow.study import Study, load_study_text
from tests.kubernetes.cluster import StandInCluster
from tests.runners.programs import HASH, program

TEXT = """\
study_name: asked
serving_mode: offline
engine: vllm
task: {model: org/model, dataset: {source: builtin, n_prompts: 2}}
runners: {vllm: kubernetes}
images: {vllm: "registry.lab/vllm:1"}
"""


TaskOf = Callable[..., LLEMKubernetesExperimentOperator]


def study(more: str = "") -> Study:
    return load_study_text(TEXT + more)


def quick(folder: Path, before: str = "") -> type[LLEMKubernetesExperimentOperator]:
    """An operator whose pod ends at once with a result."""
    name = study().experiments[0].hash
    text = f"{before}\nopen(out + '/{name}_result.json', 'w').write(RESULT.replace({HASH!r}, {name!r}))"

    class Quick(LLEMKubernetesExperimentOperator):
        bundle = program(folder, text)

    return Quick


def write_kubeconfig(path: Path, url: str) -> str:
    """Write a kubeconfig for the address of a server; its path."""
    named = {"name": "c", "cluster": {"server": url}}
    users = {"name": "u", "user": {"token": "t"}}
    contexts = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    said = {"clusters": [named], "users": [users], "contexts": [contexts], "current-context": "x"}
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **said}))
    return str(path)


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a kubeconfig for the address of a server."""
    return partial(write_kubeconfig, tmp_path / "kubeconfig")


@pytest.fixture
def on_cluster(
    cluster: StandInCluster,
    config_file: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], LLEMKubernetesExperimentOperator]:
    """Makes the task of the study's one cycle, whose pods the stand-in runs."""
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    where = config_file(cluster.url)

    def make(
        kind: type[LLEMKubernetesExperimentOperator] = LLEMKubernetesExperimentOperator, **kwargs: Any
    ) -> Any:
        asked = study()
        return kind(
            task_id="one.cycle_1",
            study=asked,
            experiment=asked.experiments[0].id,
            config_file=where,
            **{"deferrable": False, **kwargs},
        )

    return make
