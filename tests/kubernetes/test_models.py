"""Models and caches on a claim or a path of the nodes: what a pod has of them, and what is said when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.operators import LLEMKubernetesExperimentOperator
from llem_airflow.operators.retries import AttemptFinalError
from llem_airflow.results import ResultsRoot
from tests.kubernetes.cluster import Object, StandInCluster
from tests.kubernetes.tasks import TaskOf, quick
from tests.operators.test_experiment import context

READS = """
spec = json.load(open(os.environ["LLEM_CONFIG_PATH"]))
path = spec["model"]["path"]
assert path == "/models/org/model", path
assert open(os.environ["MODELS"] + path.removeprefix("/models") + "/config.json").read() == "the cluster's"
assert os.environ["HF_HUB_OFFLINE"] == "1"
os.makedirs(os.environ["HF_HOME"], exist_ok=True)
open(os.environ["HF_HOME"] + "/kept", "w").write("kept")
"""


def model_in(folder: Path, text: str) -> Path:
    model = folder / "org" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(text)
    return folder


@pytest.fixture
def task(on_cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskOf:
    """Makes the task of a study whose model lies in the worker's models folder; its pod reads the cluster's."""
    monkeypatch.setenv("LLEM_MODELS_DIR", str(model_in(tmp_path / "worker", "the worker's")))
    kind = quick(tmp_path, READS)

    def make(**kwargs: Any) -> LLEMKubernetesExperimentOperator:
        made: LLEMKubernetesExperimentOperator = on_cluster(kind, env_vars={"MODELS": "/models"}, **kwargs)
        return made

    return make


def pod_of(cluster: StandInCluster) -> Object:
    """The pod that was made, which the stand-in has held against the published description."""
    return next(made for _, kind, made in cluster.history if kind == "ADDED")


def named(listed: list[Object], name: str) -> Object:
    (found,) = (each for each in listed if each["name"] == name)
    return {key: value for key, value in found.items() if key != "name"}


def test_a_claim_brings_the_model_read_only_and_another_keeps_the_cache(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    cluster.claims = {"models": model_in(tmp_path / "claim", "the cluster's"), "cache": tmp_path / "cache"}
    (tmp_path / "cache").mkdir()
    task(models_volume="models", cache_volume="cache").execute(context())
    assert len(ResultsRoot(tmp_path / "results").run("asked", "manual__x").cycles()) == 1
    spec = pod_of(cluster)["spec"]
    assert named(spec["volumes"], "llem-models") == {
        "persistentVolumeClaim": {"claimName": "models", "readOnly": True}
    }
    assert named(spec["volumes"], "llem-cache") == {"persistentVolumeClaim": {"claimName": "cache"}}
    mounts = spec["containers"][0]["volumeMounts"]
    assert named(mounts, "llem-models") == {"mountPath": "/models", "readOnly": True}
    assert named(mounts, "llem-cache") == {"mountPath": "/cache"}
    assert (tmp_path / "cache" / "hub" / "kept").read_text() == "kept"
    others = [
        each for each in (*spec["initContainers"], *spec["containers"][1:]) for each in each["volumeMounts"]
    ]
    assert {each["name"] for each in others} == {"llem-exchange", "llem-in"}, (
        "only who measures has the model"
    )
    assert cluster.names("pods", "configmaps") == []


def test_a_path_of_the_nodes_brings_the_model_read_only(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    there = str(model_in(tmp_path / "node", "the cluster's"))
    task(models_volume=there).execute(context())
    assert len(ResultsRoot(tmp_path / "results").run("asked", "manual__x").cycles()) == 1
    spec = pod_of(cluster)["spec"]
    assert named(spec["volumes"], "llem-models") == {"hostPath": {"path": there, "type": "Directory"}}
    assert named(spec["containers"][0]["volumeMounts"], "llem-models") == {
        "mountPath": "/models",
        "readOnly": True,
    }
    assert named(spec["volumes"], "llem-cache") == {"emptyDir": {}}


def test_a_claim_that_is_not_there_is_named(cluster: StandInCluster, task: TaskOf) -> None:
    with pytest.raises(AttemptFinalError, match='persistentvolumeclaim "models" not found') as caught:
        task(models_volume="models", gpu_wait_s=0).execute(context())
    assert caught.value.failure.category == "config"
    assert "make the claim in the pod's namespace" in str(caught.value)
    assert cluster.names() == []


def test_a_folder_that_a_node_does_not_have_is_named(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(
        AttemptFinalError, match=f"hostPath type check failed: {nowhere} is not a dir"
    ) as caught:
        task(models_volume=nowhere, startup_timeout_seconds=1).execute(context())
    assert caught.value.failure.category == "config"
    assert "correct the volume that is named" in str(caught.value)
    assert cluster.names("pods", "configmaps") == []


def test_a_model_of_the_worker_s_that_nobody_says_the_place_of_is_named(
    cluster: StandInCluster, task: TaskOf, tmp_path: Path
) -> None:
    with pytest.raises(AttemptFinalError, match="say with the operator's models_volume where") as caught:
        task().execute(context())
    assert str(tmp_path / "worker" / "org" / "model") in str(caught.value)
    assert cluster.names() == []
