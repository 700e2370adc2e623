"""Old files to today's version, step by step, so that old evidence stays readable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.strict import ProtocolError

STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From version n to n + 1. Version 1 is the first, so there is no step yet."""


def upgraded(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The object as today's version.

    Raises:
        ProtocolError: It has no version, or one that this release cannot read.
    """
    version = data.get("schema_version")
    if not isinstance(version, int):
        raise ProtocolError(f"{where}: schema_version is missing")
    if version > PROTOCOL_VERSION:
        raise ProtocolError(
            f"{where}: schema_version {version} was written by a newer llem-airflow (this one reads up to "
            f"{PROTOCOL_VERSION}); upgrade to read it"
        )
    while version < PROTOCOL_VERSION:
        if version not in STEPS:
            raise ProtocolError(f"{where}: schema_version {version} can no longer be read")
        data = STEPS[version](data)
        version += 1
        data["schema_version"] = version
    return data
