"""The reaper: what no live task owns any more. It sees only what carries our label, so nothing else is touched."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import docker

from llem_airflow.runners.attempt import LABEL_INSTALLATION, LABEL_KEY
from llem_airflow.runners.engine import LIVE_STATES, is_kept, name_of, remove_container, remove_volume
from llem_airflow.runners.gpus import LABEL_PROBE
from llem_airflow.runners.leases import LABEL_TICKET
from llem_airflow.runners.tickets import STALE_S, engine_clock_offset_s

Alive = Callable[[Mapping[str, str]], bool | None]
"""Given labels (``llem.dag_id`` …): whether a live task owns what carries them; None when that cannot be told."""

Running = Literal["never", "disowned", "any"]

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
