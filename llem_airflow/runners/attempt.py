"""Who an attempt is, and the names and labels that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

LABEL_KEY = "llem.key"
"""Says whose container or volume it is: the digest of an attempt's key. Everything of ours carries it."""

LABEL_GPUS = "llem.gpus"
"""Comma-separated device ids that a container holds; the label is the lease."""

LABEL_INSTALLATION = "llem.installation"
"""Which Airflow made it."""

LABEL_SESSION = "llem.session"
"""The session whose container it is; its run owns it, not one task."""

LABEL_PRIVATE = "llem.private"
"""Comma-separated names of a container's variables whose values are secrets."""

_LONGEST_LABEL = 250


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a cycle.

    Attributes:
        dag_id: DAG of the task.
        run_id: DAG run of the task.
        task_id: The task.
        map_index: Index of a mapped task, or -1.
        experiment_id: Readable id of the experiment.
        experiment_hash: Identity of the experiment, 16 hex digits.
        cycle: Which repetition, from 1.
        try_number: Which try of the task, from 1.
        installation: Which Airflow, so that two can share an engine without mixing containers.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    experiment_id: str
    experiment_hash: str
    cycle: int
    try_number: int
    installation: str = ""

    @property
    def key(self) -> str:
        """Digest of what stays the same over the tries; 16 hex digits."""
        identity = [
            self.installation,
            self.dag_id,
            self.run_id,
            self.task_id,
            self.map_index,
            self.experiment_hash,
            self.cycle,
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def container_name(self) -> str:
        """Name of this try's container; whoever's name it carries owns it."""
        return f"llem-{self.key}-try{self.try_number}"

    @property
    def volume_name(self) -> str:
        """Name of the exchange volume that this try makes."""
        return f"{self.container_name}-exchange"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the container and the volume."""
        return {
            LABEL_KEY: self.key,
            LABEL_INSTALLATION: _value(self.installation),
            "llem.dag_id": _value(self.dag_id),
            "llem.run_id": _value(self.run_id),
            "llem.task_id": _value(self.task_id),
            "llem.map_index": str(self.map_index),
            "llem.experiment": _value(self.experiment_id),
            "llem.experiment_hash": _value(self.experiment_hash),
            "llem.cycle": str(self.cycle),
            "llem.try_number": str(self.try_number),
        }


def of_dag(labels: Mapping[str, str]) -> str:
    """Whose something is, in a few words."""
    return f"{labels.get('llem.experiment', '?')} of DAG {labels.get('llem.dag_id', '?')}"


def gpus_of(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Device ids that a container's labels say that it holds."""
    return tuple(gpu for gpu in labels.get(LABEL_GPUS, "").split(",") if gpu)


def _value(text: str) -> str:
    # Labels are shown in terminals and matched by line-based tools: no control characters, no unbounded text.
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean[:_LONGEST_LABEL]
