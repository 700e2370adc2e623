"""The API server of a Kubernetes cluster, as a runner uses it: patiently, in plain JSON values.

An API server answers 429 and 5xx now and then, ends watches when it likes, and forgets old versions of what is watched
(410): none of that is a failure of the attempt. Verbs used here are those of the manifest in operators/KUBERNETES.md.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, TypeVar

from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL, websocket_call
from kubernetes.watch import Watch
from urllib3.exceptions import HTTPError
from websocket import WebSocketException

from llem_airflow.runners.attempt import LABEL_KEY
from llem_airflow.runners.pod_spec import LABEL_OWNER, LABEL_POD

T = TypeVar("T")

API_ERRORS = (ApiException, HTTPError)
"""What a call raises when the server refuses or cannot be reached."""

# As kubernetes.stream.stream, which keeps all that a command has written in memory besides.
_STREAM = partial(stream.func, partial(websocket_call, capture_all=False), None)
_RETRY_EVERY_S = 1.0
_LONGEST_WATCH_S = 30.0
_CONNECT_S = 10.0
_READ_S = 60.0
_CHUNK_S = 1.0
_PAGE = 500
_BIG_PAGE = 20


class PodGoneError(RuntimeError):
    """The pod is not there any more."""


class ExecError(RuntimeError):
    """A command in a container failed or was cut off; the text says how."""


def client_of(configuration: Configuration) -> CoreV1Api:
    """A client that asks once: its own retries, of which a configuration has three, would take four times a limit."""
    once = copy.copy(configuration)
    once.retries = False
    return CoreV1Api(ApiClient(once))


def is_transient(error: BaseException) -> bool:
    """Whether asking again can help: too many requests, a fault of the server's, or no answer."""
    if isinstance(error, ApiException):
        return may_pass(error.status)
    return isinstance(error, HTTPError)


def may_pass(status: int | None) -> bool:
    """Whether an answer of the API server's may be another one next time."""
    return status in (0, 408, 429) or (status or 0) >= 500


