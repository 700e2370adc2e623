"""What failures look like: patterns in the order in which they are tried, each with its advice.

A pattern is bounded by words, or anchored in the wording of the one program that writes it, because the text
it is tried on holds names that people chose: a model called ``zoom-7b`` is not out of memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CATEGORIES: dict[str, tuple[bool, str]] = {
    "image_pull": (False, "check the image's name and tag, and that the engine can log in to its registry"),
    "image_config": (
        False,
        "the image cannot run it: check its name, its entrypoint and its Python",
    ),
    "gpu_access": (False, "check the NVIDIA driver and the NVIDIA Container Toolkit (`llem-airflow doctor`)"),
    "gpu_unavailable": (True, "wait until a GPU is free, or ask for fewer"),
    "driver_mismatch": (False, "update the NVIDIA driver, or take an image of an older CUDA"),
    "out_of_memory_gpu": (
        False,
        "use a smaller batch, context or data type, or a larger GPU",
    ),
    "out_of_memory_host": (False, "raise the container's memory limit, or use a smaller model"),
    "timeout_wall_clock": (False, "raise the wall clock limit, or make the experiment shorter"),
    "timeout_silence": (True, "look for a hang in the log, or raise the silence limit"),
    "permission": (False, "give the worker's user the right that the message names"),
    "daemon_down": (True, "check that the Docker engine runs at DOCKER_HOST (`llem-airflow doctor`)"),
    "model_access": (False, "accept the model's licence on the hub and set HF_TOKEN in the connection"),
    "model_missing": (False, "check the model's name and revision, and that the container sees its files"),
    "engine_missing": (False, "the image does not hold the engine or a module of it: choose another image"),
    "disk_full": (False, "make room on the engine's disk (`llem-airflow gc`, `docker system df`)"),
    "config": (False, "correct the value that the message names"),
    "network": (True, "the network or the hub did not answer: try again, or use models on the disk"),
    "crash": (
        True,
        "read the traceback in the evidence; if it comes again, report it to the engine's project",
    ),
    "killed": (True, "something outside ended it: look for a host policy (idle or runtime limits)"),
    "cancelled": (True, "it was cancelled: clear the task to run it again"),
    "unknown": (True, "read the log in the evidence"),
}
"""Category: (whether a retry can help, what to do)."""

EXIT_CODES: dict[int | None, tuple[str, str | None]] = {
    126: ("image_config", "the entrypoint is not executable in this image"),
    127: ("image_config", "the entrypoint or a program that it calls is not in this image"),
    132: ("crash", "illegal instruction: the image was built for another CPU"),
    134: ("crash", None),
    135: ("crash", None),
    136: ("crash", None),
    137: ("killed", None),
    139: ("crash", None),
    143: ("cancelled", None),
    -6: ("crash", None),
    -9: ("killed", None),
    -11: ("crash", None),
    -15: ("cancelled", None),
}
"""What exit codes say alone. A signal is 128 + its number in a container, negative in a process."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and what it means; what is None is as usual for the category."""

    pattern: re.Pattern[str]
    category: str
    retryable: bool | None = None
    hint: str | None = None


def _rule(pattern: str, category: str, *, retryable: bool | None = None, hint: str | None = None) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), category, retryable, hint)


_REGISTRY = r"(?:images/create|/v2/|\bpull\b|\bregistry\b)"

PATTERNS: tuple[Rule, ...] = (
    # The engine and its socket, before anything that a broken connection may have left in the text.
    _rule(
        r"permission denied while trying to connect to the docker|PermissionError\(13, 'Permission denied'\)",
        "permission",
        hint="let the worker's user use the Docker socket (group `docker`), or use another engine",
    ),
    _rule(
        r"cannot connect to the docker daemon|error while fetching server api version"
        r"|failed to establish connection to any given docker hosts",
        "daemon_down",
    ),
)
