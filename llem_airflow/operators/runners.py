"""Where the experiments of a run run: decided once, when it is planned, the same for all its cycles and tries."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
from airflow.providers.docker.hooks.docker import DockerHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException
from docker.errors import APIError, DockerException

from llem_airflow.operators import arguments
from llem_airflow.operators.inputs import as_fetched
from llem_airflow.operators.placement import (
    EngineAwayError,
    PlacementError,
    choose_image,
    container_settings,
    process_settings,
)
from llem_airflow.operators.settings import installed_runners
from llem_airflow.protocol.failures import how_to_rerun
from llem_airflow.protocol.session import EXEC, WARM
from llem_airflow.results import StoredRun
from llem_airflow.results.folder import json_bytes
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Runner
from llem_airflow.runners.choice import (
    AUTO,
    IMAGE_ARGUMENT,
    Choice,
    Layers,
    RunnerError,
    said_by_engine,
    settled,
)
from llem_airflow.runners.claims import LOOK_HINT
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import DockerRunner
from llem_airflow.runners.engine import (
    DEFAULT_URL,
    ENGINE_ERRORS,
    GRACE_S,
    EngineAddress,
    is_installed_here,
    reach,
    why_away,
)
from llem_airflow.runners.failures import AttemptFailedError, Failure, classify, failure
from llem_airflow.runners.gpus import GpuLookError
from llem_airflow.runners.images import default_images, host_cuda_major
from llem_airflow.runners.process import ProcessRunner
from llem_airflow.runners.session import SessionRunner
from llem_airflow.runners.session_container import SessionContainer, SessionSettings, stop_session
from llem_airflow.runners.ssh import SCHEME
from llem_airflow.study import Experiment, PromptsError
from llem_airflow.study.names import KUBERNETES

if TYPE_CHECKING:
    from llem_airflow.operators.experiment import LLEMExperimentOperator
    from llem_airflow.operators.session import LLEMStartSessionOperator, LLEMStopSessionOperator

_FOLDER, _FILE = "pins", "runners.json"
_CONNECT_TIMEOUT_S = 10
_REFUSED_LOGIN = re.compile(
    r"\bunauthorized\b|\bdenied\b|\b401\b|incorrect username or password", re.IGNORECASE
)
_ASK_AGAIN_S = 2.0
CORRECT = f"correct it, then {how_to_rerun('this task')}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one attempt runs as.

    Attributes:
        runner: container | process.
        image: Image of the container; as it was for a process.
        layers: For the record: ``runner_by``, ``runner_why`` (why ``auto`` became what it is) and ``image_by``.
    """

    runner: str
    image: str
    layers: dict[str, str]

    def __str__(self) -> str:
        """For the task's log."""
        why = self.layers["runner_why"] or self.layers["runner_by"]
        image = f", image {self.image} ({self.layers['image_by']})" if self.runner != "process" else ""
        return f"Runner: {self.runner} ({why}){image}"


def engine_of(operator: LLEMExperimentOperator) -> docker.APIClient:
    """A client of the operator's Docker engine, which has just answered.

    Raises:
        PlacementError: Its connection to a registry is not there, lacks something or is refused.
        EngineAwayError: The engine does not answer; the text says why and what to do.
    """
    conn_id = operator.docker_conn_id
    try:
        if not operator.hook.client_created:
            _reach_one(operator.docker_url)
        api = operator.cli
        api.ping()
    except AirflowNotFoundException as error:
        raise PlacementError(
            f"docker_conn_id {conn_id!r}: {error}. It names the login to a registry: `airflow connections add "
            f"{conn_id} --conn-type docker --conn-host registry.lab --conn-login ... --conn-password ...`, or leave "
            "docker_conn_id out where images need no login"
        ) from error
    except APIError as error:
        raise _login_refused(conn_id, error) from error
    except (*ENGINE_ERRORS, AirflowException, OSError) as error:
        text = _cause(operator, error)
        on = f" on host {operator.host.name}" if operator.host.name else ""
        raise EngineAwayError(
            f"a container needs a Docker engine, and none answers{on}: {text.rstrip('.')}. {_advice(operator)}"
        ) from error
    return api