class Cluster:
    """Pods of ours, and what belongs to them, in one namespace.

    Args:
        api: The client, of :func:`client_of`.
        namespace: The namespace.
        patience_s: How long the server may be away or refuse for want of capacity, in seconds.
        within_s: No call goes on for longer than this from now, in seconds.
    """

    def __init__(
        self, api: CoreV1Api, namespace: str, patience_s: float, *, within_s: float = math.inf
    ) -> None:
        self._api = api
        self.namespace = namespace
        self._patience_s = patience_s
        self._deadline_s = time.monotonic() + within_s

    def create(self, made: Mapping[str, Any]) -> None:
        """Make an object; one of that name is taken for the one of an answer that was lost."""
        make = {
            "Pod": self._api.create_namespaced_pod,
            "ConfigMap": self._api.create_namespaced_config_map,
            "Secret": self._api.create_namespaced_secret,
        }[made["kind"]]
        try:
            self.ask(make, self.namespace, made)
        except ApiException as error:
            if error.status != 409:
                raise

    def pod(self, name: str) -> dict[str, Any]:
        """The pod as it is now.

        Raises:
            PodGoneError: There is none.
        """
        try:
            return self._json(self.ask(self._api.read_namespaced_pod, name, self.namespace))
        except ApiException as error:
            if error.status == 404:
                raise PodGoneError(name) from error
            raise

    def pods_of(self, key: str) -> list[dict[str, Any]]:
        """The pods that any try of an attempt's cycle made."""
        listed = self.ask(self._api.list_namespaced_pod, self.namespace, label_selector=f"{LABEL_KEY}={key}")
        return [self._json(each) for each in listed.items]

    def pods(self, labels: str = "", *, fields: str = "", everywhere: bool = False) -> list[dict[str, Any]]:
        """Pods by selectors, in pages; ``everywhere`` means in all namespaces."""
        where = (
            (self._api.list_pod_for_all_namespaces,)
            if everywhere
            else (self._api.list_namespaced_pod, self.namespace)
        )
        return self._pages(*where, label_selector=labels, field_selector=fields)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes."""
        return self._pages(self._api.list_node)

    def beside(self, labels: str) -> list[dict[str, Any]]:
        """The metadata of ConfigMaps by a selector; each has up to 1 MiB besides."""
        method = self._api.list_namespaced_config_map
        found = self._pages(method, self.namespace, label_selector=labels, page=_BIG_PAGE)
        return [each["metadata"] for each in found]

    def _pages(
        self, method: Callable[..., Any], *args: Any, page: int = _PAGE, **kwargs: Any
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            listed = self.ask(method, *args, limit=page, **kwargs)
            found += map(self._json, listed.items)
            if not listed.metadata._continue:  # noqa: SLF001  # as the client calls the API's `continue`
                return found
            kwargs["_continue"] = listed.metadata._continue  # noqa: SLF001

    def until(
        self, name: str, judge: Callable[[dict[str, Any]], T | None], every_s: float = _LONGEST_WATCH_S
    ) -> T:
        """Show ``judge`` the pod now, whenever it has changed, and every so many seconds, until it returns something.

        Raises:
            PodGoneError: There is no such pod any more.
        """
        limit_s = max(1, math.floor(min(every_s, _LONGEST_WATCH_S)))
        while True:
            pod, version = self._listed(name)
            if (found := judge(pod)) is not None:
                return found
            try:
                with contextlib.closing(self._changes(name, version, limit_s)) as changes:
                    for changed in changes:
                        if (found := judge(changed)) is not None:
                            return found
            except (
                ApiException
            ) as error:  # of a server that has no room for watches, or has dropped old versions
                if error.status != 410:
                    time.sleep(_pause_s(error))
            except HTTPError:
                time.sleep(_RETRY_EVERY_S)

    def _listed(self, name: str) -> tuple[dict[str, Any], str]:
        """The pod, and the version of the list: a pod's own may be older than what a server can be asked from."""
        listed = self.ask(
            self._api.list_namespaced_pod, self.namespace, field_selector=f"metadata.name={name}"
        )
        if not listed.items:
            raise PodGoneError(name)
        return self._json(listed.items[0]), str(listed.metadata.resource_version)

    def _changes(self, name: str, version: str, limit_s: int) -> Generator[dict[str, Any]]:
        events = Watch().stream(
            self._api.list_namespaced_pod,
            self.namespace,
            field_selector=f"metadata.name={name}",
            resource_version=version,
            timeout_seconds=limit_s,
            _request_timeout=(_CONNECT_S, limit_s + _CONNECT_S),
        )
        with contextlib.closing(events):
            for event in events:
                if event["type"] == "DELETED":
                    raise PodGoneError(name)
                yield event["raw_object"]

    def take_over(self, name: str, owner: str) -> None:
        """Write the try that owns the pod."""
        self.ask(
            self._api.patch_namespaced_pod,
            name,
            self.namespace,
            {"metadata": {"labels": {LABEL_OWNER: owner}}},
        )

    def remove(self, name: str, *, owner: str | None, grace_s: float | None = None) -> bool:
        """Remove a pod and what belongs to it; whether it was there and owned by ``owner``.

        Args:
            name: The pod.
            owner: Whoever has taken it over meanwhile keeps it; None for whosever it is.
            grace_s: Between SIGTERM and SIGKILL, in seconds; None for the pod's own.
        """
        grace = {} if grace_s is None else {"gracePeriodSeconds": math.ceil(grace_s)}
        while True:
            try:
                found = self.pod(name)["metadata"]
            except PodGoneError:
                self._remove_beside(f"{LABEL_POD}={name}")
                return False
            if owner is not None and (found.get("labels") or {}).get(LABEL_OWNER) != owner:
                return False
            same = {"preconditions": {"uid": found["uid"], "resourceVersion": found["resourceVersion"]}}
            try:
                self.ask(self._api.delete_namespaced_pod, name, self.namespace, body={**grace, **same})
            except ApiException as error:
                if error.status == 409:  # it has changed since; look again whose it is
                    continue
                if error.status != 404:
                    raise
            self._remove_beside(f"{LABEL_POD}={name}")
            return True

    def _remove_beside(self, labels: str) -> None:
        # ConfigMaps last: by them garbage collection sees that something is left.
        for remove in (
            self._api.delete_collection_namespaced_secret,
            self._api.delete_collection_namespaced_config_map,
        ):
            self.ask(remove, self.namespace, label_selector=labels)

    def sweep(self, key: str) -> None:
        """Remove what belongs to pods of an attempt's cycle that are not there, or never were."""
        self._remove_beside(f"{LABEL_KEY}={key}")

    def await_gone(self, name: str, limit_s: float) -> bool:
        """Wait until a removed pod has ended, for so many seconds; whether it has."""
        deadline_s = time.monotonic() + limit_s
        try:
            self.until(name, lambda _: True if time.monotonic() >= deadline_s else None, every_s=1.0)
        except PodGoneError:
            return True
        return False

    def events(self, name: str) -> list[str]:
        """Warnings about a pod, the last one last."""
        found = self.ask(
            self._api.list_namespaced_event,
            self.namespace,
            field_selector=f"involvedObject.name={name},type=Warning",
        )
        return [f"{each.reason}: {each.message}" for each in found.items]

    def log(self, name: str, container: str, *, since_s: float | None, follow: bool) -> Generator[bytes]:
        """A container's output in pieces, each line with its time; one that is followed ends when the connection does.

        Args:
            name: The pod.
            container: The container.
            since_s: How old the first line may be, in seconds; None for all.
            follow: Whether to wait for more.

        Raises:
            PodGoneError: There is no such pod any more.
            HTTPError: The connection broke before the end of what there was.
        """
        since = {} if since_s is None else {"since_seconds": math.ceil(since_s)}
        try:
            response = self.ask(
                self._api.read_namespaced_pod_log,
                name,
                self.namespace,
                container=container,
                follow=follow,
                timestamps=True,
                _preload_content=False,
                **since,
            )
        except ApiException as error:
            if error.status == 404:
                raise PodGoneError(name) from error
            raise
        try:
            yield from response.stream(amt=None, decode_content=False)
        except HTTPError:
            if not follow:
                raise
            # Whether the container goes on is what the next look says.
        finally:
            response.close()
            response.release_conn()

    def output_of(self, name: str, container: str, command: list[str], limit_s: float) -> Generator[bytes]:
        """What a command that is run in a container writes to its output.

        Raises:
            ExecError: It could not be started, failed, was cut off, or wrote nothing for ``limit_s`` seconds.
        """
        # Its own client: the call takes the client's way to send a request away for as long as it lasts.
        api = CoreV1Api(ApiClient(self._api.api_client.configuration))
        how = {"stdout": True, "stderr": True, "stdin": False, "tty": False, "binary": True}
        try:
            socket = _STREAM(
                api.connect_get_namespaced_pod_exec,
                name,
                self.namespace,
                container=container,
                command=command,
                _preload_content=False,
                **how,
            )
        except (ApiException, AttributeError) as error:  # it decodes the text of a refusal that has none
            raise ExecError(f"the command could not be started: {error.__context__ or error}") from error
        said = b""
        quiet_until_s = time.monotonic() + limit_s
        try:
            while socket.is_open():
                try:
                    socket.update(timeout=_CHUNK_S)
                    said += socket.read_channel(STDERR_CHANNEL)
                except (WebSocketException, OSError) as error:
                    raise ExecError(f"the connection broke: {error}") from error
                if chunk := socket.read_channel(STDOUT_CHANNEL):
                    quiet_until_s = time.monotonic() + limit_s
                    yield chunk
                elif time.monotonic() >= quiet_until_s:
                    raise ExecError(f"the command wrote nothing for {limit_s:.0f} s")
            if rest := socket.read_channel(STDOUT_CHANNEL):
                yield rest
            _check_end(socket.read_channel(ERROR_CHANNEL), said)
        finally:
            socket.close(timeout=1)
            socket.sock.shutdown()  # close() leaves the connection open that the server has closed first

    def ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of a client with the patience of all calls here."""
        begin_s = time.monotonic()
        while True:
            left_s = self._left_s()
            timeouts = {"_request_timeout": (min(_CONNECT_S, left_s), min(_READ_S, left_s))}
            try:
                return method(*args, **timeouts, **kwargs)
            except API_ERRORS as error:
                pause_s = _pause_s(error)
                over = time.monotonic() + pause_s - begin_s >= min(self._patience_s, self._left_s())
                if not is_transient(error) or over:
                    raise
                time.sleep(pause_s)

    def _left_s(self) -> float:
        return max(0.1, self._deadline_s - time.monotonic())

    def _json(self, made: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._api.api_client.sanitize_for_serialization(made)
        return found


def _pause_s(error: BaseException) -> float:
    """How long to wait before asking again: what the server says, where it says so."""
    said = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return float(said) if str(said).isdecimal() else _RETRY_EVERY_S


def _check_end(status: bytes, said: bytes) -> None:
    """What the server says of the command's end; a connection that is cut off says nothing.

    Raises:
        ExecError: It was not a success.
    """
    try:
        found = json.loads(status)
    except ValueError:
        raise ExecError("the connection was cut off before the command had ended") from None
    if found.get("status") != "Success":
        text = said.decode("utf-8", "replace").strip().splitlines()[-1:] or [found.get("message", "")]
        raise ExecError(f"the command failed: {text[0]}")
