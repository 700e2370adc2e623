"""Garbage collection: what no live task owns any more. It sees only what carries our label; all else is left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import docker

from llem_airflow.runners.airflow_asked import NoAnswerError, ask, is_airflow_here
from llem_airflow.runners.attempt import LABEL_INSTALLATION, LABEL_KEY, LABEL_SESSION
from llem_airflow.runners.claims import STALE_S, engine_clock_offset_s
from llem_airflow.runners.engine import (
    ENGINE_ERRORS,
    LIVE_STATES,
    is_kept,
    name_of,
    remove_container,
    remove_volume,
    why_away,
)
from llem_airflow.runners.failures import classify
from llem_airflow.runners.gpus import LABEL_PROBE
from llem_airflow.runners.holders import LABEL_TICKET
from llem_airflow.runners.hosts import Host, answers_of, targets

Alive = Callable[[Mapping[str, str]], bool | None]
"""Given labels (``llem.dag_id`` …): whether a live task owns what carries them; None when that cannot be told."""

Running = Literal["never", "disowned", "any"]

_CALL_TIMEOUT_S = 60
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
        holds_result: Whether it holds, or of a pod may hold, a result that the store lacks.
        volumes: The volumes of a container, which go with it.
    """

    kind: str
    name: str
    what: str
    state: str
    age_s: float
    holds_result: bool = False
    volumes: tuple[str, ...] = ()

    def goes(self, named: Collection[str] = (), *, force: bool = False) -> bool:
        """Whether it is removed.

        Args:
            named: Names of those that are removed though they hold a result.
            force: Whether what runs is removed, too.
        """
        return (force or self.state not in LIVE_STATES) and (not self.holds_result or self.name in named)


Unstored = Callable[[docker.APIClient, Sequence[Leftover]], Collection[str]]
"""Given an engine and what nobody owns there: names of the containers that hold a result which the store lacks."""


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
        if LABEL_TICKET in labels and not state:
            return age_s > 2 * STALE_S  # a living claim renews its ticket
        return is_left(owned, age_s, older_than_s, running=running if state in LIVE_STATES else "any")

    found: list[Leftover] = []
    used: set[str] = set()
    for container in api.containers(all=True, filters={"label": LABEL_KEY}):
        labels, state = container.get("Labels") or {}, container["State"]
        age_s = now_s - float(container["Created"])
        volumes = tuple(mount["Name"] for mount in container.get("Mounts") or () if "Name" in mount)
        if left(labels, age_s, state, kept=is_kept(name_of(container))):
            name = name_of(container)
            found.append(Leftover("container", name, what(labels), state, age_s, volumes=volumes))
        else:
            used.update(volumes)
    found += _probes(api, now_s, installation)
    for volume in api.volumes(filters={"label": LABEL_KEY}).get("Volumes") or []:
        labels, age_s = volume.get("Labels") or {}, now_s - _epoch_s(volume["CreatedAt"])
        if left(labels, age_s) and volume["Name"] not in used:
            found.append(Leftover("volume", volume["Name"], what(labels), "unused", age_s))
    return found


def is_left(owned: bool | None, age_s: float, older_than_s: float, *, running: Running) -> bool:
    """Whether something is a leftover.

    Args:
        owned: Whether a live task owns it; None when that cannot be told, and age decides.
        age_s: Its age, in seconds.
        older_than_s: From which age on; 0 is any, also what was made within the error of its clock.
        running: What of it may be one as it runs; ``any`` of what does not run.
    """
    if running == "never" or (running == "disowned" and owned is not False):
        return False
    return (older_than_s <= 0 or age_s > older_than_s) if owned is None else not owned


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
            gone += remove_volume(api, leftover.name)
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


