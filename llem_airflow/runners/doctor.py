"""The doctor: what this machine has for running experiments, each line with what to do about it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError

from llem_airflow.protocol.gpu_profile import GpuProfile, Sensor
from llem_airflow.results.folder import Folder, why_store_fails
from llem_airflow.results.records import read_profile
from llem_airflow.runners.attempt import LABEL_SESSION
from llem_airflow.runners.claims import engine_clock_offset_s
from llem_airflow.runners.engine import ENGINE_ERRORS, LIVE_STATES, connect, why_away
from llem_airflow.runners.failures import classify
from llem_airflow.runners.gc import find_leftovers
from llem_airflow.runners.gpus import (
    GpuLookError,
    engine_names_gpus,
    free_bytes_there,
    inventory,
    local_inventory,
    on_this_machine,
)
from llem_airflow.runners.hosts import HERE, Host, answers_of, targets
from llem_airflow.runners.images import default_image, default_images, digest, host_cuda_major
from llem_airflow.runners.ssh import SSHError
from llem_airflow.text.terminal import Folding, console, show

OK, WARN, FAIL = "ok", "warn", "fail"
ENGINES = ("transformers", "vllm", "tensorrt")
_OLDEST_API = (1, 41)
_DISK_WARN_BYTES, _DISK_FAIL_BYTES = 50 * 10**9, 5 * 10**9
_MAKE_ROOM = "make room on the engine's host: `docker system df`, `llem-airflow gc`"
_MEMORY_WARN_BYTES = 8 * 10**9
_CONNECT_TIMEOUT_S = 15
"""A login by ssh over a jump host takes seconds, and so does the command there."""
_CLOCK_S = 2.0
"""Clocks of hosts may differ by so much: an engine tells its time in whole seconds, and asking takes a moment."""
_QUEUED_S = 300.0
"""A task that has waited so long in a queue of which none runs waits for a worker that is not there."""
_DAY_S = 86400.0
_STYLES = {"ok": "", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: ok | warn | fail.
        text: What was found.
        fix: What to do; empty when it is ok.
        host: The host that it is about; empty for this machine.
    """

    name: str
    status: str
    text: str
    fix: str = ""
    host: str = ""


def examine(environ: Mapping[str, str] = os.environ, hosts: Sequence[Host] = (HERE,)) -> list[Check]:
    """Look at everything that an experiment needs. Never raises: what cannot be looked at is a finding.

    Args:
        environ: Variables of the worker.
        hosts: Whose engines are looked at; one without an address is what ``DOCKER_HOST`` names.
    """
    checks: list[Check] = []
    for host in hosts:
        checks += [dataclasses.replace(each, host=host.name) for each in _host(host, environ)]
    return [*checks, *_power_meters(environ), results(_root_of(environ)), _process_runner(), _token(environ)]


def _host(host: Host, environ: Mapping[str, str]) -> list[Check]:
    if host.problem:
        return [Check("connection", FAIL, host.problem, "correct it: Admin > Connections")]
    checks: list[Check] = []
    try:
        with _client(host, environ) as api:
            checks += _engine(api, environ)
            if host.name:
                checks += [_clock(api), *_kinds(api, host, environ)]
    except ENGINE_ERRORS as error:
        checks.append(_no_engine(error, environ, host))
    return [*checks, *_queue(host)]


def _client(host: Host, environ: Mapping[str, str]) -> docker.APIClient:
    if host.address.urls:
        return host.address.connect(_CONNECT_TIMEOUT_S)
    return connect(environ, timeout_s=_CONNECT_TIMEOUT_S)


def _clock(api: docker.APIClient) -> Check:
    offset_s = engine_clock_offset_s(api)
    if abs(offset_s) <= _CLOCK_S:
        return Check("clock", OK, f"within {_CLOCK_S:g} s of this machine's")
    way = "ahead of" if offset_s > 0 else "behind"
    return Check(
        "clock",
        WARN,
        f"{abs(offset_s):.0f} s {way} this machine's: times of attempts and of the run do not fit together",
        "set both by NTP (`timedatectl set-ntp true`)",
    )


