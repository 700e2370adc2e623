"""The runner of pods: one attempt in one pod of a Kubernetes cluster, whose labels say whose it is.

The device plugin's allocation is the lease: the pod holds its GPUs from the scheduler's decision until it has ended.
Who waits, waits in the scheduler's queue, with a pod that is pending; that needs no worker, so ``Busy.later`` names the
pod to whoever waits on, and the next ``place`` finds it by its labels.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException

from llem_airflow.protocol.files import ENVIRONMENT, EVENTS
from llem_airflow.protocol.gpus import gpus_told
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import KILL_S, Busy, Collected, Place, Runner, Store, Wait, placed_with
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.cluster import API_ERRORS, Cluster, ExecError, PodGoneError
from llem_airflow.runners.ending import CONTAINER_LOG, INSPECT, Ended, failed, read_result
from llem_airflow.runners.exchange import CollectError
from llem_airflow.runners.failures import AttemptFailedError, Failure, classify, failure, told_without_secrets
from llem_airflow.runners.output import LogSink, OnLive, Watchdog
from llem_airflow.runners.pod_log import QUIET_S, collect, follow
from llem_airflow.runners.pod_spec import (
    KEEPER,
    LABEL_OWNER,
    PodSettings,
    config_maps,
    container_in,
    ending,
    owner_of,
    pod,
    secret,
)
from llem_airflow.runners.pod_status import (
    began,
    begun,
    cannot_be_placed,
    has_node,
    image_of,
    is_over,
    last_wait,
    main_state,
    others_hold,
    unscheduled,
    why_ended,
    why_not_started,
    why_stuck,
)

_NO_WORD = "the scheduler has said nothing of the pod"
_VERDICT_S = 30.0
"""How long the scheduler may take to say anything of a pod that may not wait."""
NODE, START, QUOTA = "node", "start", "quota"
"""What a wait is for: a node, the attempt's start on its node (images are pulled meanwhile), room in a quota."""
_LOOK_HERE_S = 10.0
"""A pod that begins within this time is waited for in the worker: the way elsewhere and back takes as long."""
_HINT = "`kubectl describe nodes` says who holds the devices; raise gpu_wait_s, or ask for fewer"


@dataclass(frozen=True)
class PodPlace(Place):
    """A pod of ours that has a node.

    Attributes:
        pod: Its name.
        node: Its node.
    """

    pod: str = ""
    node: str = ""


