"""How long a cycle takes by what the study asks of it: at least, and at most."""

from __future__ import annotations

from llem_airflow.study.config.paths import Config
from llem_airflow.study.plan.model import Experiment

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


def least_s(experiment: Experiment) -> float:
    """Seconds that a cycle takes at least: its window, and the idle power and the warm-up that the study asks for."""
    measurement = experiment.config["measurement"]
    baseline = measurement["baseline"]
    idle_s = (baseline["duration_seconds"] or 0) if baseline["enabled"] else 0
    server = experiment.config.get("server")
    if server is not None:
        return float(idle_s + under_load_s(server, server["warmup"]["mode"] == "fixed"))
    warmup = (experiment.config.get("offline") or {}).get("warmup") or {}
    warm_s = (warmup.get("thermal_floor_seconds") or 0) if warmup.get("enabled") else 0
    return float(measurement["min_window_seconds"] + idle_s + warm_s)