def _kinds(api: docker.APIClient, host: Host, environ: Mapping[str, str]) -> list[Check]:
    """Whether the host has the kinds of GPU that its connection says."""
    present = _python_image(api, environ)
    if present is None or not host.gpu_kinds:
        return []
    try:
        found = {gpu.name for gpu in inventory(api, present).boards}
    except GpuLookError:  # the line about GPUs says so
        return []
    if not found or found == set(host.gpu_kinds):
        return []
    text = f"gpu_kinds of the connection is {', '.join(host.gpu_kinds)}, and the driver says {', '.join(sorted(found))}"
    return [Check("gpu kinds", WARN, text, "write what the driver says into the connection")]


def _queue(host: Host) -> list[Check]:
    """Whether somebody takes the tasks of the host's queue, and whether its pool is there."""
    checks = []
    if host.no_pool:
        fix = f'`airflow pools set {host.pool} 1 "GPUs of {host.name}"`, a slot for each GPU'
        checks.append(Check("pool", FAIL, f"there is no pool {host.pool!r}: no task of it is started", fix))
    if host.waits_s is not None and host.waits_s > _QUEUED_S and not host.running:
        text = (
            f"a task has waited in queue {host.queue!r} for {host.waits_s / 60:.0f} min and none of it runs"
        )
        fix = f"start a worker on the host: `airflow celery worker --queues {host.queue}`"
        checks.append(Check("queue", FAIL, text, fix))
    return checks


def worst(checks: list[Check]) -> int:
    """Exit code: 1 when something fails, else 0."""
    return int(any(check.status == FAIL for check in checks))


def _no_engine(error: Exception, environ: Mapping[str, str], host: Host = HERE) -> Check:
    where = next(iter(host.address.urls), None) or environ.get("DOCKER_HOST") or "/var/run/docker.sock"
    found = classify(None, "", error=error)
    text = f"no engine answers at {where}: {_reason(error)}"
    if host.address.urls:
        fix = "start it there, let this machine through to it, or correct the host of the connection"
        return Check("engine", FAIL, text, fix)
    if found.category == "permission":
        return Check(
            "engine", FAIL, text, "add your user to the group `docker` and log in again, or set DOCKER_HOST"
        )
    if not any(map(shutil.which, ("docker", "dockerd"))) and not environ.get("DOCKER_HOST"):
        fix = "install Docker, or run without containers: `runners: {transformers: process}` in the study"
        return Check("engine", WARN, f"{text}; Docker is not installed", fix)
    return Check("engine", FAIL, text, "start it (`systemctl start docker`), or correct DOCKER_HOST")


def _reason(error: BaseException) -> str:
    if isinstance(error, SSHError):
        return error.reason
    for sign, words in (
        ("ermission denied", "permission denied"),
        ("No such file", "there is no such socket"),
        ("Name or service not known", "its name cannot be resolved (DNS)"),
        ("Temporary failure in name resolution", "its name cannot be resolved (DNS)"),
        ("No address associated with hostname", "its name cannot be resolved (DNS)"),
        ("Connection refused", "nobody listens there"),
        ("timed out", f"it did not answer in {_CONNECT_TIMEOUT_S} s"),
    ):
        if sign in str(error):
            return words
    return why_away(error)


def _engine(api: docker.APIClient, environ: Mapping[str, str]) -> list[Check]:
    info = api.info()
    looks: tuple[Callable[[], Check | list[Check]], ...] = (
        lambda: _version(api, info),
        lambda: _rights(api),
        lambda: _images(api, environ),
        lambda: _gpus(api, environ),
        lambda: _disk(api, info, environ),
        lambda: _memory(info),
        lambda: _leftovers(api),
        lambda: may_execute(api),
        lambda: sessions(api),
    )
    checks: list[Check] = []
    for look in looks:
        try:
            found = look()
        except ENGINE_ERRORS as error:
            found = Check("engine", WARN, f"it refused a question: {error}", "look at the engine's log")
        checks += found if isinstance(found, list) else [found]
    return checks


