"""Garbage collection: what no live task owns any more. It sees only what carries our label; all else is left alone."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import docker

from llem_airflow.runners.attempt import LABEL_INSTALLATION, LABEL_KEY
from llem_airflow.runners.claims import STALE_S, engine_clock_offset_s
from llem_airflow.runners.engine import (
    ENGINE_ERRORS,
    LIVE_STATES,
    connect,
    is_kept,
    name_of,
    remove_container,
    remove_volume,
)
from llem_airflow.runners.failures import classify
from llem_airflow.runners.gpus import LABEL_PROBE
from llem_airflow.runners.holders import LABEL_TICKET

Alive = Callable[[Mapping[str, str]], bool | None]
"""Given labels (``llem.dag_id`` …): whether a live task owns what carries them; None when that cannot be told."""

Running = Literal["never", "disowned", "any"]

_ASK_TIMEOUT_S = 120
_PROBE_S = 600.0
"""Nobody asks the driver for longer."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of ours that nobody owns.

    Attributes:
        kind: ``container`` or ``volume``.
        name: Its name.
        what: Whose it was: experiment, DAG, run.
        state: State of the container, ``unused`` for a volume.
        age_s: Age by the engine's clock, in seconds.
    """

    kind: str
    name: str
    what: str
    state: str
    age_s: float


def find_leftovers(
    api: docker.APIClient,
    *,
    alive: Alive | None = None,
    older_than_s: float,
    installation: str | None = None,
    running: Running = "never",
) -> list[Leftover]:
    """Containers and volumes of ours that no live task owns.

    Args:
        api: The engine.
        alive: Says whether a live task owns something; None when nobody can be asked.
        older_than_s: What ``alive`` cannot tell, and a failed container that was kept, is a leftover from this age on,
            in seconds.
        installation: Only what this Airflow made; None for all.
        running: Which containers that run may be leftovers: none, those that ``alive`` disowns, or all.
    """
    now_s = datetime.datetime.now(datetime.UTC).timestamp() + engine_clock_offset_s(api)

    def left(labels: Mapping[str, str], age_s: float, state: str = "", *, kept: bool = False) -> bool:
        if installation is not None and labels.get(LABEL_INSTALLATION) != installation:
            return False
        owned = alive(labels) if alive is not None and not kept else None
        if state in LIVE_STATES and running != "any" and not (running == "disowned" and owned is False):
            return False
        if LABEL_TICKET in labels and not state:
            return age_s > 2 * STALE_S  # a living claim renews its ticket
        return age_s > older_than_s if owned is None else not owned

    found: list[Leftover] = []
    used: set[str] = set()
    for container in api.containers(all=True, filters={"label": LABEL_KEY}):
        labels, age_s = container.get("Labels") or {}, now_s - float(container["Created"])
        if left(labels, age_s, container["State"], kept=is_kept(container)):
            found.append(Leftover("container", name_of(container), _what(labels), container["State"], age_s))
        else:
            used |= {mount["Name"] for mount in container.get("Mounts") or () if "Name" in mount}
    found += _probes(api, now_s, installation)
    for volume in api.volumes(filters={"label": LABEL_KEY}).get("Volumes") or []:
        labels, age_s = volume.get("Labels") or {}, now_s - _epoch_s(volume["CreatedAt"])
        if left(labels, age_s) and volume["Name"] not in used:
            found.append(Leftover("volume", volume["Name"], _what(labels), "unused", age_s))
    return found


def owners(api: docker.APIClient) -> list[dict[str, str]]:
    """The labels of everything of ours: whose it is."""
    containers = api.containers(all=True, filters={"label": LABEL_KEY})
    volumes = api.volumes(filters={"label": LABEL_KEY}).get("Volumes") or []
    return [dict(each.get("Labels") or {}) for each in (*containers, *volumes)]


def remove_leftovers(api: docker.APIClient, leftovers: Iterable[Leftover]) -> int:
    """Remove them, containers first; how many are gone."""
    gone = 0
    for leftover in sorted(leftovers, key=lambda one: one.kind):
        if leftover.kind == "container":
            gone += remove_container(api, leftover.name)
        else:
            remove_volume(api, leftover.name)
            gone += 1
    return gone


def _probes(api: docker.APIClient, now_s: float, installation: str | None) -> list[Leftover]:
    """Questions to the driver that nobody waits for any more: each lives for a second."""
    found = []
    for probe in api.containers(all=True, filters={"label": LABEL_PROBE}):
        age_s, maker = now_s - probe["Created"], (probe.get("Labels") or {}).get(LABEL_INSTALLATION)
        if age_s > _PROBE_S and installation in (None, maker):
            found.append(
                Leftover("container", name_of(probe), "question to the driver", probe["State"], age_s)
            )
    return found


def _what(labels: Mapping[str, str]) -> str:
    experiment, cycle = labels.get("llem.experiment", "?"), labels.get("llem.cycle", "?")
    return f"{experiment} cycle {cycle}, {labels.get('llem.dag_id', '?')} {labels.get('llem.run_id', '?')}"


def _epoch_s(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@dataclass(frozen=True, slots=True)
class _Airflow:
    """What the Airflow that is installed here says."""

    installation: str | None = None
    alive: Alive | None = None
    why: str = "no Airflow is set up here"


def collect(
    older_than_s: float, installation: str | None, *, remove: bool, as_json: bool, force: bool = False
) -> int:
    """List what nobody owns, and remove it when asked to; exit code 2 when the engine does not answer.

    Args:
        older_than_s: What Airflow cannot tell is a leftover from this age on, in seconds.
        installation: Which Airflow made it; None for the one that is installed here, or for all where none is.
        remove: Whether to remove it.
        as_json: Print the list as JSON.
        force: Also containers that run.
    """
    try:
        with connect() as api:
            said = _ask_airflow(owners(api))
            found = find_leftovers(
                api,
                alive=said.alive,
                older_than_s=older_than_s,
                installation=installation or said.installation,
                running="any",
            )
            left = [one for one in found if force or one.state not in LIVE_STATES]
            gone = remove_leftovers(api, left) if remove else 0
    except ENGINE_ERRORS as error:
        hint = classify(None, "", error=error).hint
        sys.stderr.write(f"the Docker engine does not answer: {error}\nWhat to do: {hint}\n")
        return 2
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in left], indent=1) + "\n")
        return 0
    if said.alive is None:
        sys.stdout.write(f"Airflow cannot be asked who is alive ({said.why}): age alone decides.\n")
    for one in found:
        if one not in left:
            sys.stdout.write(f"{one.name} runs and is not touched without --force: {one.what}\n")
    for one in left:
        sys.stdout.write(f"{one.kind} {one.name}  {one.state}, {one.age_s / 3600:.1f} h old: {one.what}\n")
    if not left:
        sys.stdout.write(f"Nothing of ours is older than {older_than_s / 3600:g} h and without an owner.\n")
    elif remove:
        sys.stdout.write(f"Removed {gone}.\n")
    else:
        sys.stdout.write(f"{len(left)} found; `llem-airflow gc --yes` removes them.\n")
    return 0


def _ask_airflow(labels: list[dict[str, str]]) -> _Airflow:
    """Ask in a process of its own: Airflow is not imported here, and what it prints is not for the list."""
    home = Path(os.environ.get("AIRFLOW_HOME") or Path.home() / "airflow")
    if importlib.util.find_spec("airflow") is None or not home.is_dir():
        return _Airflow()
    command = [sys.executable, "-m", "llem_airflow.operators.living"]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(labels),
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
        )
        said = json.loads(ended.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return _Airflow(why=type(error).__name__)
    if said["alive"] is None:
        return _Airflow(said["installation"], None, said["why"])
    known = {
        json.dumps(each, sort_keys=True): owned for each, owned in zip(labels, said["alive"], strict=True)
    }
    return _Airflow(said["installation"], lambda each: known.get(json.dumps(dict(each), sort_keys=True)))
