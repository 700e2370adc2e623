"""An engine that lives on over several attempts, and what of the first of them holds for the later ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.idle_power import SESSION_START
from llem_airflow.protocol.engine_keys import load_arguments
from llem_airflow.protocol.spec import ExperimentSpec, IdlePower


class LivingEngine:
    """The loaded engine of a session, or the server with one; none before the first attempt has loaded it.

    Args:
        home: A folder of the session.

    Attributes:
        home: As given.
        engine: It, or None.
        idle: Idle power before it was loaded, which cannot be measured again.
        measured_in: Where that was measured, for people.
        settings: The environment's settings before the engine wrote its own into it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.engine: Any = None
        self.idle: tuple[IdlePower, ...] = ()
        self.measured_in = SESSION_START
        self.settings: dict[str, str] = {}
        self._loaded: dict[str, Any] = {}
        self._commit: str | None = None

    def take(self, engine: Any, spec: ExperimentSpec) -> None:
        """It has been loaded for this experiment.

        Raises:
            MeasurementError: It cannot live on.
        """
        if not hasattr(engine, "reset"):
            raise MeasurementError(
                f"engine {spec.engine!r} has no method `reset`, which makes it ready for the next experiment: use "
                "study_execution.isolation: process",
                category="bad_parameter",
            )
        self.engine, self._loaded = engine, _loads(spec)
        self._commit = engine.describe().model.get("commit")

    def died(self) -> str:
        """How what lives on ended by itself, as a server's process may; empty where it did not, or nothing lives."""
        return str(getattr(self.engine, "died", str)())

    def unlike(self, spec: ExperimentSpec) -> str:
        """How an experiment loads unlike the engine that lives; empty where it does not, or none lives."""
        if self.engine is None:
            return ""
        wanted = _loads(spec)
        different = [
            f"{path}: {_word(self._loaded.get(path))} is loaded, {_word(wanted.get(path))} is asked for"
            for path in sorted({*self._loaded, *wanted})
            if self._loaded.get(path) != wanted.get(path)
        ]
        commit = spec.model.commit
        if commit is not None and self._commit is not None and commit != self._commit:
            different.append(
                f"the model's commit: {_word(self._commit)} is loaded, {_word(commit)} is asked for"
            )
        return "; ".join(different)

    def go_on(self, spec: ExperimentSpec) -> Any:
        """The engine, made ready for the next experiment.

        Raises:
            MeasurementError: The experiment loads unlike it.
        """
        assert self.engine is not None
        if different := self.unlike(spec):
            raise MeasurementError(
                f"the engine of this session lives on and takes only what loads alike: {different}. Use "
                "study_execution.isolation: process or container, or another session",
                category="bad_parameter",
            )
        self.engine.reset(spec)
        return self.engine


def _loads(spec: ExperimentSpec) -> dict[str, Any]:
    model = spec.model
    return {
        "engine": spec.engine,
        "task.model": model.path or model.name,
        "revision": model.revision,
        "gpus": list(spec.meter.gpus),
        **load_arguments(spec.engine, spec.config),
    }


def _word(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, sort_keys=True)
