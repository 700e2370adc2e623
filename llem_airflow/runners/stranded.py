"""Stranded results: measured and finished, still in a container on their engine, and no task comes back for them.

A worker that is killed leaves its container, and the next try collects what is in it. After the last try nobody does: a
person, or the maintenance DAG before it removes the container, brings the result into the store from here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound

from llem_airflow import __version__
from llem_airflow.protocol.redaction import Redactor, secrets_in
from llem_airflow.protocol.result import CycleResult
from llem_airflow.protocol.session import EVIDENCE
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.results.folder import why_store_fails
from llem_airflow.runners.attempt import LABEL_KEY, LABEL_PRIVATE, LABEL_SESSION, gpus_of
from llem_airflow.runners.ending import CONTAINER_LOG, read_result
from llem_airflow.runners.engine import (
    ENGINE_ERRORS,
    exchange_of,
    host_facts,
    is_kept,
    remove_container,
    remove_volume,
)
from llem_airflow.runners.exchange import CollectError, collect_attempts
from llem_airflow.runners.gc import (
    Leftover,
    Unstored,
    answered_by,
    find_leftovers,
    reached,
    said_away,
    say_unsure,
)
from llem_airflow.runners.hosts import targets
from llem_airflow.runners.images import digest
from llem_airflow.text.wording import counted

_LOG_LINES = 100_000


@dataclass(frozen=True, slots=True)
class Stranded:
    """A finished result in a container or a pod that no task comes back for.

    Attributes:
        container: Name of the container or pod.
        name: What it is, for people.
        stored: URL of the result in the store; empty where it is not there.
        why_not: Why it could not be stored; empty where that was not tried, or went well.
        kind: ``container`` or ``pod``.
    """

    container: str
    name: str
    stored: str = ""
    why_not: str = ""
    kind: str = "container"


@dataclass(frozen=True, slots=True)
class Recovery:
    """Looks into what nobody owns on an engine, and stores the finished results that the store lacks.

    Attributes:
        api: The engine.
        root: The store.
        host: Id of the connection through which the engine is reached.
        store: Whether to store them; else they are only looked at.
    """

    api: docker.APIClient
    root: ResultsRoot
    host: str = ""
    store: bool = True

    def results(self, leftovers: Iterable[Leftover]) -> Iterator[Stranded]:
        """Each finished result; the container of an attempt goes with the last one that is stored.

        Args:
            leftovers: Of ``find_leftovers``.

        Raises:
            docker.errors.DockerException: The engine refused.
            requests.exceptions.RequestException: It does not answer.
        """
        for one in leftovers:
            if one.kind != "container":
                continue
            try:
                inspection = self.api.inspect_container(one.name)
                labels = inspection["Config"].get("Labels") or {}
                # A container of one attempt that runs may still finish; a session's runs on for nobody.
                goes_on = inspection["State"]["Running"] and LABEL_SESSION not in labels
                if LABEL_KEY in labels and not goes_on and not is_kept(one.name):
                    yield from self._in(one.name, inspection)
            except NotFound:
                continue  # somebody else has removed it

    def _in(self, container: str, inspection: Mapping[str, Any]) -> Iterator[Stranded]:
        config = inspection["Config"]
        environment = dict(each.split("=", 1) for each in config.get("Env") or () if "=" in each)
        private = config["Labels"].get(LABEL_PRIVATE, "").split(",")
        redactor = Redactor([*secrets_in(environment), *(environment.get(name, "") for name in private)])
        own = LABEL_SESSION not in config["Labels"]

        @cache
        def of_engine() -> dict[str, Any]:
            return {"image_digest": digest(self.api, inspection["Image"]), "host": host_facts(self.api)}

        with tempfile.TemporaryDirectory(prefix="llem-stranded-") as scratch:
            try:
                folders = collect_attempts(self.api, container, Path(scratch), redactor)
            except (CollectError, NotFound):
                return  # nothing was handed in, or nothing can be brought out
            except APIError as error:
                labels = config["Labels"]
                name = f"{labels.get('llem.experiment')} cycle {labels.get('llem.cycle')}"
                yield Stranded(container, name, why_not=f"the engine refused to bring its files out: {error}")
                return
            done = False
            for folder in folders:
                try:
                    spec = _told_to(folder)
                    result = read_result(folder, spec)
                except ProtocolError:
                    continue  # it has not finished
                if own:
                    (folder / CONTAINER_LOG).write_bytes(
                        redactor.data(self.api.logs(container, tail=_LOG_LINES))
                    )
                found = self._one(container, inspection, folder, spec, result, of_engine)
                done = found is None or bool(found.stored)
                if found is not None:
                    yield found
        if own and done and self.store:
            remove_container(self.api, container)
            remove_volume(self.api, exchange_of(inspection.get("Mounts") or []))

    def _one(
        self,
        container: str,
        inspection: Mapping[str, Any],
        folder: Path,
        spec: ExperimentSpec,
        result: CycleResult,
        of_engine: Callable[[], dict[str, Any]],
    ) -> Stranded | None:
        """Store one; None where the store has a result of this cycle."""

        def record(run: StoredRun) -> dict[str, Any]:
            said = _record(inspection, folder, spec, result) | of_engine()
            return said | ({"host_connection": self.host} if self.host in run.plan().get("hosts", ()) else {})

        run_id = inspection["Config"]["Labels"]["llem.run_id"]
        return stored_once(self.root, Stranded(container, ""), run_id, folder, spec, record, store=self.store)


def unstored_in(root: ResultsRoot) -> Unstored:
    """What says of an engine's leftovers which hold a result that a store lacks."""

    def names(api: docker.APIClient, left: Sequence[Leftover]) -> set[str]:
        return {one.container for one in Recovery(api, root, store=False).results(left)}

    return names


