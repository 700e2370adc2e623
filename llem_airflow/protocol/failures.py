"""The one table of failures: which kinds there are, whether another try can help, and what a person should do.

An attempt that names its own failure and those who look at it from outside read the same table, and search for the
same wordings (``failure_texts``); what Docker and its registries say is added outside.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple


class Category(NamedTuple):
    """One kind of failure.

    Attributes:
        retryable: Whether the same attempt can succeed later without anybody changing anything.
        hint: What to do, for a person.
        at_once: Whether the next try need not wait: what failed is over, or has waited already.
        by_study: Whether, as a rule, only another study helps: the same tasks would fail again.
        outside_only: Whether only those who look at the attempt from outside can tell it: no error file names it.
    """

    retryable: bool
    hint: str
    at_once: bool = False
    by_study: bool = False
    outside_only: bool = False


RESUME_VARIABLE = "LLEM_RESUME_COMMAND"
"""Set by ``llem-airflow run``, whose Airflow has nobody who could clear a task: the command that goes on with it."""

CATEGORIES: dict[str, Category] = {
    "image_pull": Category(
        False,
        "check the image's name and tag, and that the engine can log in to its registry",
        outside_only=True,
    ),
    "image_config": Category(
        False, "the image cannot run it: check its name, its entrypoint and its Python", outside_only=True
    ),
    "gpu_access": Category(
        False, "check the NVIDIA driver and the NVIDIA Container Toolkit (`llem-airflow doctor`)"
    ),
    "gpu_unavailable": Category(True, "wait until a GPU is free, or ask for fewer", at_once=True),
    "driver_mismatch": Category(False, "update the NVIDIA driver, or take an image of an older CUDA"),
    "out_of_memory_gpu": Category(
        False,
        "lower the batch size, the token limits or the engine's memory share, or ask for a larger GPU",
        by_study=True,
    ),
    "out_of_memory_host": Category(
        False,
        "raise the container's memory limit or its /dev/shm size, or choose a smaller model or batch",
        by_study=True,
    ),
    "timeout_wall_clock": Category(
        False, "raise the wall clock limit, or make the experiment shorter", by_study=True
    ),
    "timeout_silence": Category(
        True, "look for a hang in the log, or raise the silence limit", at_once=True, outside_only=True
    ),
    "timeout_gpu_idle": Category(
        True,
        "look in the log for what it waited for, or raise max_gpu_idle_s",
        at_once=True,
        outside_only=True,
    ),
    "permission": Category(False, "give the worker's user the right that the message names"),
    "daemon_down": Category(
        True, "check that the Docker engine runs at DOCKER_HOST (`llem-airflow doctor`)", outside_only=True
    ),
    "model_access": Category(
        False, "accept the model's licence on the hub; give a token by HF_TOKEN or the host's connection"
    ),
    "model_missing": Category(
        False, "check the model's name and revision, and that the container sees its files", by_study=True
    ),
    "engine_missing": Category(
        False, "the image does not hold the engine or a module of it: choose another image", by_study=True
    ),
    "disk_full": Category(True, "make room on the engine's disk (`llem-airflow gc`, `docker system df`)"),
    "config": Category(False, "correct the value that the message names", by_study=True),
    "server_not_ready": Category(
        True, "read the end of server.log; if it only needs longer, raise server.startup_timeout_seconds"
    ),
    "server_died": Category(
        True,
        "read the end of server.log in the evidence; if it comes again, report it to the engine's project",
    ),
    "server_errors": Category(
        False,
        "read server.log and the column error of the requests; lower the rate, or raise server.max_failed_ratio",
        by_study=True,
    ),
    "port_taken": Category(
        True, "leave engine_params.port out: a free port is chosen by itself", at_once=True
    ),
    "client_limit": Category(
        False,
        "raise the limit of open files (ulimit -n), or set server.traffic.concurrency_cap",
        by_study=True,
    ),
    "window_cut": Category(True, "the load ended before the window did: read the log in the evidence"),
    "meter_unavailable": Category(
        False, "choose another meter, or give the attempt what that meter reads", by_study=True
    ),
    "network": Category(True, "the network or the hub did not answer: try again, or use models on the disk"),
    "crash": Category(
        True,
        "read the traceback in the evidence; if it comes again, report it to the engine's project",
        at_once=True,
        outside_only=True,
    ),
    "killed": Category(
        True,
        "something outside ended it: look for a host policy (idle or runtime limits)",
        at_once=True,
        outside_only=True,
    ),
    "session_unhealthy": Category(
        False,
        "read session.json in the evidence; clear the session's first task, or choose isolation: container",
        outside_only=True,
    ),
    "name_conflict": Category(
        True,
        "another container has this name: `llem-airflow gc` removes leftovers of ours",
        outside_only=True,
    ),
    "cancelled": Category(True, "it was cancelled: run it again", outside_only=True),
    "unknown": Category(True, "read the log in the evidence", outside_only=True),
}

SAID_INSIDE = {
    "bad_parameter": "config",
    "model_gated": "model_access",
    "timeout": "timeout_wall_clock",
    "tokenizer_missing": "model_missing",
}
"""Words of the error file for what has another name in the table."""


_DETERMINISTIC = frozenset({"ValueError", "TypeError", "NotImplementedError"})
"""What libraries raise for an argument that they do not take. Their subclasses mean other things."""

_OURS = ("/llem_airflow/", "/llem.pyz/")
_FRAME = re.compile(r'^\s*File "([^"]+)", line \d+', re.MULTILINE)


def is_refusal(type_name: str, raised_in: str | None) -> bool:
    """Whether a library has refused a parameter: the same values are refused again, so no retry can help.

    Args:
        type_name: Class of the exception.
        raised_in: File that raised it, or None when that is not known. What our own code raises is a fault of ours.
    """
    return type_name in _DETERMINISTIC and not any(ours in (raised_in or "") for ours in _OURS)


def raised_in(traceback: str) -> str | None:
    """The file of a traceback's last frame, which raised the exception."""
    files = _FRAME.findall(traceback)
    return files[-1] if files else None


def advice(hint: str) -> str:
    """A hint as a sentence."""
    return f"{hint[:1].upper()}{hint[1:]}."


def category_of(said: str | None) -> str | None:
    """The table's name for what an error file calls its category; None when it names none that is known."""
    name = SAID_INSIDE.get(said or "", said)
    return name if name in CATEGORIES else None


def how_to_rerun(tasks: str = "the failed tasks") -> str:
    """How a person has cycles measured again here: ``clear the failed tasks``, or the command that resumes the run."""
    command = os.environ.get(RESUME_VARIABLE)
    return f"run `{command}`" if command else f"clear {tasks}"


def causes(error: BaseException | None, *, of_handling: bool = True) -> list[BaseException]:
    """An exception and what it was raised from, or (``of_handling``) while handling; a ring of causes ends."""
    found: list[BaseException] = []
    while error is not None and not any(error is one for one in found):
        found.append(error)
        error = error.__cause__ or (error.__context__ if of_handling else None)
    return found
