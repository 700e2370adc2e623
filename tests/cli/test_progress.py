"""What the terminal shows of Airflow's output; the lines are as Airflow 3.3 writes them."""

import io
from pathlib import Path

from rich.console import Console

from llem_airflow.cli.progress import RunProgress

OPERATOR = "airflow.task.operators.llem_airflow.operators.experiment.LLEMExperimentOperator"


def shown(tmp_path: Path, *lines: str) -> str:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=200, force_terminal=False), 2, tmp_path / "run.log") as progress:
        for line in lines:
            progress.line(line)
    return out.getvalue()


def test_lines_of_our_operators_are_shown_without_stamp_and_logger(tmp_path: Path) -> None:
    line = f"2026-11-22T01:47:01.581835Z [info     ] measure: 12 of 30 s            [{OPERATOR}] loc=experiment.py:6"
    assert shown(tmp_path, line) == "  measure: 12 of 30 s\n"


def test_lines_of_airflow_itself_are_not_shown_but_kept(tmp_path: Path) -> None:
    line = (
        "2026-11-22T01:46:54.942923Z [info     ] Bulk-writing dags to db  [airflow.x] count=1 loc=dag.py:218"
    )
    assert shown(tmp_path, line) == ""
    assert (tmp_path / "run.log").read_text() == line + "\n"


def test_a_failed_task_shows_the_text_of_its_exception_and_no_traceback(tmp_path: Path) -> None:
    text = shown(
        tmp_path,
        "2026-11-22T01:47:01.652926Z [info     ] [DAG TEST] starting task_id=a-1.cycle_1 map_index=-1 [x] loc=dag.py:1",
        "2026-11-22T01:47:01.702715Z [error    ] Task failed with exception     [task] loc=task_runner.py:1676",
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in f',
        "llem_airflow.runners.failures.AttemptFailedError: inner",
        "",
        "The above exception was the direct cause of the following exception:",
        "Traceback (most recent call last):",
        '  File "y.py", line 2, in g',
        "    raise error",
        "airflow.sdk.exceptions.AirflowFailException: image x:1 does not exist",
        "Evidence: results/failed",
        "2026-11-22T01:47:01.709052Z [info     ] ::group::Post Execute          [task] loc=task_runner.py:1677",
        "2026-11-22T01:47:01.645486Z [info     ] [DAG TEST] end task task_id=a-1.cycle_1 map_index=-1 [x] loc=dag.py:1",
    )
    assert text.splitlines() == [
        "FAILED a-1.cycle_1",
        "airflow.sdk.exceptions.AirflowFailException: image x:1 does not exist",
        "Evidence: results/failed",
    ]


def test_of_a_long_failure_the_error_and_the_evidence_are_shown(tmp_path: Path) -> None:
    text = shown(
        tmp_path,
        "2026-11-22T01:47:01.652926Z [info     ] [DAG TEST] starting task_id=a-1.cycle_1 map_index=-1 [x] loc=dag.py:1",
        "2026-11-22T01:47:01.702715Z [error    ] Task failed with exception     [task] loc=task_runner.py:1676",
        "llem_airflow.operators.retries.AttemptFinalError: a cycle 1: it failed [crash]",
        "What to do: read on",
        "Last lines of output:",
        *(f"  | line {number}" for number in range(15)),
        "Evidence: results/failed",
        "2026-11-22T01:47:01.709052Z [info     ] ::group::Post Execute          [task] loc=task_runner.py:1677",
    )
    assert text.splitlines()[1:4] == [
        "llem_airflow.operators.retries.AttemptFinalError: a cycle 1: it failed [crash]",
        "What to do: read on",
        "Last lines of output:",
    ]
    assert text.splitlines()[-2:] == ["  | line 14", "Evidence: results/failed"]