def _version(api: docker.APIClient, info: Mapping[str, Any]) -> Check:
    text = f"Docker {info.get('ServerVersion')} (API {api.api_version}) on {info.get('OperatingSystem')}"
    if tuple(int(part) for part in str(api.api_version).split(".")) < _OLDEST_API:
        return Check("engine", FAIL, text, "update Docker to 20.10 or newer")
    return Check("engine", OK, text)


def _rights(api: docker.APIClient) -> Check:
    name = f"llem-doctor-{os.getpid()}"
    try:
        api.create_volume(name)
        api.remove_volume(name)
    except APIError as error:
        fix = "a proxy or policy in front of the engine must allow volumes, containers and the archive API"
        return Check("permissions", FAIL, f"volumes cannot be made: {error.explanation or error}", fix)
    return Check("permissions", OK, "volumes can be made and removed")


def _images(api: docker.APIClient, environ: Mapping[str, str]) -> list[Check]:
    checks = []
    for engine in ENGINES:
        name = _image(api, engine, environ)
        if digest(api, name) is not None:
            checks.append(Check(f"image {engine}", OK, name))
            continue
        there = [image for image in default_images(engine) if digest(api, image) is not None]
        text = f"{name} is not on this engine" + f"; {', '.join(there)} is" * bool(there)
        checks.append(Check(f"image {engine}", WARN, text, f"{_how_to_get(name)}, if you use it"))
    return checks


def _image(api: docker.APIClient, engine: str, environ: Mapping[str, str]) -> str:
    """What an attempt with a GPU would take on this host, when neither study nor connection name one."""
    if named := environ.get(f"LLEM_IMAGE_{engine.upper()}"):
        return named
    try:
        return default_image(engine, host_cuda_major(api, python_images(environ)))
    except GpuLookError:  # the line about GPUs says so
        return default_image(engine)


def _how_to_get(name: str) -> str:
    if name.startswith("llem-airflow/pytorch-cpu"):
        return "`images/build cpu`"
    if name.startswith("llem-airflow/"):
        return "images/pytorch/README.md says how to build it"
    return f"`docker pull {name}`"


def _gpus(api: docker.APIClient, environ: Mapping[str, str]) -> Check:
    present = _python_image(api, environ)
    if present is None:
        named = " has the NVIDIA runtime and" if engine_names_gpus(api) else ""
        return Check(
            "gpu", WARN, f"not known: the engine{named} has no image to ask the driver from", "build an image"
        )
    try:
        found = inventory(api, present)
    except GpuLookError as error:
        return Check("gpu", FAIL, f"not known: {error}", "`nvidia-smi` on the engine's host says more")
    if found.gpus:
        names = ", ".join(f"{gpu.index} {gpu.name}" for gpu in found.gpus)
        seen = f"seen from a container of {present}"
        return Check("gpu", OK, f"driver {found.driver}, CUDA {found.cuda_major}: {names}; {seen}")
    fix = "for a GPU: install the driver and the NVIDIA Container Toolkit; without one, power is an estimate"
    return Check("gpu", FAIL if found.hidden else WARN, found.absent, fix)


def python_images(environ: Mapping[str, str]) -> list[str]:
    """Images with Python that an engine may have, from whose containers its host's driver can be asked."""
    named = [environ[name] for engine in ENGINES if (name := f"LLEM_IMAGE_{engine.upper()}") in environ]
    return [*named, *(image for engine in ENGINES for image in default_images(engine))]


def _python_image(api: docker.APIClient, environ: Mapping[str, str]) -> str | None:
    return next((name for name in python_images(environ) if digest(api, name) is not None), None)


def _disk(api: docker.APIClient, info: Mapping[str, Any], environ: Mapping[str, str]) -> Check:
    """Room on the engine's disk, seen from here or from a container."""
    root = Path(str(info.get("DockerRootDir") or ""))
    present = _python_image(api, environ)
    try:
        if on_this_machine(api) and root.is_dir():
            free_bytes = shutil.disk_usage(root).free
        elif present is not None:
            free_bytes = free_bytes_there(api, present)
        else:
            fix = "look at the engine's host: `docker system df`"
            return Check("disk", WARN, f"{root} cannot be seen from here, nor from an image", fix)
    except (APIError, ValueError) as error:
        full = classify(None, "", error=error).category == "disk_full"
        return Check("disk", FAIL if full else WARN, f"no container can be made: {error}", _MAKE_ROOM)
    text = f"{free_bytes / 1e9:.0f} GB free for images and volumes"
    status = OK if free_bytes > _DISK_WARN_BYTES else WARN if free_bytes > _DISK_FAIL_BYTES else FAIL
    return Check("disk", status, text, "" if status == OK else _MAKE_ROOM)