def _cause(operator: LLEMExperimentOperator, error: Exception) -> str:
    """Why the engine cannot be reached: DockerHook only logs that, so it is asked for again."""
    if isinstance(error, AirflowException):
        try:
            engine_address(operator).connect(_CONNECT_TIMEOUT_S).close()
        except ENGINE_ERRORS as cause:
            return why_away(cause)
    return why_away(error) or type(error).__name__


def _login_refused(conn_id: str | None, error: APIError) -> PlacementError:
    text = error.explanation or error
    if not conn_id:
        return EngineAwayError(f"the Docker engine refuses: {text}. `llem-airflow doctor` says more")
    # A registry with Basic authentication is quoted by the engine, with a status of the engine's own.
    if error.status_code == 401 or _REFUSED_LOGIN.search(str(text)):
        return PlacementError(
            f"the registry of docker_conn_id {conn_id!r} refuses the login: {text}. Correct login and password"
        )
    return EngineAwayError(f"the login to the registry of docker_conn_id {conn_id!r} failed: {text}")


def _reach_one(urls: str | list[str]) -> None:
    """Whether somebody listens at one of the addresses: DockerHook does not tell why nobody does, it only logs it."""
    urls = [urls] if isinstance(urls, str) else urls
    if any(url.startswith(SCHEME) for url in urls):
        return None  # EngineHook tells
    reasons = []
    for url in urls:
        try:
            return reach(url.replace("unix://var/", "unix:///var/"), _CONNECT_TIMEOUT_S)
        except DockerException as reason:
            reasons.append(str(reason))
    raise DockerException("; ".join(reasons))


def _advice(operator: LLEMExperimentOperator) -> str:
    by = (
        "the operator's docker_url"
        if operator.engine_given
        else f"connection {operator.host.name}"
        if operator.host.docker_host
        else "DOCKER_HOST"
        if os.environ.get("DOCKER_HOST")
        else ""
    )
    named = f"It is named by {by}: correct that, or start it there" if by else "Start it"
    return f"{named}; or say `runners: {{<engine>: process}}`. `llem-airflow doctor` says what is wrong"


def _engine_is_named(operator: LLEMExperimentOperator) -> bool:
    host = os.environ.get("DOCKER_HOST") or operator.host.docker_host
    return bool(host or operator.engine_given or operator.docker_conn_id)


def layers_of(operator: LLEMExperimentOperator) -> Layers:
    """Everything outside the study that names a runner or an image, as the operator's task sees it.

    Raises:
        RunnerError: ``[llem] runners`` cannot be read.
    """
    image, own = operator.image or "", operator.experiment.image
    return Layers(
        argument=operator.runner,
        environ=os.environ,
        connection=operator.host.runners,
        connection_images=operator.host.images,
        installation=installed_runners(),
        operator_image="" if image == own else image,
    )


def decide(
    operator: LLEMExperimentOperator, experiments: Sequence[Experiment], *, patience_s: float = 0.0
) -> dict[str, Choice]:
    """Runner of each engine of some experiments, with the layer that says so.

    Args:
        operator: How the engine and the host are reached; its experiment stands for all of its engine.
        experiments: Those of the run.
        patience_s: How long an engine may be away, as at a restart, where it is needed to decide, in seconds.

    Raises:
        PlacementError: A layer is wrong, or several engines have no containers.
        EngineAwayError: There is an engine that decides, and it does not answer.
    """
    try:
        said = said_by_engine(layers_of(operator), experiments)
        if not any(choice.runner == AUTO for choice in said.values()):
            return _containers_for_sessions(operator, said)
        if not _engine_is_named(operator) and not is_installed_here():
            text = f"there is no Docker engine on this machine ({DEFAULT_URL.removeprefix('unix://')} does not exist)"
            return _containers_for_sessions(operator, settled(said, engine_text=text, answers=False))
        version = _patiently(operator, patience_s).version().get("Version")
        text = f"Docker {version} answers at {operator.docker_url}"
        return _containers_for_sessions(operator, settled(said, engine_text=text, answers=True))
    except RunnerError as error:
        raise PlacementError(str(error)) from error


