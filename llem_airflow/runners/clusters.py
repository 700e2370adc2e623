"""The clusters that a command is about, and what they answer: through Airflow, whose connections lead to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llem_airflow.runners.airflow_asked import NoAnswerError, ask, is_airflow_here

_NO_AIRFLOW = (
    "no Airflow is set up here, whose connections lead to clusters",
    "run it where Airflow is, or name its folder: AIRFLOW_HOME",
)
_LOOK_S = 120.0
_RECOVERY_S = 3600.0
"""What it brings out may be gigabytes."""


def answers_of(
    clusters: Sequence[str], do: str, asks: Callable[..., Any] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """What each cluster answers: with ``error`` and ``fix`` where it does not.

    Args:
        clusters: ``CONNECTION`` or ``CONNECTION/NAMESPACE``.
        do: ``doctor``, ``gc``, ``gpus`` or ``recover``.
        asks: What asks, of ``airflow_asked.asking``; None for a process of this question's own.
        options: Of the question.
    """
    if not clusters:
        return []
    error, fix = _NO_AIRFLOW
    if is_airflow_here():
        try:
            said: list[dict[str, Any]] = (asks or ask)(
                "known_clusters",
                {"clusters": list(clusters), "do": do, **options},
                timeout_s=_RECOVERY_S if do == "recover" else _LOOK_S,
            )["clusters"]
        except NoAnswerError as problem:
            error = f"Airflow cannot be asked for its clusters ({problem})"
            fix = "`pip install 'llem-airflow[kubernetes]'` where it is not; `airflow db check`"
        else:
            return said
    return [{"name": name, "error": error, "fix": fix} for name in clusters]