def _memory(info: Mapping[str, Any]) -> Check:
    total_bytes = int(info.get("MemTotal") or 0)
    text = f"{total_bytes / 1e9:.0f} GB, {info.get('NCPU')} CPUs"
    if total_bytes < _MEMORY_WARN_BYTES:
        return Check("memory", WARN, text, "models of more than a billion parameters will not fit")
    return Check("memory", OK, text)


def _leftovers(api: docker.APIClient) -> Check:
    left = find_leftovers(api, older_than_s=_DAY_S)
    if left:
        return Check(
            "leftovers", WARN, f"{len(left)} of ours are older than a day", "`llem-airflow gc --yes`"
        )
    return Check("leftovers", OK, "none older than a day")


_NOBODY = "llem-doctor-asks-for-no-container"
_SWITCH = (
    "only studies with `study_execution.isolation` other than container need it: write `LLEM_SESSIONS=on` into the "
    "stack's .env, or let another proxy pass POST /containers/{id}/exec and POST /exec/{id}/start"
)


def may_execute(api: docker.APIClient) -> Check:
    """Whether a proxy or policy in front of the engine lets pass what sessions need; nothing is executed."""
    for call in (lambda: api.exec_create(_NOBODY, ["true"]), lambda: api.exec_start(_NOBODY)):
        try:
            call()
        except APIError as error:
            if error.status_code != 404:  # the engine's own answer: there is no such container
                text = f"commands in containers are refused: {error.explanation or error}"
                return Check("sessions", WARN, text, _SWITCH)
    return Check("sessions", OK, "commands in containers pass")


def sessions(api: docker.APIClient) -> Check:
    """The containers of sessions: those that live, and those that ended and were not removed."""
    found: dict[str, list[str]] = {"live": [], "ended": []}
    for each in api.containers(all=True, filters={"label": LABEL_SESSION}):
        labels = each["Labels"]
        who = f"{labels[LABEL_SESSION]} of DAG {labels.get('llem.dag_id', '?')} ({each['Status']})"
        found["live" if each["State"] in LIVE_STATES else "ended"].append(who)
    text = "; ".join(f"{word}: {', '.join(some)}" for word, some in found.items() if some)
    if found["ended"]:
        fix = "its run starts it again or removes it; where that run is over, `llem-airflow gc --yes`"
        return Check("sessions", WARN, text, fix)
    if "(unhealthy)" in text:
        fix = "the next cycle starts its container again; `docker logs` says what its guard printed"
        return Check("sessions", WARN, text, fix)
    return Check("sessions", OK, text or "none lives")


def _power_meters(environ: Mapping[str, str]) -> list[Check]:
    """Whether each GPU of this machine has a profile of its power meter; nothing where there is none."""
    try:
        found = local_inventory()
    except GpuLookError:  # the line about GPUs says so
        return []
    boards = {gpu.parent or gpu.id for gpu in found.gpus} if found else set()
    if not boards:
        return []
    root, checks = _root_of(environ), []
    fix = "`llem-airflow gpu-check` while nothing else runs on the GPUs"
    for board in sorted(boards):
        try:
            profile = read_profile(Folder.at(root), board)
        except Exception as error:  # noqa: BLE001  # an object store has errors of its own
            checks.append(Check("power meter", WARN, f"the profile of {board} cannot be read: {error}", fix))
            continue
        if profile is None:
            checks.append(
                Check("power meter", WARN, f"{board} is not characterised: usual numbers are taken", fix)
            )
        elif profile.sensor == Sensor():
            text = (
                f"{board} was checked, and nothing of its power meter could be told: usual numbers are taken"
            )
            checks.append(Check("power meter", WARN, text, fix))
        elif found and profile.driver != found.driver:
            text = f"{board} was characterised with driver {profile.driver}, now it is {found.driver}"
            checks.append(Check("power meter", WARN, text, fix))
        else:
            checks.append(Check("power meter", OK, f"{board} is characterised{_made(profile)}"))
    return checks


