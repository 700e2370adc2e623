"""Who else was on the host beside an attempt's container: other experiments, and what foreign containers took.

Only what carries our label is an experiment. Of any other container two things are recorded, for the analysis to judge:
which of the attempt's GPUs it holds, and how many CPUs it used on average while the attempt ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import docker
from docker.errors import APIError, NotFound

from llem_airflow.runners.attempt import LABEL_KEY
from llem_airflow.runners.engine import ENGINE_ERRORS, name_of
from llem_airflow.runners.gpus import LABEL_PROBE, Inventory
from llem_airflow.runners.holders import OBSERVERS, given_to


@dataclass(frozen=True, slots=True)
class _Seen:
    name: str
    image: str
    ours: bool
    cpu_s: float | None
    gpus: tuple[str, ...]


class Neighbours:
    """The containers beside one, from now until :meth:`facts` is asked.

    Args:
        api: The engine.
        own_id: Id of the container whose neighbours these are.
        gpus: Device ids that it holds.
        inventory: The host's GPUs; asked only when it holds some.
    """

    def __init__(
        self, api: docker.APIClient, own_id: str, gpus: tuple[str, ...], inventory: Callable[[], Inventory]
    ) -> None:
        self._api = api
        self._own_id = own_id
        self._gpus = gpus
        self._inventory = inventory
        self._unknown = ""
        self._since_s = time.monotonic()
        self._before = self._look()

    def facts(self) -> dict[str, Any]:
        """What the cycle's record says of them; ``neighbours_unknown`` says what could not be seen, and why.

        Returns:
            ``neighbours``: names of other experiments, None when not known. ``foreign_containers``: name, image,
            ``gpus`` (those of the attempt that it holds) and ``cpus`` (mean number in use; None when not known).
        """
        after = self._look()
        elapsed_s = max(time.monotonic() - self._since_s, 1e-3)
        seen = {**self._before, **after}
        unseen = bool(self._unknown) and not seen
        return {
            "neighbours": None if unseen else sorted(each.name for each in seen.values() if each.ours),
            "foreign_containers": None
            if unseen
            else [
                {
                    "name": each.name,
                    "image": each.image,
                    "gpus": list(each.gpus),
                    "cpus": self._cpus(identity, each, elapsed_s) if identity in after else None,
                }
                for identity, each in sorted(seen.items(), key=lambda one: one[1].name)
                if not each.ours
            ],
            **({"neighbours_unknown": self._unknown} if self._unknown else {}),
        }

    def _cpus(self, identity: str, after: _Seen, elapsed_s: float) -> float | None:
        """A container that was not there before began meanwhile: all its time is of this while."""
        before_s = self._before[identity].cpu_s if identity in self._before else 0.0
        if after.cpu_s is None or before_s is None:
            return None
        return round(max(0.0, after.cpu_s - before_s) / elapsed_s, 2)

    def _look(self) -> dict[str, _Seen]:
        try:
            known = self._inventory() if self._gpus else Inventory()
            info = cache(self._api.info)
            listed = [each for each in self._api.containers() if each["Id"] != self._own_id]
            return {
                each["Id"]: self._seen(each, known, info)
                for each in listed
                if LABEL_PROBE not in (each.get("Labels") or {})
            }
        except ENGINE_ERRORS as error:
            self._unknown = str(error)
            return {}

    def _seen(
        self, listed: Mapping[str, Any], known: Inventory, info: Callable[[], Mapping[str, Any]]
    ) -> _Seen:
        image, name = str(listed.get("Image")), name_of(listed)
        if LABEL_KEY in (listed.get("Labels") or {}):
            return _Seen(name, image, ours=True, cpu_s=None, gpus=())
        given: tuple[str, ...] = ()
        if self._gpus and not OBSERVERS.search(image):
            given, _ = given_to(self._api, listed["Id"], known, info)
        shared = tuple(mine for mine in self._gpus if any(known.overlap(mine, one) for one in given))
        return _Seen(name, image, ours=False, cpu_s=self._cpu_s(listed["Id"]), gpus=shared)

    def _cpu_s(self, identity: str) -> float | None:
        """CPU time that a container has used since its start, in seconds."""
        try:
            stats = self._api.stats(identity, stream=False, one_shot=True)
            return int(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9
        except NotFound:
            return None
        except (APIError, KeyError, ValueError) as error:
            self._unknown = f"the CPU time of other containers: {error}"
            return None
