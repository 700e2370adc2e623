"""The node of the stand-in cluster: runs a pod's containers as processes, and keeps their output with its times."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Object = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Node:
    """Runs one pod.

    Args:
        folder: Where its volumes lie.
        reasons: What the runtime says of an end, by exit code.
        claims: Where the volumes of claims are.
    """

    def __init__(self, folder: Path, reasons: dict[int, str], claims: dict[str, Path]) -> None:
        self._folder, self._reasons, self._claims = folder, reasons, claims
        self._processes: dict[str, Process] = {}
        self._paths: dict[str, dict[str, str]] = {}
        self._lines: dict[str, list[bytes]] = {}
        self._ended: dict[str, Object] = {}
        self._began: dict[str, str] = {}
        self._wake = asyncio.Condition()
        self._stopped = False
        self._commands: list[Process] = []
        self._readers: list[asyncio.Task[None]] = []
        self._environments: dict[str, dict[str, str]] = {}

    async def run(self, made: Object, objects: dict[tuple[str, str], Object]) -> AsyncIterator[Object]:
        """The pod's statuses, one after the other."""
        spec = made["spec"]
        while why := self._lacking(spec, objects):
            objects["events", f"{made['metadata']['name']}.1"] = _failed_mount(made, why)
            await asyncio.sleep(0.05)  # a kubelet waits, too, for what is not there yet
        for container in spec.get("initContainers") or []:
            await self._begin(container, objects)
            await self._end_of(container["name"])
            yield {"initContainerStatuses": self._statuses(spec["initContainers"])}
            if self._ended[container["name"]]["exitCode"]:
                yield {"phase": "Failed"}
                return
        for container in spec["containers"]:
            await self._begin(container, objects)
        yield {"phase": "Running", "containerStatuses": self._statuses(spec["containers"])}
        names = {each["name"] for each in spec["containers"]}
        known = 0
        while known < len(names):
            await self._more_ended(names, known)
            known = len(names & set(self._ended))
            yield {"containerStatuses": self._statuses(spec["containers"])}
        good = all(self._ended[name]["exitCode"] == 0 for name in names)
        yield {"phase": "Succeeded" if good else "Failed"}

    async def lines(self, container: str, *, follow: bool) -> AsyncIterator[bytes]:
        """A container's output, to its end when it is followed."""
        sent = 0
        lines = self._lines.get(container, [])
        while True:
            while sent < len(lines):
                yield lines[sent]
                sent += 1
            if not follow or (container in self._ended and sent == len(lines)):
                return
            async with self._wake:
                if sent == len(lines) and container not in self._ended:
                    await self._wake.wait()

    def runs(self, container: str) -> bool:
        """Whether a container has begun and not ended."""
        return container in self._processes and container not in self._ended

    async def command(self, container: str, words: list[str]) -> Process:
        """Run a command in a container."""
        process = await self._spawn(container, words, self._environments[container], stderr=PIPE)
        self._commands.append(process)
        return process

    async def end(self, grace_s: float) -> None:
        """SIGTERM to every container, then SIGKILL."""
        self._stopped = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            for name, process in self._processes.items():
                if name not in self._ended:
                    _signal(process, number)
            if number is signal.SIGTERM:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._all_ended(), grace_s)
        await self._all_ended()
        for process in self._commands:
            _signal(process, signal.SIGKILL)
            await process.communicate()

    async def _all_ended(self) -> None:
        async with self._wake:
            await self._wake.wait_for(lambda: set(self._processes) <= set(self._ended))

    async def _more_ended(self, names: set[str], known: int) -> None:
        async with self._wake:
            await self._wake.wait_for(lambda: len(names & set(self._ended)) > known)

    async def _end_of(self, container: str) -> None:
        async with self._wake:
            await self._wake.wait_for(lambda: container in self._ended)

    def _lacking(self, spec: Object, objects: dict[tuple[str, str], Object]) -> str:
        """Make the volumes' folders; why one cannot be made yet, or nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for volume in spec.get("volumes") or []:
            folder = self._folder / volume["name"]
            why = f'MountVolume.SetUp failed for volume "{volume["name"]}" : '
            there = self._claims.get((volume.get("persistentVolumeClaim") or {}).get("claimName", ""))
            if path := (volume.get("hostPath") or {}).get("path"):
                there = Path(path)
                if not there.is_dir():
                    return f"{why}hostPath type check failed: {path} is not a directory"
            if there is not None and not folder.is_symlink():
                folder.symlink_to(there)
            folder.mkdir(exist_ok=True)
            for source in (volume.get("projected") or {}).get("sources") or []:
                name = source["configMap"]["name"]
                if (found := objects.get(("configmaps", name))) is None:
                    return f'{why}configmap "{name}" not found'
                for key, value in found["binaryData"].items():
                    (folder / key).write_bytes(base64.b64decode(value))
        return ""

    async def _begin(self, container: Object, objects: dict[tuple[str, str], Object]) -> None:
        if self._stopped:
            raise KeyError(container["name"])
        name = container["name"]
        paths = {mount["mountPath"]: str(self._folder / mount["name"]) for mount in container["volumeMounts"]}
        self._paths[name] = paths
        environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        for variable in container.get("env") or []:
            environment[variable["name"]] = self._inside(name, _value(variable, objects))
        self._environments[name] = environment
        words = [*container["command"], *(container.get("args") or [])]
        process = await self._spawn(name, words, environment, stderr=STDOUT)
        self._processes[name], self._lines[name], self._began[name] = process, [], now()
        self._readers.append(asyncio.get_running_loop().create_task(self._read(name, process)))

    async def _spawn(
        self, name: str, words: list[str], environment: dict[str, str], *, stderr: int
    ) -> Process:
        first, *others = (self._inside(name, word) for word in words)
        return await asyncio.create_subprocess_exec(
            sys.executable if first == "python3" else first,
            *others,
            cwd=self._folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=stderr,
            start_new_session=True,
            limit=1 << 24,
        )

    def _inside(self, container: str, text: str) -> str:
        paths = self._paths[container]
        longest_first = sorted(paths, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda found: paths[found[0]], text)

    async def _read(self, name: str, process: Process) -> None:
        reading = asyncio.get_running_loop().create_task(self._take(name, process))
        code = await process.wait()
        _signal(process, signal.SIGKILL)  # a runtime ends what else is in the container
        await reading
        async with self._wake:
            code = 128 - code if code < 0 else code
            self._ended[name] = {"exitCode": code, "reason": self._reasons.get(code, "Error" if code else "Completed"),
                                 "startedAt": self._began[name], "finishedAt": now()}  # fmt: skip
            self._wake.notify_all()

    async def _take(self, name: str, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
            # Of a node's clock: no two lines have the same time.
            text = f"{stamp}{len(self._lines[name]) % 1000:03}Z ".encode() + line.rstrip(b"\n") + b"\n"
            async with self._wake:
                self._lines[name].append(text)
                self._wake.notify_all()

    def _statuses(self, containers: list[Object]) -> list[Object]:
        found = []
        for each in containers:
            name = each["name"]
            state: Object = {"waiting": {"reason": "PodInitializing"}}
            if name in self._ended:
                state = {"terminated": dict(self._ended[name])}
            elif name in self._began:
                state = {"running": {"startedAt": self._began[name]}}
            digest = f"docker.io/library/{each['image']}@sha256:{'0' * 64}"
            found.append(
                {
                    "name": name,
                    "state": state,
                    "image": each["image"],
                    "imageID": digest,
                    "ready": True,
                    "restartCount": 0,
                }
            )
        return found


def _failed_mount(made: Object, why: str) -> Object:
    name = made["metadata"]["name"]
    return {
        "kind": "Event", "apiVersion": "v1", "type": "Warning", "reason": "FailedMount", "message": why,
        "metadata": {"name": f"{name}.1", "namespace": made["metadata"]["namespace"]}, "involvedObject": {"name": name},
    }  # fmt: skip


def _value(variable: Object, objects: dict[tuple[str, str], Object]) -> str:
    if "valueFrom" not in variable:
        return str(variable.get("value", ""))
    source = variable["valueFrom"]["secretKeyRef"]
    return base64.b64decode(objects["secrets", source["name"]]["data"][source["key"]]).decode()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
