"""How a pod is made: the attempt's container, who hands files in and keeps what comes out, and the objects beside it.

The pod begins as the one that the operator's arguments describe, in the API's own words; what an attempt needs is put
into it here. Three containers share one ``emptyDir`` at ``/run/llem``: one hands bundle and spec in from ConfigMaps and
ends, one measures, and one stays until what was measured has been taken out of it, as the volume can be read only
through a container that runs. Their processes see each other, so that the third knows when the second has ended.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from llem_airflow.protocol.files import (
    BUNDLE,
    ENV_CONFIG_PATH,
    ENV_OUTPUT_DIR,
    EXCHANGE_DIR,
    OUT_DIR,
    config_name,
)
from llem_airflow.protocol.live import ENV_LIVE
from llem_airflow.protocol.redaction import secrets_in
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.attempt import LABEL_INSTALLATION, LABEL_KEY, Attempt
from llem_airflow.runners.container_spec import HOME_VARIABLES
from llem_airflow.runners.gpus import NO_GPUS

BASE = "base"
HAND_IN = "llem-hand-in"
KEEPER = "llem-keeper"
LABEL_OWNER = "llem.owner"
"""Which try owns the pod: what the container's name says on a Docker engine, as no pod can be renamed."""
_MANAGED = {"app.kubernetes.io/managed-by": "llem-airflow"}
MANAGED = ",".join(f"{name}={value}" for name, value in _MANAGED.items())
"""Selects all that is ours."""
LABEL_POD = "llem.pod"
"""The pod that a ConfigMap or a Secret belongs to."""
CACHE = PurePosixPath("/cache")
"""Where the volume of caches is mounted."""
GPU_RESOURCE = "nvidia.com/gpu"
PART_BYTES = 768 * 1024
"""Content of one ConfigMap, which may have 1 MiB with its keys."""
MOST_PARTS = 32

_IN = "/run/llem-in"
_BUNDLE = f"{EXCHANGE_DIR}/{BUNDLE}"
_USER = 65532

HANDS_IN = f"""\
import os, pathlib
out = pathlib.Path({EXCHANGE_DIR!r})
parts = sorted(pathlib.Path({_IN!r}).glob("*.part-*"))
for name in {{part.name.rpartition(".part-")[0] for part in parts}}:
    mine = [part.read_bytes() for part in parts if part.name.rpartition(".part-")[0] == name]
    (out / name).write_bytes(b"".join(mine))
(out / {OUT_DIR!r}).mkdir(exist_ok=True)
(out / {OUT_DIR!r}).chmod(0o1777)
"""
"""Joins the parts of each file, and makes the folder for what comes out."""

_FINDS = f"""\
import os, signal, sys, time
def ours():
    for name in os.listdir("/proc"):
        try:
            said = open(f"/proc/{{name}}/cmdline", "rb").read().split(b"\\0") if name.isdigit() else []
        except OSError:
            continue
        if sys.argv[1].encode() in said and {KEEPER.encode()!r} not in said:
            yield int(name)
"""

KEEPS = (
    _FINDS
    + """\
seen = time.monotonic()
while time.monotonic() - seen < float(sys.argv[2]):
    time.sleep(min(30.0, float(sys.argv[2])))
    if any(ours()):
        seen = time.monotonic()
"""
)
"""Stays while the attempt runs, and then for as long as its result may wait to be taken."""

ENDS = (
    _FINDS
    + """\
for number in (signal.SIGTERM, signal.SIGKILL):
    for process in ours():
        try:
            os.kill(process, number)
        except OSError:
            pass
    end = time.monotonic() + float(sys.argv[2])
    while any(ours()) and time.monotonic() < end:
        time.sleep(0.05)
"""
)
"""Ends the attempt's process, at first gently; its container's others go with it."""

SENDS = f"""\
import os, sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
    for entry in sorted(os.scandir({f"{EXCHANGE_DIR}/{OUT_DIR}"!r}), key=lambda found: found.name):
        if entry.is_file(follow_symlinks=False):
            archive.add(entry.path, {OUT_DIR!r} + "/" + entry.name)
"""
"""Writes what came out to its output."""