def what(labels: Mapping[str, str]) -> str:
    """Whose something is, for people."""
    name = labels.get("llem.experiment", "?")  # of a session its name, which is of no cycle
    if LABEL_SESSION not in labels:
        name += f" cycle {labels.get('llem.cycle', '?')}"
    return f"{name}, {labels.get('llem.dag_id', '?')} {labels.get('llem.run_id', '?')}"


def _epoch_s(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@dataclass(frozen=True, slots=True)
class AirflowSays:
    """What the Airflow that is installed here says.

    Attributes:
        installation: Its identity.
        alive: Says whether a live task owns something; None where Airflow cannot be asked.
        why: Why not.
    """

    installation: str | None = None
    alive: Alive | None = None
    why: str = "no Airflow is set up here"


def collect(  # noqa: PLR0913  # the options of the command
    older_than_s: float,
    installation: str | None,
    *,
    hosts: Sequence[str] = (),
    clusters: Sequence[str] = (),
    remove: bool,
    as_json: bool,
    unstored: Unstored,
    force: bool = False,
    named: Collection[str] = (),
) -> int:
    """List what nobody owns, and remove it when asked to; exit code 2 when an engine does not answer.

    Args:
        older_than_s: What Airflow cannot tell is a leftover from this age on, in seconds.
        installation: Which Airflow made it; None for the one that is installed here, or for all where none is.
        hosts: Ids of connections or addresses.
        clusters: Names of clusters. Without both, every host and cluster that Airflow knows.
        remove: Whether to remove it.
        as_json: Print the list as JSON.
        unstored: Says which containers hold a result that the store lacks.
        force: Also containers that run.
        named: Names of containers and pods that go though they hold a result.

    Raises:
        ValueError: A host's address has a port that cannot be.
    """
    places, names = targets(hosts, clusters)
    with reached(places) as (engines, said, away):
        found: list[tuple[Host, Leftover]] = []
        gone = 0
        for host, api in engines.items():
            with said_away(host, away):
                here = find_leftovers(
                    api,
                    alive=said.alive,
                    older_than_s=older_than_s,
                    installation=installation or said.installation,
                    running="any",
                )
                here = _looked_into(here, unstored(api, here), named, force=force)
                found += [(host, one) for one in here]
                left = [one for one in here if one.goes(named, force=force)]
                gone += remove_leftovers(api, left) if remove else 0
    options: dict[str, Any] = {
        "older_than_s": older_than_s,
        "installation": installation,
        "remove": remove,
        "force": force,
        "named": list(named),
    }
    answered = answered_by(names, "gc", away, options)
    for each in answered:
        found += [(Host(each["name"]), Leftover(**one)) for one in each["found"]]
        gone += each["gone"]
    for text in away.values():
        sys.stderr.write(text)
    if engines or answered:
        whys = [*([said.why] if engines and said.alive is None else []), *(each["why"] for each in answered)]
        going = [each for each in found if each[1].goes(named, force=force)]
        if as_json:
            told = [{"host": host.name, **dataclasses.asdict(one)} for host, one in going]
            sys.stdout.write(json.dumps(told, indent=1) + "\n")
        else:
            say_unsure(whys)
            _tell(found, going, older_than_s, gone if remove else None)
    return 2 if away else 0


def _looked_into(
    left: Sequence[Leftover], holding: Collection[str], named: Collection[str], *, force: bool
) -> list[Leftover]:
    """Leftovers with what is known of their results, and without the volumes of containers that stay."""
    found = [dataclasses.replace(one, holds_result=one.name in holding) for one in left]
    used = {volume for one in found if not one.goes(named, force=force) for volume in one.volumes}
    return [one for one in found if one.name not in used]


def answered_by(
    clusters: Sequence[str], do: str, away: dict[str, str], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What clusters answer, and in ``away`` what to say of those that do not; arguments as for ``answers_of``."""
    answers = answers_of(clusters, do, **options)
    for each in answers:
        if "error" in each:
            away[each["name"]] = f"{each['name']}: {each['error']}\nWhat to do: {each['fix']}\n"
    return [each for each in answers if "error" not in each]


def say_unsure(whys: Iterable[str]) -> None:
    """Say why Airflow cannot tell who is alive, where it cannot: by the first reason that is not empty."""
    if why := next(filter(None, whys), ""):
        sys.stdout.write(f"Airflow cannot be asked who is alive ({why}): age alone decides.\n")


@contextlib.contextmanager
def reached(
    named: Sequence[Host],
) -> Iterator[tuple[dict[Host, docker.APIClient], AirflowSays, dict[str, str]]]:
    """The engines of the hosts, what Airflow says of all that is ours on them, and what to say of hosts that are away.

    Args:
        named: The hosts.
    """
    away = {
        host.name: f"{host.prefix}{host.problem}\nWhat to do: correct the connection\n"
        for host in named
        if host.problem
    }
    with contextlib.ExitStack() as open_engines:
        engines: dict[Host, docker.APIClient] = {}
        labels: list[dict[str, str]] = []
        for host in (each for each in named if not each.problem):
            with said_away(host, away):
                api = open_engines.enter_context(host.address.connect(_CALL_TIMEOUT_S))
                labels += owners(api)
                engines[host] = api
        yield engines, _ask_airflow(labels) if engines else AirflowSays(), away


@contextlib.contextmanager
def said_away(host: Host, away: dict[str, str]) -> Iterator[None]:
    """Note that a host's engine does not answer, and go on with the others."""
    try:
        yield
    except ENGINE_ERRORS as error:
        hint = classify(None, "", error=error).hint
        away[host.name] = (
            f"{host.prefix}the Docker engine does not answer: {why_away(error)}\nWhat to do: {hint}\n"
        )


def _tell(
    found: Sequence[tuple[Host, Leftover]],
    left: Sequence[tuple[Host, Leftover]],
    older_than_s: float,
    gone: int | None,
) -> None:
    """Print what of it stays and why, what goes, and how many are gone."""
    for host, one in found:
        if (host, one) in left:
            continue
        if one.holds_result:
            may, where = (
                ("may hold", f"--cluster {host.name}") if one.kind == "pod" else ("holds", "--engines")
            )
            sys.stdout.write(
                f"{host.prefix}{one.name} {may} a result and is not touched: {one.what}; `llem-airflow results recover "
                f"{where}` stores it, and --with-result {one.name} gives it up\n"
            )
        else:
            sys.stdout.write(f"{host.prefix}{one.name} runs and is not touched without --force: {one.what}\n")
    for host, one in left:
        sys.stdout.write(
            f"{host.prefix}{one.kind} {one.name}  {one.state}, {one.age_s / 3600:.1f} h old: {one.what}\n"
        )
    if not left:
        sys.stdout.write(f"Nothing of ours is older than {older_than_s / 3600:g} h and without an owner.\n")
    elif gone is not None:
        sys.stdout.write(f"Removed {gone}.\n")
    else:
        sys.stdout.write(f"{len(left)} found; `llem-airflow gc --yes` removes them.\n")


def _ask_airflow(labels: list[dict[str, str]]) -> AirflowSays:
    """What the Airflow that is set up here says of owners."""
    if not is_airflow_here():
        return AirflowSays()
    try:
        said = ask("maintenance", labels)
    except NoAnswerError as error:
        return AirflowSays(why=str(error))
    return said_of(labels, said)


def said_of(labels: Sequence[Mapping[str, str]], said: Mapping[str, Any]) -> AirflowSays:
    """What ``operators.maintenance`` has answered of these labels."""
    if said["alive"] is None:
        return AirflowSays(said["installation"], None, said["why"])
    known = {
        json.dumps(each, sort_keys=True): owned for each, owned in zip(labels, said["alive"], strict=True)
    }
    return AirflowSays(said["installation"], lambda each: known.get(json.dumps(dict(each), sort_keys=True)))
