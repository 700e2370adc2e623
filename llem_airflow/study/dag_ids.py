"""Ids of DAGs from the names of studies and files."""

from __future__ import annotations

import re
from hashlib import sha256

LONGEST_DAG_ID = 238
"""Airflow has room for 250 characters; the DAGs that compare releases add up to 12 (``.compare_all``)."""
INVALID_PREFIX = "invalid."
"""Begins the id of the DAG that stands for a file with mistakes."""
RESERVED_DAG_IDS = frozenset({"llem_adhoc", "llem_maintenance"})
"""Ids of the DAGs that are shipped: Airflow keeps one DAG of an id and drops the other."""

_ALLOWED = re.compile(r"[\w.-]+")
_NOT_ALLOWED = re.compile(r"[^\w.-]+")


def dag_id_of(name: str) -> str:
    """The name itself where Airflow takes it as the id of a DAG, else one like it.

    What Airflow does not take becomes a dash; a long name is cut and ends in a part of its hash, as does one of which
    nothing readable is left.
    """
    if _ALLOWED.fullmatch(name) and len(name) <= LONGEST_DAG_ID and _readable(name):
        return name
    short = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    plain = _NOT_ALLOWED.sub("-", name).strip("-.")
    if not _readable(plain):
        return f"study-{short}"
    return plain if len(plain) <= LONGEST_DAG_ID else f"{plain[: LONGEST_DAG_ID - 9]}-{short}"


def plain_name(stem: str) -> str:
    """The name of a study that has only a file: ASCII letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.") or "study"


def _readable(name: str) -> bool:
    """Whether it has a letter or a digit: ``..`` is an id to Airflow and a parent folder to a URL."""
    return any(character.isalnum() for character in name)
