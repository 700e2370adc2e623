"""A stand-in for a cluster: an API server over HTTP, a scheduler, and a node that runs containers as processes.

What of a real one a runner meets is here: objects with versions, selectors, preconditions, watches that end, break and
expire, requests that are refused for a time, quotas, devices that are held, statuses that follow, logs, commands run in
a container over a WebSocket, deletion with a grace period. Images, networks and file systems are not: a container is a
process of this machine, and the paths of its mounts are rewritten to folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from kubernetes.client import Configuration, CoreV1Api

from llem_airflow.runners.cluster import client_of
from tests.kubernetes.node import Node
from tests.kubernetes.schema import wrong_in

KINDS = {"pods": "Pod", "configmaps": "ConfigMap", "secrets": "Secret", "events": "Event"}
Object = dict[str, Any]
_LOOK_S = 0.02


class Refused(web.HTTPException):  # as aiohttp calls its own
    """A refusal in the API's own form."""

    def __init__(self, status: int, reason: str, message: str, **headers: str) -> None:
        self.status_code = status
        said = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": status}
        super().__init__(text=json.dumps(said), content_type="application/json", headers=headers)


@dataclass
class Fault:
    """A refusal that requests of a kind meet for so many times.

    Attributes:
        verb: As in a role: create, get, list, watch, patch, delete, deletecollection.
        resource: As in a role: pods, pods/log, pods/exec, configmaps, secrets, events.
        times: How many requests meet it.
        status: The answer; 0 ends the connection instead.
        message: The answer's message.
        after: Whether the request is carried out before, so that only its answer is lost.
    """

    verb: str
    resource: str
    times: int = 1
    status: int = 429
    message: str = "the server has received too many requests"
    after: bool = False