TELLS = f"""\
import glob, json, os, sys
path = glob.glob({f"{EXCHANGE_DIR}/*_config.json"!r})[0]
said = dict(name=os.path.basename(path), spec=open(path, encoding="utf-8").read())
json.dump(dict(said, variables={{name: os.environ.get(name) for name in sys.argv[1:]}}), sys.stdout)
"""
"""Writes what the attempt was told, and variables of its own, to its output."""


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Settings of one pod.

    Attributes:
        image: Image that holds the engine.
        pod: The pod that ours begins as: what the operator's arguments ask for.
        namespace: Where it is made.
        base: Name of the attempt's container in it.
        entrypoint: What starts the bundle, whose path follows as the only argument.
        environment: Variables of the attempt; those of ``pod`` go before them.
        private_environment: Variables whose values are secrets; they go in by a Secret of the attempt's own.
        gpus: How many devices of ``gpu_resource`` it asks for.
        gpu_resource: Name of the device plugin's resource: ``nvidia.com/gpu``, ``nvidia.com/mig-1g.10gb``.
        volumes: Volumes besides, with where they are mounted in the attempt's container.
        shm_size: Size of /dev/shm, as Kubernetes writes it.
        wall_clock_s: Longest life of the attempt, in seconds, or None.
        silence_s: Longest time without output, in seconds, or None.
        gpu_idle_s: Longest time in which its GPUs compute nothing, in seconds, or None: nobody can tell here.
        start_limit_s: Longest time from its place on a node to the attempt's start, in seconds.
        stop_grace_s: Time between SIGTERM and SIGKILL, in seconds.
        api_grace_s: How long the API server may be away before the attempt fails, in seconds.
        keep_s: How long a result waits to be taken when nobody follows it any more, in seconds; then the GPU is free.
        log_bytes: Most bytes of output that are kept in container.log.
    """

    image: str
    pod: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = "default"
    base: str = BASE
    entrypoint: tuple[str, ...] = ("python3",)
    environment: Mapping[str, str] = field(default_factory=dict)
    private_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    gpus: int = 0
    gpu_resource: str = GPU_RESOURCE
    volumes: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = ()
    shm_size: str = "1Gi"
    wall_clock_s: float | None = None
    silence_s: float | None = None
    gpu_idle_s: float | None = None
    start_limit_s: float = 1800.0
    stop_grace_s: float = 10.0
    api_grace_s: float = 120.0
    keep_s: float = 3600.0
    log_bytes: int = 64 * 1024 * 1024

    def secrets(self) -> list[str]:
        """Values that no log, file or message of ours may show."""
        said = {
            each["name"]: str(each.get("value", ""))
            for each in container_in(self.pod, self.base).get("env") or []
        }
        return [*self.private_environment.values(), *secrets_in({**self.environment, **said})]


def config_maps(attempt: Attempt, bundle: bytes, spec: ExperimentSpec) -> list[dict[str, Any]]:
    """The ConfigMaps that bring bundle and spec into the pod, each below the limit of 1 MiB.

    Raises:
        ValueError: They are too many; the text says why.
    """
    files = {BUNDLE: bundle, config_name(spec.experiment_hash): spec.dumps().encode()}
    parts: list[dict[str, bytes]] = [{}]
    room = PART_BYTES
    for name, content in files.items():
        for number, begin in enumerate(range(0, len(content), PART_BYTES)):
            part = content[begin : begin + PART_BYTES]
            if len(part) > room:
                parts.append({})
                room = PART_BYTES
            parts[-1][f"{name}.part-{number:04}"] = part
            room -= len(part)
    if len(parts) > MOST_PARTS:
        size_mib = sum(map(len, files.values())) / 2**20
        raise ValueError(
            f"bundle and spec have {size_mib:.0f} MiB, and ConfigMaps bring at most "
            f"{MOST_PARTS * PART_BYTES >> 20} MiB into a pod: ask for fewer or shorter prompts"
        )
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"{attempt.container_name}-{number}",
                "labels": {**_ours(attempt), LABEL_POD: attempt.container_name},
                "annotations": attempt.labels,
            },
            "immutable": True,
            "binaryData": {key: base64.b64encode(value).decode() for key, value in part.items()},
        }
        for number, part in enumerate(parts)
    ]


def secret(attempt: Attempt, settings: PodSettings) -> dict[str, Any] | None:
    """The Secret of the attempt's private variables; None where it has none."""
    if not settings.private_environment:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": attempt.container_name,
            "labels": {**_ours(attempt), LABEL_POD: attempt.container_name},
        },
        "immutable": True,
        "type": "Opaque",
        "data": {
            key: base64.b64encode(value.encode()).decode()
            for key, value in settings.private_environment.items()
        },
    }