def _containers_for_sessions(
    operator: LLEMExperimentOperator, choices: dict[str, Choice]
) -> dict[str, Choice]:
    """The choices; a session is a living container, and nothing else will do.

    Raises:
        PlacementError: A study in sessions would run as processes.
    """
    execution = operator.study.execution
    for engine, choice in choices.items():
        if execution.in_sessions and choice.runner != DockerRunner.name:
            raise PlacementError(
                f"study_execution.isolation is {execution.isolation}, whose sessions are living containers, and "
                f"{engine} runs as a {choice.runner} ({choice.why or choice.by}): start a Docker engine, or write "
                "`isolation: container`"
            )
    return choices


def _patiently(operator: LLEMExperimentOperator, patience_s: float) -> Any:
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return engine_of(operator)
        except EngineAwayError:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(_ASK_AGAIN_S)


def pinned_choices(run: StoredRun) -> dict[str, Choice]:
    """What was decided for a run; empty before."""
    folder = run.folder.child(_FOLDER)
    if not folder.exists(_FILE):
        return {}
    return {engine: Choice.from_json(said) for engine, said in json.loads(folder.read(_FILE)).items()}


def pin_choices(run: StoredRun, choices: dict[str, Choice], *, again: bool = False) -> dict[str, Choice]:
    """Decide for a run; what was decided before stays.

    Args:
        run: The run.
        choices: Runner by engine.
        again: Decide anew, as when a person has cleared the plan, unless something was measured already.

    Returns:
        What holds for the run.
    """
    before = {} if again and not run.cycles() else pinned_choices(run)
    said = {engine: choice.to_json() for engine, choice in (choices | before).items()}
    run.folder.child(_FOLDER).write(_FILE, json_bytes(said))
    return choices | before


def choice_of(operator: LLEMExperimentOperator, run: StoredRun) -> Choice:
    """Where the operator's experiment runs in this run.

    As the run's plan task decided. Where there was none, as in a DAG written by hand, whoever comes first decides;
    an operator whose own argument names a runner needs no decision.

    Raises:
        PlacementError: A layer is wrong, or several engines have no containers.
        EngineAwayError: There is an engine that decides, and it does not answer.
    """
    engine = operator.experiment.engine
    if operator.runner and operator.runner != AUTO:
        return decide(operator, [operator.experiment])[engine]
    if engine not in (known := pinned_choices(run)):
        pin_choices(run, decide(operator, operator.study.experiments))
        known = pinned_choices(run)
    return known[engine]


def _with_own_image(operator: LLEMExperimentOperator, choice: Choice) -> Choice:
    """What was decided for a run's cycles, with the image that this one's own argument names before all others."""
    image = layers_of(operator).operator_image
    own = ((image, IMAGE_ARGUMENT),) if image else ()
    return replace(choice, images=(*own, *(each for each in choice.images if each[1] != IMAGE_ARGUMENT)))


def choose(operator: LLEMExperimentOperator, run: StoredRun, folder: Path) -> Chosen:
    """Choose runner and image of an attempt.

    Args:
        operator: Whose attempt it is.
        run: The run; it keeps what was decided.
        folder: Where the evidence of a failure lies.

    Raises:
        AttemptFailedError: There is no engine, no image, or nobody can tell what the host has.
    """
    experiment = operator.experiment
    with placing(folder):
        choice = _with_own_image(operator, choice_of(operator, run))
        layers = {"runner_by": choice.by, "runner_why": choice.why}
        if choice.runner != "container":
            return Chosen(choice.runner, operator.image, layers)
        api = engine_of(operator)
        image, by = choose_image(
            choice,
            experiment,
            cuda_major=lambda: host_cuda_major(api, default_images(experiment.engine)),
            registry=operator.host.registry,
        )
    return Chosen(choice.runner, image, {**layers, "image_by": by})