@dataclass
class StandInCluster:
    """The cluster.

    Attributes:
        folder: Where volumes and logs of its pods lie.
        capacity: Devices of its one node by resource.
        faults: What requests meet.
        used: Verbs that were used, with their resources, as a role has to name them.
        keep_watches_s: How long a watch lasts at most, in seconds.
        unschedulable: What the scheduler says of pods that it has no node for, whatever is free.
        pulls: Why no container of a pod that has a node begins, as nodes say it; empty when they do.
        watches: How many watches there were.
        quota: What the admission says of pods, for as long as it is set.
        reasons: What the runtime says of a container's end, by its exit code.
        claims: The folder of each claim, as PersistentVolumeClaims.
        expires: How many of the next watches ask for a version that is not known any more.
        denied: What the account may not do, as reviews of its access say.
        classes: Names of runtime classes.
        nodes: Its nodes; the pods that are scheduled go to the first one.
        stops_at: Called with each pod that has a node; a status that it returns is what becomes of it.
    """

    folder: Path
    capacity: dict[str, int] = field(default_factory=lambda: {"nvidia.com/gpu": 2})
    faults: list[Fault] = field(default_factory=list)
    used: set[tuple[str, str]] = field(default_factory=set)
    keep_watches_s: float = 60.0
    unschedulable: str = ""
    pulls: Object = field(default_factory=dict)
    watches: int = 0
    quota: str = ""
    reasons: dict[int, str] = field(default_factory=dict)
    claims: dict[str, Path] = field(default_factory=dict)
    denied: set[tuple[str, str]] = field(default_factory=set)
    classes: tuple[str, ...] = ("nvidia",)
    nodes: list[Object] = field(default_factory=list)
    stops_at: Callable[[Object], Object | None] = lambda _: None
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    history: list[tuple[int, str, Object]] = field(default_factory=list)
    expires: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self._versions = itertools.count(1000)
        self.nodes = self.nodes or [node("node-1", self.capacity)]
        self._loop = asyncio.new_event_loop()
        self._nodes: dict[str, Node] = {}
        self._work: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def running(self) -> Iterator[StandInCluster]:
        """The cluster for as long as the block lasts."""
        thread = threading.Thread(target=self._loop.run_forever, name="stand-in cluster", daemon=True)
        thread.start()
        runner = self.call(self._serve())
        try:
            yield self
        finally:
            self.call(self._stop(runner))
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def call(self, work: Any) -> Any:
        """Do something in the cluster's own thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    @contextlib.contextmanager
    def api(self) -> Iterator[CoreV1Api]:
        """A client of it."""
        api = client_of(Configuration(host=self.url))
        try:
            yield api
        finally:
            api.api_client.rest_client.pool_manager.clear()

    def names(self, *resources: str) -> list[str]:
        """Names of the objects of some resources."""
        return [name for resource, name in list(self.objects) if resource in (resources or KINDS)]

    def pod(self, name: str) -> Object:
        return self.objects["pods", name]

    def change(self, name: str, change: Callable[[Object], None]) -> None:
        """Change a pod as the cluster itself would."""

        async def work() -> None:
            change(self.pod(name))
            await self._note("MODIFIED", "pods", name)

        self.call(work())

    async def _serve(self) -> web.AppRunner:
        app = web.Application(client_max_size=3 << 20)  # as a server takes
        root = "/api/v1/namespaces/{namespace}/{resource}"
        app.router.add_get("/version/", self._version)
        app.router.add_get("/api/v1/{resource:nodes|pods}", self._everywhere)
        app.router.add_get("/apis/node.k8s.io/v1/runtimeclasses/{name}", self._runtime_class)
        app.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review)
        app.router.add_route("*", root, self._collection)
        app.router.add_get(root + "/{name}/log", self._log)
        app.router.add_get(root + "/{name}/exec", self._exec)
        app.router.add_route("*", root + "/{name}", self._one)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _stop(self, runner: web.AppRunner) -> None:
        await runner.cleanup()
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for node in self._nodes.values():
            await node.end(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    def _meets(self, request: web.Request, verb: str, resource: str, *, after: bool = False) -> None:
        self.used.add((verb, resource))
        for fault in self.faults:
            if (fault.verb, fault.resource, fault.after) == (verb, resource, after) and fault.times:
                fault.times -= 1
                if not fault.status:
                    assert request.transport is not None
                    request.transport.abort()
                raise Refused(fault.status or 500, "TooManyRequests", fault.message, **{"Retry-After": "0"})

    async def _note(self, kind: str, resource: str, name: str) -> Object:
        made = self.objects[resource, name]
        made["metadata"]["resourceVersion"] = str(version := next(self._versions))
        if resource == "pods":
            self.history.append((version, kind, copy.deepcopy(made)))
        return made

    async def _version(self, request: web.Request) -> web.Response:
        self._meets(request, "get", "version")
        named = ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
        told = {"major": "1", "minor": "35", "gitVersion": "v1.35.0", **dict.fromkeys(named, "")}
        return web.json_response(told)

    async def _everywhere(self, request: web.Request) -> web.Response:
        """All nodes, or the pods of all namespaces."""
        resource = request.match_info["resource"]
        self._meets(request, "list", "nodes" if resource == "nodes" else "pods everywhere")
        found = (
            self.nodes
            if resource == "nodes"
            else [o for (kind, _), o in self.objects.items() if kind == resource]
        )
        return self._page([each for each in found if _fits(each, request.query)], resource, request.query)

    def _page(self, found: list[Object], resource: str, asked: Any) -> web.Response:
        begin, limit = (
            int(asked.get("continue") or 0),
            min(int(asked.get("limit") or 2), 2),
        )  # as small a page as may be
        metadata = {"resourceVersion": str(next(self._versions))}
        if "limit" in asked:
            rest = str(begin + limit) if begin + limit < len(found) else ""
            found, metadata = found[begin : begin + limit], {**metadata, "continue": rest}
        kind = {"nodes": "NodeList", "pods": "PodList"}.get(resource) or f"{KINDS[resource]}List"
        return web.json_response({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": found})

    async def _runtime_class(self, request: web.Request) -> web.Response:
        self._meets(request, "get", "runtimeclasses")
        name = request.match_info["name"]
        if name not in self.classes:
            raise Refused(404, "NotFound", f'runtimeclasses.node.k8s.io "{name}" not found')
        said = {
            "kind": "RuntimeClass",
            "apiVersion": "node.k8s.io/v1",
            "metadata": {"name": name},
            "handler": name,
        }
        return web.json_response(said)

    async def _review(self, request: web.Request) -> web.Response:
        self._meets(request, "create", "selfsubjectaccessreviews")
        said = await request.json()
        asked = said["spec"]["resourceAttributes"]
        name = "/".join(part for part in (asked["resource"], asked.get("subresource")) if part)
        return web.json_response(
            {**said, "status": {"allowed": (asked["verb"], name) not in self.denied}}, status=201
        )

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        resource, asked = request.match_info["resource"], request.query
        if request.method == "POST":
            return await self._create(request, resource)
        here = request.match_info["namespace"]
        found = [
            each
            for (kind, _), each in self.objects.items()
            if kind == resource and each["metadata"]["namespace"] == here and _fits(each, asked)
        ]
        if request.method == "DELETE":
            self._meets(request, "deletecollection", resource)
            for each in found:
                del self.objects[resource, each["metadata"]["name"]]
            return web.json_response({"kind": "Status", "status": "Success"})
        if asked.get("watch"):
            self._meets(request, "watch", resource)
            return await self._watch(request)
        self._meets(request, "list", resource)
        return self._page(found, resource, asked)

    async def _create(self, request: web.Request, resource: str) -> web.Response:
        self._meets(request, "create", resource)
        made = await request.json()
        name = made["metadata"]["name"]
        if wrong := wrong_in(made):
            raise Refused(422, "Invalid", f"{KINDS[resource]} {name!r} is invalid: {'; '.join(wrong)}")
        if resource == "pods" and self.quota:
            raise Refused(403, "Forbidden", f'pods "{name}" is forbidden: {self.quota}')
        if (resource, name) in self.objects:
            raise Refused(409, "AlreadyExists", f'{resource} "{name}" already exists')
        if request.query.get("dryRun"):
            return web.json_response(made, status=201)
        made["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            "namespace": request.match_info["namespace"],
        }
        self.objects[resource, name] = made
        if resource == "pods":
            made["status"] = {"phase": "Pending"}
            self._nodes[name] = Node(self.folder / made["metadata"]["uid"], self.reasons, self.claims)
        await self._note("ADDED", resource, name)
        if resource == "pods":
            self._start(self._live(made))
        self._meets(request, "create", resource, after=True)
        return web.json_response(made, status=201)

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _one(self, request: web.Request) -> web.Response:
        resource, name = request.match_info["resource"], request.match_info["name"]
        verb = {"GET": "get", "PATCH": "patch", "DELETE": "delete"}[request.method]
        self._meets(request, verb, resource)
        if (resource, name) not in self.objects:
            raise Refused(404, "NotFound", f'{resource} "{name}" not found')
        made = self.objects[resource, name]
        if verb == "patch":
            _merge(made, await request.json())
            await self._note("MODIFIED", resource, name)
        if verb == "delete":
            asked = await request.json() if request.can_read_body else {}
            wanted = asked.get("preconditions") or {}
            if any(made["metadata"][key] != value for key, value in wanted.items()):
                raise Refused(409, "Conflict", "Precondition failed: the object has been modified")
            if "deletionTimestamp" not in made["metadata"]:
                made["metadata"]["deletionTimestamp"] = now()
                await self._note("MODIFIED", resource, name)
                grace_s = asked.get(
                    "gracePeriodSeconds", made["spec"].get("terminationGracePeriodSeconds", 30)
                )
                self._start(self._end(name, grace_s))
        self._meets(request, verb, resource, after=True)
        return web.json_response(made)

    async def _end(self, name: str, grace_s: float) -> None:
        if name in self._nodes:  # else a test has put it there
            await self._nodes[name].end(grace_s)
        await self._note("DELETED", "pods", name)
        del self.objects["pods", name]

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since, limit_s = int(request.query["resourceVersion"]), float(request.query["timeoutSeconds"])
        response = web.StreamResponse()
        response.content_type = "application/json"
        response.enable_chunked_encoding()
        await response.prepare(request)
        if self.expires:
            self.expires -= 1
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        self.watches += 1
        deadline_s = self._loop.time() + min(limit_s, self.keep_watches_s)
        with contextlib.suppress(ConnectionError):
            while self._loop.time() < deadline_s:
                for version, kind, made in list(self.history):
                    if version > since and _fits(made, request.query):
                        await response.write(json.dumps({"type": kind, "object": made}).encode() + b"\n")
                    since = max(since, version)
                await asyncio.sleep(_LOOK_S)
        return response

    async def _log(self, request: web.Request) -> web.StreamResponse:
        self._meets(request, "get", "pods/log")
        name, container = request.match_info["name"], request.query["container"]
        if ("pods", name) not in self.objects:
            raise Refused(404, "NotFound", f'pods "{name}" not found')
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for line in self._nodes[name].lines(container, follow=request.query.get("follow") == "true"):
            try:
                self._meets(request, "follow", "pods/log")
                await response.write(line)
            except ConnectionError:
                break
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        self._meets(request, "get", "pods/exec")
        self._meets(request, "create", "pods/exec")  # as servers from 1.35 on ask for, too
        name = request.match_info["name"]
        if not self._nodes[name].runs(request.query["container"]):
            raise Refused(400, "BadRequest", f"container not found ({request.query['container']})")
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        process = await self._nodes[name].command(request.query["container"], request.query.getall("command"))
        assert process.stdout is not None
        assert process.stderr is not None
        while chunk := await process.stdout.read(4096):
            self._meets(request, "stream", "pods/exec")
            await socket.send_bytes(b"\1" + chunk)
        if said := await process.stderr.read():
            await socket.send_bytes(b"\2" + said)
        code = await process.wait()
        status = {
            "status": "Success" if code == 0 else "Failure",
            "message": f"command terminated with exit code {code}",
        }
        await socket.send_bytes(b"\3" + json.dumps(status).encode())
        await socket.close()
        async for message in socket:
            assert message.type is not WSMsgType.TEXT
        return socket

    async def _live(self, made: Object) -> None:
        """A pod's life: the scheduler, then its node."""
        name = made["metadata"]["name"]
        try:
            await self._schedule(made)
            await self._pull(made)
            if (status := self.stops_at(made)) is not None:
                made["status"] = {**made["status"], **status}
                await self._note("MODIFIED", "pods", name)
                return
            async for status in self._nodes[name].run(made, self.objects):
                made["status"] = {**made["status"], **status}
                if ("pods", name) in self.objects:
                    await self._note("MODIFIED", "pods", name)
        except KeyError:  # deleted meanwhile
            pass

    async def _schedule(self, made: Object) -> None:
        name, said = made["metadata"]["name"], ""
        while reason := self.unschedulable or self._lacks(made):
            if reason != said:
                said = reason
                made["status"]["conditions"] = [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": reason}
                ]
                await self._note("MODIFIED", "pods", name)
            await asyncio.sleep(_LOOK_S)
            self.objects["pods", name]
        made["spec"]["nodeName"] = "node-1"
        made["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        await self._note("MODIFIED", "pods", name)

    async def _pull(self, made: Object) -> None:
        name = made["metadata"]["name"]
        said: Object = {}
        while self.pulls:
            if said != self.pulls:
                said = self.pulls
                made["status"]["containerStatuses"] = [
                    _waits(each, said) for each in made["spec"]["containers"]
                ]
                await self._note("MODIFIED", "pods", name)
            await asyncio.sleep(_LOOK_S)
            self.objects["pods", name]

    def _lacks(self, made: Object) -> str:
        others = [each for (kind, _), each in self.objects.items() if kind == "pods" and each["spec"].get("nodeName")
                  and each["status"]["phase"] not in ("Succeeded", "Failed")]  # fmt: skip
        for volume in made["spec"].get("volumes") or []:
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if claim not in (None, *self.claims):
                return f'0/1 nodes are available: persistentvolumeclaim "{claim}" not found. not found'
        for resource, count in _devices(made).items():
            held = sum(_devices(each).get(resource, 0) for each in others)
            if held + count > self.capacity.get(resource, 0):
                return f"0/1 nodes are available: 1 Insufficient {resource}. preemption: not eligible."
        return ""


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _waits(container: Object, why: Object) -> Object:
    """The status of a container that has not begun."""
    said = {"image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
    return {"name": container["name"], "state": {"waiting": why}, **said}


def node(
    name: str, devices: dict[str, int], *, allocatable: dict[str, int] | None = None, **labels: str
) -> Object:
    """A node that is ready."""
    there = {name: str(count) for name, count in devices.items()}
    usable = there if allocatable is None else {name: str(count) for name, count in allocatable.items()}
    return {
        "kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}, "spec": {},
        "status": {"capacity": {"cpu": "8", **there}, "allocatable": {"cpu": "8", **usable},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


def _devices(made: Object) -> dict[str, int]:
    limits = [each.get("resources", {}).get("limits") or {} for each in made["spec"]["containers"]]
    return {name: int(value) for each in limits for name, value in each.items() if "/" in name}


def _fits(made: Object, asked: Any) -> bool:
    labels = made["metadata"].get("labels") or {}
    wanted = [part.split("=") for part in asked.get("labelSelector", "").split(",") if part]
    parts = [part for part in asked.get("fieldSelector", "").split(",") if part]
    fields = dict(part.split("=") for part in parts if "!=" not in part)
    phase = made.get("status", {}).get("phase")
    return (
        f"status.phase!={phase}" not in parts
        and all(labels.get(key) == value for key, value in wanted)
        and fields.get("metadata.name", made["metadata"]["name"]) == made["metadata"]["name"]
        and fields.get("involvedObject.name") in (None, made.get("involvedObject", {}).get("name"))
    )


def _merge(made: Object, patch: Object) -> None:
    for key, value in patch.items():
        if isinstance(value, dict):
            _merge(made.setdefault(key, {}), value)
        elif value is None:
            made.pop(key, None)
        else:
            made[key] = value
