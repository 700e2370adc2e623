"""How long the cycle of a server takes, by what the study asks of it."""

from __future__ import annotations

from llem_airflow.study.config.paths import Config

_IDLE_S = 120.0
"""Longest idle power, which a study may leave to the meter: two phases, and the quiet before them."""

_AROUND_S = 180.0
"""Container, sampler, prompts, the drain of the last answers, and what is written at the end."""


def under_load_s(server: Config, warmup: bool) -> float:
    """Warm-up where it counts, ramp, window and cooldown, in seconds.

    Args:
        server: The section ``server`` of an experiment.
        warmup: Whether the warm-up counts, with its longest time.
    """
    traffic, said = server["traffic"], server["warmup"]
    longest_s = said["duration_seconds"] if said["mode"] == "fixed" else said["timeout_seconds"]
    load_s = traffic["ramp_exclusion_seconds"] + traffic["window_seconds"]
    return float(load_s + (longest_s if warmup else 0) + server["cooldown_seconds"])


def longest_s(server: Config) -> float:
    """A limit for a cycle of which the study writes none, in seconds: everything takes its longest."""
    return under_load_s(server, True) + float(server["startup_timeout_seconds"]) + _IDLE_S + _AROUND_S
