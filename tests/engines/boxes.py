"""Real engines in hardened containers: the same prompts for each, and what each left behind."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
from docker.types import Mount

from llem_airflow.protocol.files import ENVIRONMENT, REQUESTS, result_name
from llem_airflow.protocol.result import CycleResult
from llem_airflow.protocol.session import WARM
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Place, Wait
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import SessionContainer, SessionSettings, stop_session
from tests.measurement.running import HASH, spec_of
from tests.runners.programs import see_through

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Energy is measured in joules. A watt is",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "1, 2, 3, 5, 8,",
)
OUTPUT_TOKENS = 24


@dataclass(frozen=True)
class Observed:
    """What one attempt left behind."""

    out: Path

    @property
    def result(self) -> CycleResult:
        return CycleResult.loads((self.out / result_name(HASH)).read_text())

    @property
    def environment(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / ENVIRONMENT).read_text())
        return found

    @property
    def log(self) -> str:
        return (self.out / "container.log").read_text()

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The requests of the measured window."""
        rows = rows_of(self.out / REQUESTS)
        return [row for row in rows if row["phase"] == "measure"]

    @property
    def answers(self) -> dict[int, list[int]]:
        """Generated ids by prompt, of the first pass."""
        found: dict[int, list[int]] = {}
        for row in self.measured:
            found.setdefault(row["prompt_index"], row["output_token_ids"])
        return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def experiment(engine: str, model: Path | None, section: dict[str, Any]) -> ExperimentSpec:
    """One pass over the prompts as warm-up, then a window."""
    return spec_of(
        engine,
        section,
        model_path=None if model is None else f"/models/{model.name}",
        output_tokens=OUTPUT_TOKENS,
        texts=PROMPTS,
        config={
            "offline": {"warmup": {"convergence_detection": False, "n_prompts": 1}},
            "measurement": {"baseline": {"enabled": False}},
        },
    )


def observe(
    api: docker.APIClient,
    image: str,
    spec: ExperimentSpec,
    folder: Path,
    models: Path,
    bundle: Path | None = None,
    mem_limit: str | None = None,
) -> Observed:
    """Run an experiment in a container as the operator does: no network, read-only, an unknown user."""
    settings = replace(_settings(image, spec, models), mem_limit=mem_limit)
    runner = DockerRunner(api, _attempt(), settings, folder=folder, on_line=print, bundle=bundle)
    see_through(runner, folder, spec=spec)
    return Observed(folder)


def observe_living(
    api: docker.APIClient, image: str, specs: Sequence[ExperimentSpec], folder: Path, models: Path
) -> list[Observed]:
    """Run experiments that load alike one after the other by one engine that lives on."""
    settings, who = _settings(image, specs[0], models), _attempt()
    session = SessionSettings("living", start_kind=WARM)
    try:
        container = SessionContainer(api, who, settings, session, folder=folder, on_line=print)
        assert isinstance(container.begin(specs[0], Wait(180.0)), Place)
        for number, spec in enumerate(specs):
            attempt = replace(who, task_id=f"task-{number}")
            runner = SessionRunner(
                api, attempt, settings, session, folder=folder / str(number), on_line=print
            )
            see_through(runner, folder, spec=spec)
    finally:
        stop_session(api, who, session.session_id)
    return [Observed(folder / str(number)) for number in range(len(specs))]


def _settings(image: str, spec: ExperimentSpec, models: Path) -> ContainerSettings:
    path = spec.model.path
    mounts = (
        () if path is None else (Mount(path, str(models / Path(path).name), type="bind", read_only=True),)
    )
    return ContainerSettings(
        image,
        environment={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        mounts=mounts,
        wall_clock_s=400,
        pull="never",
    )


def _attempt() -> Attempt:
    return Attempt("dag", f"test+{uuid.uuid4()}", "task", -1, "an-experiment-01234567", HASH, 1, 1, "tests")