@contextlib.contextmanager
def placing(folder: Path) -> Iterator[None]:
    """What keeps an attempt from its place, as its failure.

    Args:
        folder: Where the evidence of the failure lies.

    Raises:
        AttemptFailedError: With the category of what was raised inside.
    """
    try:
        yield
    except (*ENGINE_ERRORS, PlacementError, PromptsError, NotImplementedError) as error:
        raise AttemptFailedError(_kind_of(error), str(error), folder=folder) from error


def _kind_of(error: Exception) -> Failure:
    if isinstance(error, GpuLookError):
        return failure("gpu_access", retryable=True, hint=LOOK_HINT)
    if isinstance(error, ENGINE_ERRORS):
        return classify(None, "", error=error)
    if isinstance(error, EngineAwayError):  # restarted just now, perhaps
        return failure("daemon_down")
    return failure("config", hint=CORRECT)


def make_runner(operator: LLEMExperimentOperator, name: str, run: StoredRun, folder: Path) -> Runner:
    """The runner of an operator's attempt.

    Args:
        operator: Whose attempt it is; its arguments, study and host say how it runs.
        name: Name of the runner.
        run: The run; it keeps which image and model its first cycles had.
        folder: Where the attempt's files go.

    Raises:
        PlacementError: It cannot run as it was asked.
        EngineAwayError: No Docker engine answers where a container is wanted.
        AttemptFailedError: The engine refused.
    """
    if name == KUBERNETES:
        raise PlacementError(
            "a task is a pod's from the parsing of its DAG on: say `runners: {<engine>: kubernetes}` in the study's "
            "file, or use LLEMKubernetesExperimentOperator; no other layer, and no trigger form, can name it"
        )
    if operator.attempt is None or name not in _MAKERS:
        raise PlacementError(f"found runner {name!r}; allowed: {', '.join(_MAKERS)}")
    return _MAKERS[name](operator, operator.attempt, run, folder)


def _container(
    operator: LLEMExperimentOperator, run: StoredRun, folder: Path
) -> tuple[docker.APIClient, ContainerSettings, str]:
    """The engine, how the container is made there, and what people call its image."""
    asked = container_settings(operator, operator.model_files)
    api = engine_of(operator)
    with placing(folder):
        exact = operator.earlier.pin_image(api, asked)
        if exact.image == asked.image:
            exact = as_fetched(run, api, asked)
    return api, exact, asked.image


def _in_container(
    operator: LLEMExperimentOperator, attempt: Attempt, run: StoredRun, folder: Path
) -> DockerRunner:
    api, made, image = _container(operator, run, folder)
    where: dict[str, Any] = {
        "folder": folder,
        "on_line": operator.line,
        "on_live": operator.live,
        "engine": engine_address(operator),
        "image": image,
    }
    if operator.session:
        return SessionRunner(api, attempt, made, session_settings(operator, operator.session), **where)
    return DockerRunner(api, attempt, made, **where)


def session_settings(operator: LLEMExperimentOperator, session: str) -> SessionSettings:
    """The limits of a session: of the study's and the host's the narrower counts."""
    limits, host = operator.study.execution.session, operator.host
    return SessionSettings(
        session,
        max_runtime_s=min(limits.max_runtime_seconds, host.max_runtime_s or math.inf),
        idle_s=min(limits.idle_seconds, host.max_idle_s or math.inf),
        max_restarts=limits.max_restarts,
        start_kind=WARM if operator.study.execution.engine_lives_on else EXEC,
    )