def _made(profile: GpuProfile) -> str:
    """By whom and when, where the profile tells it."""
    if profile.made_epoch_ns is None:
        return ""
    return f" ({profile.made_by}, {datetime.fromtimestamp(profile.made_epoch_ns / 1e9, UTC):%Y-%m-%d})"


_PATIENCE = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
"""Of the client of S3, whose own takes minutes to say that nobody answers."""


def _root_of(environ: Mapping[str, str]) -> str:
    """The results root that variables of the environment name."""
    return environ.get("AIRFLOW__LLEM__RESULTS_ROOT") or environ.get("LLEM_RESULTS_ROOT") or "results"


def results(root: str) -> Check:
    """Whether this machine can list, write and remove in a results root."""
    if "://" in root and not root.startswith("file://"):
        return _store(root)
    path = Path(root.removeprefix("file://")).absolute()
    try:
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError:
        return Check(
            "results", FAIL, f"{path} cannot be written", "correct the rights, or set LLEM_RESULTS_ROOT"
        )
    return Check("results", OK, f"{path}, {shutil.disk_usage(nearest).free / 1e9:.0f} GB free")


def _store(url: str) -> Check:
    """By an object of its own, written and removed: who may list may still be refused at the first commit."""
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        root = Folder.at(url, **({"config_kwargs": _PATIENCE} if url.startswith("s3") else {}))
        root.folders()
        root.write(name, b"")
        root.fs.rm_file(f"{root.path}/{name}")
    except Exception as error:  # noqa: BLE001  # an object store has errors of its own, and the doctor never raises
        said, _, fix = why_store_fails(error, url).rpartition("; ")
        fallback = "correct LLEM_RESULTS_ROOT, its credentials or the network"
        return Check("results", FAIL, f"{url} cannot be used: {said or fix}", fix if said else fallback)
    return Check("results", OK, f"{url}, listed and written")


def _process_runner() -> Check:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        fix = "`pip install 'llem-airflow[pytorch]'`, if you want experiments without containers"
        return Check("process runner", WARN, f"{' and '.join(missing)} not installed here", fix)
    return Check("process runner", OK, "torch and transformers are installed here")


def _token(environ: Mapping[str, str]) -> Check:
    if environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN"):
        return Check("hub token", OK, "set (its value is never shown)")
    return Check("hub token", WARN, "HF_TOKEN is not set", "needed only for gated models")


def diagnose(
    hosts: Sequence[str] = (), clusters: Sequence[str] = (), *, as_json: bool, **of_clusters: Any
) -> int:
    """Print what the doctor found.

    Args:
        hosts: Ids of connections or addresses.
        clusters: Names of clusters. Without both, every host and cluster that Airflow knows, else this machine.
        as_json: Print it as JSON.
        of_clusters: What is to be there on a cluster: ``resource``, ``runtime_class``, ``pull_secrets``.

    Raises:
        ValueError: A host's address has a port that cannot be.
    """
    named, names = targets(hosts, clusters)
    checks = examine(hosts=named)
    for each in answers_of(names, "doctor", **of_clusters):
        if "error" in each:
            checks.append(Check("api server", FAIL, each["error"], each["fix"], each["name"]))
        for name, status, text, fix in each.get("checks", ()):
            checks.append(Check(name, status, text, fix, each["name"]))
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(check) for check in checks], indent=1) + "\n")
        return worst(checks)
    for check in checks:
        line = f"{check.status:<5}{f'{check.host}: ' * bool(check.host)}{check.name}: {check.text}"
        show(console(), Folding(line, _STYLES[check.status], indent=5))
        if check.fix:
            show(console(), Folding(f"     → {check.fix}", "dim", indent=7))
    return worst(checks)
