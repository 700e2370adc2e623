"""A stand-in cluster, and runners on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import CoreV1Api

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.kubernetes import KubernetesRunner
from llem_airflow.runners.pod_spec import PodSettings
from tests.kubernetes.cluster import StandInCluster
from tests.runners.programs import attempt, program

RunnerOf = Callable[..., KubernetesRunner]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StandInCluster]:
    with StandInCluster(tmp_path / "cluster").running() as made:
        yield made


@pytest.fixture
def api(cluster: StandInCluster) -> Iterator[CoreV1Api]:
    with cluster.api() as made:
        yield made


@pytest.fixture
def this_attempt() -> Attempt:
    return attempt()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def runner(api: CoreV1Api, this_attempt: Attempt, tmp_path: Path, lines: list[str]) -> RunnerOf:
    """Makes the runner of a try: ``runner("result()", try_number=2, gpus=1)``."""

    def make(text: str = "result()", *, who: Attempt = this_attempt, **settings: Any) -> KubernetesRunner:
        folder = tmp_path / f"{who.container_name}-bundle"
        folder.mkdir(exist_ok=True)
        return KubernetesRunner(
            api,
            who,
            PodSettings("registry.lab/engine:1", **{"api_grace_s": 20.0, "stop_grace_s": 1.0, **settings}),
            folder=tmp_path / who.container_name,
            on_line=lines.append,
            bundle=program(folder, text),
        )

    return make
