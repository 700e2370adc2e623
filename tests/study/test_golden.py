"""What the study room answers is what is kept in ``golden/``; ``python -m tests.study.golden`` writes it anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.study.golden import plans, reports, schema, terminal

AGAIN = "python -m tests.study.golden writes it anew; read the difference, and keep it only where it is meant"
MOST_SHOWN = 20
LONGEST = 2000


@pytest.mark.parametrize("path", reports.FILES, ids=lambda path: path.stem)
def test_what_is_said_of_study_files_is_what_was_kept(path: Path) -> None:
    wrong = [
        "\n".join(
            [
                f"{path.name}:{case.line}",
                *case.lines,
                *(f"- {x}" for x in case.expected),
                *(f"+ {x}" for x in now),
            ]
        )
        for case, now in reports.answers(path)
        if now != case.expected
    ]
    shown = "\n\n".join(wrong[:MOST_SHOWN])
    assert not wrong, f"{len(wrong)} files are answered otherwise than before ({AGAIN}):\n\n{shown}"


def test_experiments_keep_their_identity_and_studies_their_plan() -> None:
    wrong = []
    for kept in plans.read_lines():
        now = plans.answer(kept)
        wrong += [
            f"{kept['name']}: {name}\n- {kept.get(name)}\n+ {now.get(name)}"[:LONGEST]
            for name in sorted({*kept, *now})
            if kept.get(name) != now.get(name)
        ]
    shown = "\n".join(wrong[:MOST_SHOWN])
    assert not wrong, f"{len(wrong)} values are not what they were ({AGAIN}):\n{shown}"


def test_the_schema_knows_the_same_keys_with_the_same_bounds() -> None:
    path, text = schema.golden()
    kept = set(path.read_text("utf-8").splitlines())
    now = set(text.splitlines())
    assert not kept ^ now, "\n".join(
        [AGAIN, *(f"- {x}" for x in sorted(kept - now)), *(f"+ {x}" for x in sorted(now - kept))]
    )


def test_the_plans_of_the_shipped_studies_are_shown_as_before() -> None:
    for path, text in terminal.golden():
        assert text == path.read_text("utf-8"), AGAIN


def test_enough_is_kept() -> None:
    files = [(path, case) for path in reports.FILES for case in reports.read_cases(path)]
    refused = [case for _, case in files if case.expected[-1].startswith(("study.yaml:", "base.yaml:"))]
    told = [case for path, case in files if any("note: " in line for line in case.expected)]
    assert len(refused) >= 200
    assert len(told) >= 40
    assert not [case for _, case in files if case.expected[0].startswith("TRACEBACK")]
    assert sum(line["name"].startswith("made-") for line in plans.read_lines()) >= 250
    assert sum("whole" in line for line in plans.read_lines()) >= 25


def test_a_report_is_the_same_in_every_process() -> None:
    code = (
        "from tests.study.texts import report; print(report('airflow: {retry_delay: .inf, deadline: .nan}'))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "0123"
    }
    assert len(said) == 1
