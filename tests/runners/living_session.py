"""One session on a real engine of Docker, and what runs in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker

from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Wait
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import ContainerPlace
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import (
    SessionContainer,
    SessionSettings,
    session_of,
    stop_session,
)
from llem_airflow.study import GpuRequest
from tests.runners.conftest import left_of
from tests.runners.programs import SPEC

RESTART = "Starting the session's container again "


class LivingSession:
    """A session that a test starts, and runs attempts in.

    Attributes:
        bundle: What its guard runs from; None for that of the installed packages.
        spec: Of which experiment it is started.
        lines: What was said for people.
    """

    def __init__(self, api: docker.APIClient, image: str, who: Attempt, folder: Path) -> None:
        self.api, self.who, self.folder = api, who, folder
        self.session = SessionSettings("warm-1", idle_s=120.0)
        self.settings = ContainerSettings(image, gpu_request=GpuRequest(0))
        self.bundle: Path | None = None
        self.spec: ExperimentSpec = SPEC
        self.lines: list[str] = []
        self._runs = 0

    @property
    def name(self) -> str:
        """Of its container."""
        return session_of(self.who, self.session.session_id).container_name

    def container(self) -> SessionContainer:
        """What starts it."""
        return SessionContainer(
            self.api, self.who, self.settings, self.session,
            folder=self.folder, on_line=self.lines.append, bundle=self.bundle,
        )  # fmt: skip

    def start(self) -> ContainerPlace:
        """Start it, or find that it lives."""
        started = self.container().begin(self.spec, Wait(60.0))
        assert isinstance(started, ContainerPlace)
        return started

    def attempt(
        self,
        task: str,
        bundle: Callable[[Path], Path],
        *,
        on_line: Callable[[str], Any] | None = None,
        try_number: int = 1,
        **settings: Any,
    ) -> SessionRunner:
        """The runner of an attempt, with the bundle that is made in its folder."""
        self._runs += 1
        folder = self.folder / f"run-{self._runs}"
        folder.mkdir()
        who = replace(self.who, task_id=task, try_number=try_number)
        return SessionRunner(
            self.api, who, replace(self.settings, **settings), self.session,
            folder=folder / "out", on_line=on_line or self.lines.append, bundle=bundle(folder),
        )  # fmt: skip

    def restarts(self) -> list[str]:
        """Of each restart of the container its number and why."""
        return [line.removeprefix(RESTART) for line in self.lines if line.startswith(RESTART)]

    @contextmanager
    def stopped_at_the_end(self) -> Iterator[None]:
        """End it, twice as a repeated task does, and see that nothing is left."""
        yield
        for _ in range(2):
            stop_session(self.api, self.who, self.session.session_id)
        assert left_of(self.api, session_of(self.who, self.session.session_id)) == []
