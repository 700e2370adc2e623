"""What commands ask the Airflow that is set up here: each question goes to a process, as Airflow is not imported."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def asking(module: str) -> Iterator[Callable[..., Any]]:
    """As :func:`ask`, of a process that stays: Airflow, which takes seconds to import, is imported once.

    Args:
        module: As of :func:`ask`; it reads a question from each line, and answers with a line that begins with ``{``.
    """
    process: subprocess.Popen[str] | None = None

    def again(_module: str, question: Any, timeout_s: float = _TIMEOUT_S) -> Any:
        nonlocal process
        if process is None or process.poll() is not None:
            process = subprocess.Popen(
                [sys.executable, "-m", f"llem_airflow.operators.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for whoever asks
            )
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(timeout_s, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            return json.loads(next(line for line in process.stdout if line.startswith("{")))
        except (OSError, ValueError, StopIteration) as error:
            raise NoAnswerError(type(error).__name__) from error
        finally:
            late.cancel()

    try:
        yield again
    finally:
        if process is not None:
            process.kill()
            process.communicate()