def session_container(operator: LLEMStartSessionOperator, run: StoredRun, folder: Path) -> SessionContainer:
    """The living container of an operator's session, which has not begun yet; arguments as for :func:`make_runner`."""
    assert operator.attempt is not None
    assert operator.session is not None
    api, made, _ = _container(operator, run, folder)
    return SessionContainer(
        api,
        operator.attempt,
        made,
        session_settings(operator, operator.session),
        folder=folder,
        on_line=operator.line,
        engine=engine_address(operator),
    )


def end_session(operator: LLEMStopSessionOperator, attempt: Attempt) -> None:
    """Remove the container of an operator's session and its volume; quiet where there is none.

    Args:
        operator: The session's last task.
        attempt: Its attempt; the DAG and the run count.

    Raises:
        PlacementError: The engine does not answer, or refuses the login.
        docker.errors.DockerException: The engine refuses.
    """
    assert operator.session is not None
    stop_session(_patiently(operator, GRACE_S), attempt, operator.session)


def _as_process(
    operator: LLEMExperimentOperator,
    attempt: Attempt,
    run: StoredRun,  # noqa: ARG001  # as of every runner
    folder: Path,
) -> ProcessRunner:
    if unused := arguments.without_effect(operator):
        operator.log.warning("A process is no container: %s have no effect", ", ".join(unused))
    engine = None
    with contextlib.suppress(PlacementError):  # its containers hold GPUs too, where there is one
        engine = engine_of(operator)
    return ProcessRunner(
        attempt,
        process_settings(operator, engine),
        folder=folder,
        on_line=operator.line,
        on_live=operator.live,
    )


_MAKERS: dict[str, Callable[[LLEMExperimentOperator, Attempt, StoredRun, Path], Runner]] = {
    DockerRunner.name: _in_container,
    ProcessRunner.name: _as_process,
}


class EngineHook(DockerHook):
    """The Docker client of a task: Airflow's hook, which reaches an engine behind ``ssh://`` as our commands do.

    Args:
        address: Where the engine is.
        timeout: Of each call, in seconds.
        kwargs: As of Airflow's.
    """

    def __init__(self, *, address: EngineAddress, timeout: int, **kwargs: Any) -> None:
        super().__init__(base_url=list(address.urls), tls=address.tls, timeout=timeout, **kwargs)
        self._address, self._timeout_s = address, timeout

    @cached_property
    def api_client(self) -> docker.APIClient:
        """A client of the engine, which has just answered; it is made once.

        Raises:
            airflow.sdk.exceptions.AirflowException: Nobody answers, or the login to the registry lacks something.
            docker.errors.DockerException: Nobody answers there, or the registry refuses; the text says why.
        """
        if not any(url.startswith(SCHEME) for url in self._address.urls):
            found: docker.APIClient = super().api_client
            return found
        api = self._address.connect(self._timeout_s)
        if self.docker_conn_id:
            self._log_in(api, self.docker_conn_id)
        self._client_created = True
        return api

    def _log_in(self, api: docker.APIClient, conn_id: str) -> None:
        """Log in to a registry."""
        conn: Any = self.get_connection(conn_id)
        for value, what in ((conn.host, "URL of a registry"), (conn.login, "name of a user")):
            if not value:
                raise AirflowNotFoundException(f"the connection has no {what}")
        registry = f"{conn.host}:{conn.port}" if conn.port else conn.host
        api.login(username=conn.login, password=conn.password, registry=registry, reauth=True)


def engine_address(operator: LLEMExperimentOperator) -> EngineAddress:
    """Where the operator's Docker engine is, for another process."""
    urls = [operator.docker_url] if isinstance(operator.docker_url, str) else operator.docker_url
    return EngineAddress(
        tuple(urls),
        operator.tls_ca_cert,
        operator.tls_client_cert,
        operator.tls_client_key,
        operator.tls_verify,
    )