def pod(attempt: Attempt, experiment_hash: str, settings: PodSettings, maps: int) -> dict[str, Any]:
    """The pod of an attempt.

    Args:
        attempt: Whose pod it is; its name and labels follow from it.
        experiment_hash: Identity of the experiment.
        settings: How it is made.
        maps: How many ConfigMaps bring its files in.
    """
    made: dict[str, Any] = copy.deepcopy(dict(settings.pod))
    made |= {"apiVersion": "v1", "kind": "Pod", "metadata": _metadata(attempt, made.get("metadata") or {})}
    spec = made["spec"] = made.get("spec") or {}
    main = _main(attempt, experiment_hash, settings, container_in(made, settings.base))
    others = [each for each in spec.get("containers") or [] if each["name"] != settings.base]
    spec["containers"] = [main, *others, _keeper(main, settings)]
    spec["initContainers"] = [_hand_in(main), *(spec.get("initContainers") or [])]
    spec["volumes"] = [*(spec.get("volumes") or []), *_volumes(attempt, settings, maps)]
    spec["restartPolicy"] = "Never"
    # Nothing of the pod is PID 1 then: signals end what has no handler, and orphans are reaped.
    spec["shareProcessNamespace"] = True
    spec.setdefault("automountServiceAccountToken", False)
    spec.setdefault("enableServiceLinks", False)
    spec.setdefault("terminationGracePeriodSeconds", round(settings.stop_grace_s))
    if not spec.get("securityContext"):
        # fsGroup: a claim's volume belongs to root, and a cache must be written.
        spec["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    return made


def owner_of(try_number: int) -> str:
    """The value of the label that says which try owns a pod."""
    return f"try{try_number}"


def _metadata(attempt: Attempt, asked: Mapping[str, Any]) -> dict[str, Any]:
    labels = {
        **(asked.get("labels") or {}),
        **_ours(attempt),
        "llem.dag_id": label_value(attempt.dag_id),
        "llem.experiment": label_value(attempt.experiment_id),
        "llem.cycle": str(attempt.cycle),
        LABEL_OWNER: owner_of(attempt.try_number),
    }
    annotations = {**(asked.get("annotations") or {}), **attempt.labels}
    return {"name": attempt.container_name, "labels": labels, "annotations": annotations}


def label_value(text: str) -> str:
    """A text as a label's value may be: 63 letters, digits, dashes, dots, underscores; the annotation has all of it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-._")


def _ours(attempt: Attempt) -> dict[str, str]:
    """Labels by which all of an attempt's objects are found."""
    return {
        **_MANAGED,
        LABEL_KEY: attempt.key,
        LABEL_INSTALLATION: label_value(attempt.installation),
    }


def container_in(made: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A container of a pod by its name; empty where there is none."""
    containers = (made.get("spec") or {}).get("containers") or []
    return next((each for each in containers if each["name"] == name), {})


def _main(
    attempt: Attempt, experiment_hash: str, settings: PodSettings, asked: dict[str, Any]
) -> dict[str, Any]:
    protocol = {
        ENV_LIVE: "1",
        ENV_CONFIG_PATH: f"{EXCHANGE_DIR}/{config_name(experiment_hash)}",
        ENV_OUTPUT_DIR: f"{EXCHANGE_DIR}/{OUT_DIR}",
        **({} if settings.gpus else NO_GPUS),
    }
    said = {each["name"]: each for each in asked.get("env") or []}
    usual = {**HOME_VARIABLES, **settings.environment}
    variables = {name: {"name": name, "value": value} for name, value in usual.items()}
    private = {
        name: {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": attempt.container_name, "key": name}},
        }
        for name in settings.private_environment
    }
    ours = {name: {"name": name, "value": value} for name, value in protocol.items()}
    mounts = [dict(mount) for _, mount in settings.volumes]
    return {
        **asked,
        "name": settings.base,
        "image": settings.image,
        "command": list(settings.entrypoint),
        "args": [_BUNDLE],
        "workingDir": "/tmp",  # noqa: S108  # the pod's own
        "env": list({**variables, **said, **private, **ours}.values()),
        "volumeMounts": [*(asked.get("volumeMounts") or []), *mounts, _mount("llem-exchange", EXCHANGE_DIR),
                         _mount("llem-tmp", "/tmp"), _mount("llem-shm", "/dev/shm")],  # noqa: S108  # the pod's own
        "resources": _resources(settings, asked.get("resources") or {}),
        "securityContext": asked.get("securityContext") or _hardened(),
    }  # fmt: skip


def _hardened() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def _resources(settings: PodSettings, asked: Mapping[str, Any]) -> dict[str, Any]:
    limits = dict(asked.get("limits") or {})
    if settings.gpus:
        limits[settings.gpu_resource] = str(settings.gpus)
    return {**asked, "limits": limits} if limits else dict(asked)


def _helper(main: Mapping[str, Any], name: str, program: str, *arguments: str) -> dict[str, Any]:
    """A container of the same image, which is on the node already; it sees no GPU."""
    return {
        "name": name,
        "image": main["image"],
        **({"imagePullPolicy": main["imagePullPolicy"]} if main.get("imagePullPolicy") else {}),
        "command": ["python3", "-c", program, *arguments],
        "env": [{"name": key, "value": value} for key, value in NO_GPUS.items()],
        "volumeMounts": [_mount("llem-exchange", EXCHANGE_DIR)],
        "resources": {
            "requests": {"cpu": "10m", "memory": "32Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        },
        "securityContext": main["securityContext"],
    }


def _hand_in(main: Mapping[str, Any]) -> dict[str, Any]:
    made = _helper(main, HAND_IN, HANDS_IN)
    made["volumeMounts"].append({**_mount("llem-in", _IN), "readOnly": True})
    return made


def _keeper(main: Mapping[str, Any], settings: PodSettings) -> dict[str, Any]:
    made = _helper(main, KEEPER, KEEPS, _BUNDLE, str(settings.keep_s), KEEPER)
    # Who takes a result for a task that is over has to know what to keep out of it.
    made["env"] += [each for each in main["env"] if "secretKeyRef" in (each.get("valueFrom") or {})]
    return made


def ending(grace_s: float) -> list[str]:
    """The command that ends the attempt, for its keeper."""
    return ["python3", "-c", ENDS, _BUNDLE, str(grace_s), KEEPER]


def _mount(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "mountPath": path}


def _volumes(attempt: Attempt, settings: PodSettings, maps: int) -> list[dict[str, Any]]:
    sources = [{"configMap": {"name": f"{attempt.container_name}-{number}"}} for number in range(maps)]
    return [
        *(dict(volume) for volume, _ in settings.volumes),
        {"name": "llem-in", "projected": {"sources": sources}},
        {"name": "llem-exchange", "emptyDir": {}},
        {"name": "llem-tmp", "emptyDir": {}},
        {"name": "llem-shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm_size}},
    ]
