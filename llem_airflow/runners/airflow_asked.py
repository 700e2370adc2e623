"""What commands ask the Airflow that is set up here: each question goes to a process, as Airflow is not imported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_TIMEOUT_S = 120


class NoAnswerError(Exception):
    """Airflow has not answered; the text names the kind of error."""


def is_airflow_here() -> bool:
    """Whether an Airflow is set up for whoever runs this."""
    if importlib.util.find_spec("airflow") is None:
        return False
    home = os.environ.get("AIRFLOW_HOME") or Path.home() / "airflow"
    named = any(name.startswith("AIRFLOW_CONN_") for name in os.environ)
    return named or os.path.isdir(home)  # noqa: PTH112  # Path.is_dir() raises where the folder is closed


def ask(module: str, question: Any, timeout_s: float = _TIMEOUT_S) -> Any:
    """What a module of ``llem_airflow.operators`` answers: its last line, as what Airflow prints comes before.

    Args:
        module: Its name; it reads the question from its standard input.
        question: In plain JSON values, as is the answer.
        timeout_s: How long it may take, in seconds.

    Raises:
        NoAnswerError: It does not run, or says nothing that can be read.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-m", f"llem_airflow.operators.{module}"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return json.loads(ended.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise NoAnswerError(type(error).__name__) from error
