"""The Docker client of a task: Airflow's hook, which reaches an engine behind ``ssh://`` as our commands do."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import docker
from airflow.providers.docker.hooks.docker import DockerHook
from airflow.sdk.exceptions import AirflowNotFoundException

from llem_airflow.runners.engine import EngineAddress
from llem_airflow.runners.ssh import SCHEME


class EngineHook(DockerHook):
    """As Airflow's, but for engines behind ``ssh://``.

    Args:
        address: Where the engine is.
        timeout: Of each call, in seconds.
        kwargs: As of Airflow's.
    """

    def __init__(self, *, address: EngineAddress, timeout: int, **kwargs: Any) -> None:
        super().__init__(base_url=list(address.urls), tls=address.tls, timeout=timeout, **kwargs)
        self._address, self._timeout_s = address, timeout

    @cached_property
    def api_client(self) -> docker.APIClient:
        """A client of the engine, which has just answered; it is made once.

        Raises:
            airflow.sdk.exceptions.AirflowException: Nobody answers, or the login to the registry lacks something.
            docker.errors.DockerException: Nobody answers there, or the registry refuses; the text says why.
        """
        if not any(url.startswith(SCHEME) for url in self._address.urls):
            found: docker.APIClient = super().api_client
            return found
        api = self._address.connect(self._timeout_s)
        if self.docker_conn_id:
            self._log_in(api, self.docker_conn_id)
        self._client_created = True
        return api

    def _log_in(self, api: docker.APIClient, conn_id: str) -> None:
        """Log in to a registry."""
        conn: Any = self.get_connection(conn_id)
        for value, what in ((conn.host, "URL of a registry"), (conn.login, "name of a user")):
            if not value:
                raise AirflowNotFoundException(f"the connection has no {what}")
        registry = f"{conn.host}:{conn.port}" if conn.port else conn.host
        api.login(username=conn.login, password=conn.password, registry=registry, reauth=True)
