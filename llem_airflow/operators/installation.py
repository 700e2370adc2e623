"""Which Airflow this is: the label by which containers, volumes and retries of one installation know each other."""

from __future__ import annotations

import contextlib
import hashlib
import os

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk import Variable, conf

INSTALLATION_VARIABLE = "llem_installation"
"""The Airflow Variable that holds the identity, so that all workers have the same wherever their AIRFLOW_HOME is."""

_DESCRIPTION = (
    "Names this Airflow on Docker engines. Kept, so that running containers and retries are found again."
)


def configured() -> str | None:
    """What ``[llem] installation`` or ``LLEM_INSTALLATION`` says, which goes before the Variable."""
    return conf.get("llem", "installation", fallback=None) or os.environ.get("LLEM_INSTALLATION") or None


def derived() -> str:
    """From AIRFLOW_HOME and the address of the API server: the same over restarts, but not on every machine."""
    address = conf.get("core", "execution_api_server_url", fallback="")
    return hashlib.sha256(f"{AIRFLOW_HOME} {address}".encode()).hexdigest()[:8]


def installation() -> str:
    """The identity, as a task sees it."""
    return configured() or _stored() or derived()


def settle_installation() -> None:
    """Store the identity that holds now, once: what runs keeps its labels, and other workers get the same."""
    if configured() is None and _stored() is None:
        with contextlib.suppress(
            ImportError
        ):  # an operator called outside of a task has no Airflow to store it in
            Variable.set(INSTALLATION_VARIABLE, derived(), description=_DESCRIPTION)


def _stored() -> str | None:
    return (Variable.get(INSTALLATION_VARIABLE, default=None) or "").strip() or None