def stored_once(
    root: ResultsRoot,
    where: Stranded,
    run_id: str,
    folder: Path,
    spec: ExperimentSpec,
    record: Callable[[StoredRun], dict[str, Any]],
    *,
    store: bool,
) -> Stranded | None:
    """Store a result; None where the store has one of its cycle.

    Args:
        root: The store.
        where: Where it lies.
        run_id: Its run.
        folder: Its files.
        spec: What its attempt was told.
        record: What provenance.json says of it.
        store: Whether to store it; else it is only named.
    """
    experiment = _experiment(spec)
    where = replace(where, name=f"{spec.study}/{run_id} {experiment} cycle {spec.cycle}")
    try:
        run = root.run(spec.study, run_id)
        if run.is_committed(experiment, spec.cycle):
            return None
        if not store:
            return where
        return replace(where, stored=run.commit_cycle(experiment, spec.cycle, folder, record(run)))
    except ENGINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  # an object store has errors of its own, and the others can be stored
        return replace(where, why_not=why_store_fails(error, root.url))


def recover(
    hosts: Sequence[str],
    clusters: Sequence[str],
    root: str,
    installation: str | None,
    *,
    older_than_s: float,
    store: bool,
) -> int:
    """Store what tasks that will not come back have left on the engines and clusters; the exit code.

    Args:
        hosts: Ids of connections or addresses.
        clusters: Names of clusters. Without both, every host and cluster that Airflow knows.
        root: URL of the results root.
        installation: Which Airflow's; None for the one that is installed here, or for all where none is.
        older_than_s: What Airflow cannot tell is nobody's from this age on, in seconds.
        store: Whether to store it; else it is only listed.

    Returns:
        0; 1 when one could not be stored; 2 when an engine or a cluster does not answer.

    Raises:
        ValueError: A host's address has a port that cannot be.
    """
    found: list[Stranded] = []
    named, names = targets(hosts, clusters)
    options: dict[str, Any] = {
        "older_than_s": older_than_s,
        "installation": installation,
        "root": root,
        "store": store,
    }
    with reached(named) as (engines, said, away):
        for host, api in engines.items():
            with said_away(host, away):
                left = find_leftovers(
                    api,
                    alive=said.alive,
                    older_than_s=older_than_s,
                    installation=installation or said.installation,
                    running="disowned",
                )
                for one in Recovery(api, ResultsRoot(root), host.name, store=store).results(left):
                    found.append(one)
                    sys.stdout.write(f"{host.prefix}{_told(one)}\n")
        whys = [said.why] if engines and said.alive is None else []
    answered = answered_by(names, "recover", away, options)
    for each in answered:
        whys.append(each["why"])
        for one in (Stranded(**told) for told in each["found"]):
            found.append(one)
            sys.stdout.write(f"{each['name']}: {_told(one)}\n")
    say_unsure(whys)
    sys.stderr.write("".join(away.values()))
    stored = sum(bool(one.stored) for one in found)
    places = {"engines": engines, "clusters": answered}
    if where := " and ".join(name for name, there in places.items() if there):
        done = f"{counted(stored, 'result')} stored, {len(found) - stored} left"
        would = f"{counted(len(found), 'result')} would be stored"
        sys.stdout.write(f"On {where}: {done if store else would}.\n")
    return 2 if away else int(store and stored < len(found))


def _told(one: Stranded) -> str:
    if one.stored:
        return f"{one.name}: stored in {one.stored}"
    if one.why_not:
        return f"{one.name}: stays in {one.kind} {one.container}: {one.why_not}"
    return f"{one.name}: lies in {one.kind} {one.container}"


def _told_to(folder: Path) -> ExperimentSpec:
    for path in folder.glob("*_config.json"):
        return ExperimentSpec.loads(path.read_text(encoding="utf-8", errors="replace"), path.name)
    raise ProtocolError("the attempt was told nothing")


def _experiment(spec: ExperimentSpec) -> str:
    return f"{spec.slug}-{spec.experiment_hash[:8]}"


def _record(
    inspection: Mapping[str, Any], folder: Path, spec: ExperimentSpec, result: CycleResult
) -> dict[str, Any]:
    """What provenance.json says of it, as far as the engine knows: as of a container that another try took over."""
    config = inspection["Config"]
    labels = config["Labels"]
    started: dict[str, Any] = {"start_kind": "fresh", "exit_code": int(inspection["State"]["ExitCode"])}
    if LABEL_SESSION in labels:
        said = json.loads((folder / EVIDENCE).read_text(encoding="utf-8"))
        started = {name: said[name] for name in ("start_kind", "session", "position_in_session")}
    return record_of(labels, spec, result) | {
        "runner": "container",
        **started,
        "image": config["Image"],
        "gpus": list(gpus_of(labels)),
    }


def record_of(labels: Mapping[str, str], spec: ExperimentSpec, result: CycleResult) -> dict[str, Any]:
    """What provenance.json says of a result that was recovered, by the labels of where it lay."""
    begun, ended = result.anchors[0].epoch_ns, result.anchors[-1].epoch_ns
    return {
        "llem_airflow_version": __version__,
        **{name: labels.get(f"llem.{name}") for name in ("dag_id", "run_id", "task_id")},
        "map_index": int(labels.get("llem.map_index") or -1),
        "try_number": int(labels.get("llem.try_number") or 1),
        "experiment": _experiment(spec),
        "experiment_hash": spec.experiment_hash,
        "cycle": spec.cycle,
        "started_epoch_ns": begun,
        "finished_epoch_ns": ended,
        "finished": datetime.fromtimestamp(ended / 1e9, UTC).isoformat(timespec="seconds"),
        "adopted": True,
    }
