"""How a person has cycles measured again, where this process runs."""

from __future__ import annotations

import os

RESUME_VARIABLE = "LLEM_RESUME_COMMAND"
"""Set by ``llem-airflow run``, whose Airflow has nobody who could clear a task: the command that goes on with it."""


def again(tasks: str = "the failed tasks") -> str:
    """``clear the failed tasks``, or the command that resumes the run."""
    command = os.environ.get(RESUME_VARIABLE)
    return f"run `{command}`" if command else f"clear {tasks}"