class KubernetesRunner(Runner):
    """Runs an attempt in a pod, which goes on when its worker is killed.

    Args:
        api: A client of the cluster's API server, of ``cluster.client_of``.
        attempt: Who this is; names and labels follow from it.
        settings: How the pod is made.
        folder: Folder for the raw files of ``out/`` and the log.
        on_line: Called with every line of output, in the caller's thread.
        on_live: Called with every live record, likewise.
        bundle: What runs inside; default: the bundle of the installed packages.
    """

    name = "kubernetes"
    own_files = True
    outlives_worker = True

    def __init__(
        self,
        api: CoreV1Api,
        attempt: Attempt,
        settings: PodSettings,
        *,
        folder: Path,
        on_line: Callable[[str], None],
        on_live: OnLive | None = None,
        bundle: Path | None = None,
    ) -> None:
        self._api = api
        self._cluster = Cluster(api, settings.namespace, settings.api_grace_s)
        self._attempt = attempt
        self._owner = owner_of(attempt.try_number)
        self._settings = settings
        self._folder = folder
        self._bundle = bundle
        self._sink = LogSink(folder / CONTAINER_LOG, on_line, settings.secrets(), settings.log_bytes, on_live)
        self._pod = attempt.container_name
        self._keep = False
        self._killed = False
        self._runs = False
        self._reason = ""

    def place(self, spec: ExperimentSpec, wait: Wait = Wait()) -> Place | Busy:  # noqa: B008  # frozen
        """Take over the pod of an earlier try, or make one and wait until the scheduler has found it a node.

        Where somebody else can wait, a pod is placed when its attempt has begun: nobody waits here for an image.
        """

        def find() -> Place | Busy:
            with self._refusals():
                taken = self._adopt(spec)
                if taken is None and (wait.later or {}).get("pod"):
                    raise self._gone("it waited")
                return self._claim(spec, wait, taken)

        return placed_with(self._sink, find)

    def run(self, place: Place, spec: ExperimentSpec, store: Store) -> Collected:
        """Follow the pod to the end of the attempt; store what it left; remove it."""
        assert isinstance(place, PodPlace)
        self._runs = True
        with contextlib.closing(self._sink), told_without_secrets(self._sink.redactor), self._refusals():
            try:
                collected = self._see_through(place, spec)
            except BaseException:
                # Also a task timeout or a signal: whatever ends the wait, the pod does not run on.
                self._salvage()
                if not self._keep:
                    with contextlib.suppress(*API_ERRORS):
                        self._discard()
                raise
        store(collected)
        with contextlib.suppress(*API_ERRORS):
            self._discard()
        return collected

    def kill(self) -> None:
        """Remove the pod that this try owns; the cluster ends it, whether this worker lives on or not."""
        self._killed = True
        if not self._runs:
            self._sink.close()
        quick = Cluster(self._api, self._settings.namespace, KILL_S, within_s=KILL_S)
        quick.remove(self._pod, owner=self._owner, grace_s=1)

    def release(self) -> None:
        """Remove the pods of all tries, and what belongs to them."""
        with self._refusals():
            for found in self._cluster.pods_of(self._attempt.key):
                self._cluster.remove(found["metadata"]["name"], owner=None)
            self._cluster.sweep(self._attempt.key)

    def _adopt(self, spec: ExperimentSpec) -> PodPlace | None:
        """Go on with this try's own pod, or take over an earlier one that is under way or ended with a valid result."""
        taken: PodPlace | None = None
        for found in self._cluster.pods_of(self._attempt.key):
            name = found["metadata"]["name"]
            if found["metadata"].get("deletionTimestamp"):
                continue
            own = name == self._pod and found["metadata"]["labels"].get(LABEL_OWNER) == self._owner
            if taken is None and own:  # also one that has ended meanwhile: how is told by `run`
                self._sink.line(f"Going on with pod {name}")
                taken = PodPlace(pod=name)
            elif taken is None and self._is_worth_it(found, spec):
                self._cluster.take_over(name, self._owner)
                self._sink.line(f"Taking over pod {name} of an earlier try")
                self._pod = name
                taken = PodPlace(adopted=True, pod=name, node=found["spec"].get("nodeName", ""))
            else:
                self._cluster.remove(name, owner=None)
        if taken is None:
            self._cluster.sweep(self._attempt.key)
        return taken

    def _is_worth_it(self, found: Mapping[str, Any], spec: ExperimentSpec) -> bool:
        """Whether a pod has a node and goes on, or has ended and its keeper still has a valid result."""
        base = self._settings.base
        if not is_over(found, base):
            return has_node(found) and why_not_started(found, self._settings.image) is None
        earlier = self._folder / f"earlier-{found['metadata']['name']}"
        earlier.mkdir(exist_ok=True)
        try:
            collect(self._cluster, found["metadata"]["name"], earlier, self._sink.redactor)
            read_result(earlier, spec)
        except (*API_ERRORS, CollectError, ExecError, ProtocolError) as error:
            ended = (main_state(found, base, "terminated") or {}).get("reason")
            name = found["metadata"]["name"]
            self._sink.line(f"An earlier try left pod {name} without a result ({ended}): {error}")
            return False
        for path in earlier.iterdir():
            path.unlink()
        earlier.rmdir()
        return True

    def _claim(self, spec: ExperimentSpec, wait: Wait, taken: PodPlace | None) -> PodPlace | Busy:
        began_s = time.monotonic()
        try:
            busy = None if taken else self._create(spec, wait, began_s)
            return busy or self._scheduled(wait, taken, began_s)
        except BaseException:
            if taken is None or not taken.adopted:
                with contextlib.suppress(*API_ERRORS):
                    self._cluster.remove(self._pod, owner=None, grace_s=1)
            raise

    def _create(self, spec: ExperimentSpec, wait: Wait, began_s: float) -> Busy | None:
        """Make the pod, and before it what it needs; Busy when a quota leaves no room for it in time."""
        bundle = (self._bundle or build_bundle()).read_bytes()
        try:
            maps = config_maps(self._attempt, bundle, spec)
        except ValueError as error:
            raise AttemptFailedError(failure("config"), str(error), folder=self._folder) from error
        private = secret(self._attempt, self._settings)
        for made in (*maps, *([private] if private else [])):
            self._cluster.create(made)
        manifest = pod(self._attempt, spec.experiment_hash, self._settings, len(maps))
        while True:
            try:
                self._cluster.create(manifest)
                return None
            except ApiException as error:
                text = _message(error)
                if error.status != 403 or "exceeded quota" not in text:
                    raise
                waited_s = wait.waited_s + time.monotonic() - began_s
                left_s = wait.limit_s - waited_s
                if left_s <= 0 or not wait.here:
                    self._cluster.sweep(self._attempt.key)
                    return self._busy(text, waited_s, None if left_s <= 0 else self._later(QUOTA, left_s))
            time.sleep(min(5.0, max(0.1, left_s)))

    def _scheduled(self, wait: Wait, taken: PodPlace | None, began_s: float) -> PodPlace | Busy:
        """Wait for a node, for as long as the attempt may; who waits elsewhere, waits there for its start, too."""
        adopted = taken is not None and taken.adopted
        on_node_epoch_s = (wait.later or {}).get("on_node_epoch_s")

        def judge(found: dict[str, Any]) -> PodPlace | Busy | None:
            nonlocal on_node_epoch_s
            self._stop_if_killed()
            here_s = time.monotonic() - began_s
            node = found["spec"].get("nodeName", "")
            place = PodPlace(adopted=adopted, waited_s=here_s, pod=self._pod, node=node)
            if begun(found, self._settings.base) or (node and wait.here):
                return place
            if why := why_not_started(found, self._settings.image):
                raise self._failed(*why)
            if node:
                on_node_epoch_s = on_node_epoch_s or _now_epoch_s()
                return self._starting(found, on_node_epoch_s, here_s)
            return self._pending(found, wait, here_s)

        try:
            placed = self._cluster.until(self._pod, judge, every_s=min(5.0, wait.limit_s))
        except PodGoneError as error:
            raise self._gone("it waited") from error
        assert isinstance(placed, PodPlace | Busy)
        if isinstance(placed, Busy) and placed.later is None:
            self._cluster.remove(self._pod, owner=self._owner, grace_s=1)
        return placed

    def _pending(self, found: Mapping[str, Any], wait: Wait, here_s: float) -> Busy | None:
        """Of a pod that has no node: Busy where somebody else is to wait or the time is over, None to look again."""
        reason, waited_s = unscheduled(found), wait.waited_s + here_s
        if reason and reason != self._reason:
            self._sink.line(f"Waiting for a node: {reason}")
            self._reason = reason
        left_s = wait.limit_s - waited_s
        if not wait.here and left_s > 0 and (reason or here_s >= _LOOK_HERE_S):
            return self._busy(reason or _NO_WORD, waited_s, self._later(NODE, left_s))
        if left_s > (0.0 if reason else -_VERDICT_S):
            return None
        if reason and not others_hold(reason):
            raise self._failed(*cannot_be_placed(reason))
        return self._busy(reason or _NO_WORD, waited_s)

    def _starting(self, found: Mapping[str, Any], since_epoch_s: float, here_s: float) -> Busy | None:
        """Of a pod that has a node and has not begun: Busy where somebody else is to wait, None to look again."""
        on_node_s = _now_epoch_s() - since_epoch_s
        left_s = self._settings.start_limit_s - on_node_s
        if left_s <= 0:
            raise self._failed(*why_stuck(self._cluster.events(self._pod), last_wait(found)))
        if here_s < _LOOK_HERE_S:
            return None
        later = {**self._later(START, left_s), "on_node_epoch_s": since_epoch_s}
        text = f"pod {self._pod} is on {found['spec']['nodeName']} and has not begun after {on_node_s:.0f} s"
        return Busy(f"{text}: {last_wait(found) or 'the node says nothing yet'}", _HINT, later=later)

    def _later(self, phase: str, left_s: float) -> dict[str, Any]:
        """What whoever waits on has to know, in plain JSON values."""
        return {
            "runner": self.name,
            "phase": phase,
            "until_epoch_s": _now_epoch_s() + left_s,
            "namespace": self._settings.namespace,
            "pod": "" if phase == QUOTA else self._pod,
            "owner": self._owner,
            "base": self._settings.base,
        }

    def _busy(self, reason: str, waited_s: float, later: Mapping[str, Any] | None = None) -> Busy:
        asked = f"{self._settings.gpus} {self._settings.gpu_resource}" if self._settings.gpus else "a node"
        return Busy(f"{asked} not free after {waited_s:.0f} s: {reason}", _HINT, later=later)

    def _see_through(self, place: PodPlace, spec: ExperimentSpec) -> Collected:
        try:
            self._await_start()
            ended, fired = self._watch()
        except PodGoneError as error:
            raise self._gone() from error
        if ended["metadata"]["labels"].get(LABEL_OWNER) != self._owner:
            raise AttemptFailedError(
                failure("cancelled", retryable=False, hint="nothing: the later try goes on with the pod"),
                f"a later try has taken over pod {self._pod}",
                folder=self._folder,
            )
        self._bring_out(ended, fired)
        try:
            read_result(self._folder, spec)
        except ProtocolError as problem:
            raise self._no_result(spec, ended, fired, problem) from problem
        state = main_state(ended, self._settings.base, "terminated") or {}
        return Collected(
            folder=self._folder,
            exit_code=state.get("exitCode"),
            adopted=place.adopted,
            image=self._settings.image,
            image_digest=image_of(ended, self._settings.base),
            log=self._sink.path,
            host={
                "name": ended["spec"].get("nodeName"),
                "namespace": self._settings.namespace,
                "pod": self._pod,
            },
            gpus=gpus_seen(self._folder) if self._settings.gpus else (),
        )

    def _await_start(self) -> None:
        """Wait until the attempt's container has begun."""
        base, begin_s = self._settings.base, time.monotonic()

        def judge(found: dict[str, Any]) -> bool | None:
            self._stop_if_killed()
            if begun(found, base):
                return True
            if why := why_not_started(found, self._settings.image):
                raise self._failed(*why)
            if time.monotonic() - begin_s >= self._settings.start_limit_s:
                raise self._failed(*why_stuck(self._cluster.events(self._pod), last_wait(found)))
            return None

        self._cluster.until(self._pod, judge, every_s=min(5.0, self._settings.start_limit_s))

    def _watch(self) -> tuple[dict[str, Any], str | None]:
        """Stream until the end; returns the pod then and which limit ended it, if one did."""
        settings, begin = self._settings, began(self._cluster.pod(self._pod), self._settings.base)
        age_s = max(0.0, _now_epoch_s() - begin) if begin is not None else 0.0
        left_s = None if settings.wall_clock_s is None else max(0.0, settings.wall_clock_s - age_s)

        def end() -> None:
            try:
                quiet_s = settings.stop_grace_s * 2 + QUIET_S
                list(self._cluster.output_of(self._pod, KEEPER, ending(settings.stop_grace_s), quiet_s))
            except (*API_ERRORS, ExecError):
                with contextlib.suppress(*API_ERRORS):
                    self._cluster.remove(self._pod, owner=self._owner)

        with Watchdog(end, wall_clock_s=left_s, silence_s=settings.silence_s) as dog:
            return follow(self._cluster, self._pod, settings.base, self._sink, dog.heard), dog.fired

    def _bring_out(self, ended: Mapping[str, Any], fired: str | None) -> None:
        """Take what the attempt wrote out of the pod, while its keeper lives."""
        if not main_state(ended, KEEPER, "running"):
            return  # with the keeper the volume has gone: the pod's own status says why
        deadline_s = time.monotonic() + self._settings.api_grace_s
        while True:
            try:
                collect(self._cluster, self._pod, self._folder, self._sink.redactor)
                return
            except (*API_ERRORS, CollectError, ExecError) as error:
                if not main_state(self._still(error), KEEPER, "running"):
                    return
                if time.monotonic() >= deadline_s:
                    self._keep = fired is None
                    raise AttemptFailedError(
                        failure(
                            "daemon_down", hint="the next try takes it: see that `kubectl exec` works there"
                        ),
                        f"what the attempt wrote could not be brought out: {error}",
                        folder=self._folder,
                        evidence=f"pod {self._settings.namespace}/{self._pod}",
                        log_tail=self._sink.tail,
                    ) from error
            time.sleep(1.0)

    def _still(self, error: BaseException) -> dict[str, Any]:
        try:
            return self._cluster.pod(self._pod)
        except PodGoneError:
            raise self._gone() from error

    def _no_result(
        self, spec: ExperimentSpec, ended: Mapping[str, Any], fired: str | None, problem: ProtocolError
    ) -> AttemptFailedError:
        text = self._sink.redactor.text(json.dumps(ended, indent=1, sort_keys=True))
        (self._folder / INSPECT).write_text(text, encoding="utf-8")
        state = main_state(ended, self._settings.base, "terminated") or {}
        if fired is None and (why := why_ended(ended)):
            return self._failed(*why)
        if fired is None and ended["metadata"].get("deletionTimestamp"):
            return self._gone()
        if state.get("reason") in ("StartError", "ContainerCannotRun"):
            found = classify(state.get("exitCode"), str(state.get("message") or ""))
            return self._failed(found, f"the attempt cannot be started: {state.get('message')}")
        limits = container_in(ended, self._settings.base).get("resources", {}).get("limits") or {}
        said = Ended(
            "pod",
            int(state.get("exitCode", -1)),
            state.get("reason") == "OOMKilled",
            fired,
            self._sink.tail,
            memory=str(limits.get("memory") or ""),
        )
        return failed(self._folder, spec, problem, said, self._settings)

    def _salvage(self) -> None:
        """What an attempt that was cut short has written, as far as it is to be had at once."""
        if (self._folder / EVENTS).exists() or self._keep or self._killed:
            return
        quick = Cluster(self._api, self._settings.namespace, KILL_S, within_s=KILL_S)
        with contextlib.suppress(*API_ERRORS, CollectError, ExecError, PodGoneError):
            if quick.pod(self._pod)["metadata"]["labels"].get(LABEL_OWNER) == self._owner:
                collect(quick, self._pod, self._folder, self._sink.redactor, quiet_s=KILL_S)

    def _discard(self) -> None:
        """Remove the pod if it is still ours, and wait until its devices are free."""
        if not self._cluster.remove(self._pod, owner=self._owner):
            return
        if not self._cluster.await_gone(self._pod, self._settings.stop_grace_s + _VERDICT_S):
            self._sink.line(f"Pod {self._pod} is to be removed, and its node has not done so yet")

    def _failed(self, found: Failure, headline: str) -> AttemptFailedError:
        return AttemptFailedError(found, headline, folder=self._folder, log_tail=self._sink.tail)

    def _gone(self, doing: str = "the attempt ran") -> AttemptFailedError:
        hint = "somebody removed it, or its node was lost: `kubectl get events` says when"
        return self._failed(failure("cancelled", hint=hint), f"pod {self._pod} was removed while {doing}")

    def _stop_if_killed(self) -> None:
        if self._killed:
            raise self._failed(failure("cancelled"), "it was ended before its start")

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except API_ERRORS as error:
            self._sink.finish()
            raise self._failed(*refusal(error)) from error


def refusal(error: BaseException) -> tuple[Failure, str]:
    """What the API server's refusal means."""
    if not isinstance(error, ApiException):
        return failure("daemon_down", hint=_AWAY), f"the API server does not answer: {error}"
    text = _message(error)
    said = f"the API server refused: {error.status} {text}"
    if error.status in (401, 403):
        return failure(
            "permission", hint="give the worker's account the role of operators/KUBERNETES.md"
        ), said
    if error.status == 404:
        return failure("config", hint="make the namespace, or correct its name"), said
    if error.status in (400, 413, 422):
        return failure("config", hint="correct the argument that the message names"), said
    return failure("daemon_down", hint=_AWAY), said


_AWAY = "see that the API server answers: `kubectl get pods` with the worker's configuration"


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or error)


def _now_epoch_s() -> float:
    return time.time_ns() / 1e9


def gpus_seen(folder: Path) -> tuple[str, ...]:
    """The devices that the meter found in the container: those that the device plugin gave it."""
    try:
        said = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(str(gpu["uuid"]) for gpu in gpus_told(said) if gpu.get("uuid"))
