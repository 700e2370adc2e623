"""Canaries: the cheapest experiment of each engine and model, which goes first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llem_airflow.study.study import Experiment

CANARY_CYCLE = 1


def canaries(experiments: Iterable[Experiment]) -> dict[str, str]:
    """Id of the canary of each experiment: of its engine and model the one that handles the fewest tokens."""
    groups: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.engine, experiment.model), []).append(experiment)
    return {each.id: min(group, key=_tokens).id for group in groups.values() for each in group}


def _tokens(experiment: Experiment) -> float:
    """Tokens of one pass over the prompts, at most; endless where the study sets no bound."""
    task: dict[str, Any] = experiment.config["task"]
    read, written = task.get("max_input_tokens"), task.get("max_output_tokens")
    prompts = task["dataset"].get("n_prompts")
    if read is None or written is None or prompts is None:
        return float("inf")
    return float(prompts * (read + written))
