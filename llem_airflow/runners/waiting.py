"""A place in the queue for GPUs that is kept while no worker waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import docker

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.engine import ENGINE_ERRORS
from llem_airflow.runners.gpus import inventory
from llem_airflow.runners.leases import LABEL_TICKET, said
from llem_airflow.runners.tickets import Ticket, demand_of, engine_now_epoch_s


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look at the GPUs showed.

    Attributes:
        free: Whether the one that waits can have what it wants.
        ahead: How many claims stand before it.
        behind_its_own: Whether one of them is of the same DAG run.
        text: Who holds what, for people.
    """

    free: bool
    ahead: int
    behind_its_own: bool
    text: str


class Waiting:
    """The claim of an attempt whose worker has gone.

    Args:
        connect: Makes a client of the engine.
        attempt: Whose claim it is.
        ticket: Labels of the claim's ticket: its number and what it waits for.
        image: An image with Python, should the driver have to be asked from a container.
    """

    def __init__(
        self,
        connect: Callable[[], docker.APIClient],
        attempt: Attempt,
        ticket: Mapping[str, str],
        image: str,
    ) -> None:
        self._connect = connect
        self._attempt = attempt
        self._labels = ticket
        self._image = image
        self._api: docker.APIClient | None = None
        self._ticket: Ticket | None = None

    def look(self) -> Sight:
        """Keep the place and see whether it is its turn.

        Raises:
            docker.errors.DockerException: The engine refused.
            requests.exceptions.RequestException: It does not answer.
        """
        api = self._api = self._api or self._connect()
        known = inventory(api, self._image)
        if self._ticket is None:
            demand = demand_of(self._labels, known)
            self._ticket = Ticket(api, self._attempt, self._labels[LABEL_TICKET], demand)
        self._ticket.hold()
        seen = self._ticket.look(known, engine_now_epoch_s(api))
        return Sight(seen.chosen is not None, seen.ahead, seen.behind_its_own, said(seen.held))

    def leave(self) -> None:
        """Give the place up."""
        if self._ticket is not None:
            self._ticket.give_back()

    def close(self) -> None:
        """Leave the engine; the place stays for whoever goes on with the claim."""
        with contextlib.suppress(*ENGINE_ERRORS):
            if self._api is not None:
                self._api.close()
        self._api = self._ticket = None
