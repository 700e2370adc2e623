"""Small programs that stand in a container in the bundle's place, to try a runner's own mechanics."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import docker

from llem_airflow.protocol.result import Anchor, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import ExperimentSpec, Limits, MeterSpec, ModelSource, Prompts
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Busy, Collected, Runner, Wait
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.output import OnLive

HASH = "a1b2c3d4e5f60718"
T = TypeVar("T")

SPEC = ExperimentSpec(
    schema_version=1,
    study="programs",
    experiment_hash=HASH,
    slug="tiny",
    engine="transformers",
    config={},
    cycle=1,
    model=ModelSource("tiny"),
    prompts=Prompts("none", "0" * 64, (), 1),
    meter=MeterSpec(kind="none"),
    limits=Limits(),
)

RESULT = CycleResult(
    schema_version=1,
    experiment_hash=HASH,
    cycle=1,
    engine="transformers",
    engine_version="0",
    window=Window(0, 1, 1, 1, 1, 1),
    warmup=Warmup("disabled", 0, 0.0, None, ""),
    meter=Meter("none", "none", "none", (), 1.0, None, 0, 0, None, None, ""),
    anchors=(Anchor(0, 0),),
    model={},
    memory={},
    bundle_version="0",
).dumps()

_BEGIN = f"""
import json, os, signal, sys, time
out = os.environ["LLEM_OUTPUT_DIR"]
RESULT = {RESULT!r}
def result(text=RESULT):
    with open(out + "/{HASH}_result.json", "w") as file:
        file.write(text)
def error(**fields):
    said = dict(schema_version=1, type="ValueError", message="boom", traceback="Traceback", phase="load",
                retryable_hint=None)
    with open(out + "/{HASH}_error.json", "w") as file:
        json.dump({{**said, **fields}}, file)
"""


def program(folder: Path, text: str) -> Path:
    """A file with this program; it may call ``result()`` and ``error()``."""
    path = folder / "program.py"
    path.write_text(_BEGIN + text, encoding="utf-8")
    return path


def attempt(try_number: int = 1, like: Attempt | None = None) -> Attempt:
    """An attempt of a run of its own, or another try of ``like``."""
    run_id = like.run_id if like else f"test+{uuid.uuid4()}"
    return Attempt("dag", run_id, "task", -1, "tiny-a1b2c3d4", HASH, 1, try_number, "tests")


def within_reach(run: Callable[[float, list[str]], T]) -> T:
    """What ``run(limit_s, lines)`` gives with the shortest limit within which its program came to say ``up``.

    A busy host may take longer than a second to start Python.
    """
    for limit_s in (1.0, 5.0, 25.0):
        lines: list[str] = []
        given = run(limit_s, lines)
        if "up" in lines:
            return given
    raise AssertionError("the program did not come to say up")


def see_through(
    runner: Runner,
    folder: Path,
    *,
    spec: ExperimentSpec = SPEC,
    wait: Wait = Wait(180.0),  # noqa: B008  # frozen
    store: Callable[[Collected], object] = lambda _: None,
) -> Collected:
    """What an operator does with a runner: a place, or the error that says who holds it; then the attempt."""
    placed = runner.place(spec, wait)
    if isinstance(placed, Busy):
        raise placed.error(folder)
    return runner.run(placed, spec, store)


def in_container(
    api: docker.APIClient,
    who: Attempt,
    settings: ContainerSettings,
    folder: Path,
    bundle: Path,
    *,
    on_line: Callable[[str], object] = lambda _: None,
    on_live: OnLive | None = None,
    **how: Any,
) -> Collected:
    """One attempt in a container."""
    runner = DockerRunner(api, who, settings, folder=folder, on_line=on_line, on_live=on_live, bundle=bundle)  # type: ignore[arg-type]  # what it returns is not used
    return see_through(runner, folder, **how)
