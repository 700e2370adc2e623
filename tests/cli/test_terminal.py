"""Widths, pipes and the shell's completion: what identifies is never broken inside a word nor cut short."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.cli import main
from llem_airflow.results import StoredRun
from llem_airflow.text.terminal import Rows, folded, pieces, show
from tests.analysis.conftest import IDS, MakeRun, make_run
from tests.results.recorded import Recording
from tests.study.texts import HEAD

__all__ = ["make_run"]

RUN_ID = "manual__2026-11-27T13:39:28.670735+00:00"
FOLDER = "manual__2026-11-27T13-39-28.670735Z"
LONG = "sweep: {transformers.llem_execution.batch_size: [1, 2], task.max_output_tokens: [16, 32]}\n"


@pytest.fixture
def run(make_run: MakeRun) -> StoredRun:
    made = make_run({(k, c): Recording(window_s=12.0) for k in (0, 1) for c in (1, 2)}, run_id=RUN_ID)
    aggregate_run(made)
    return made


def llem(*arguments: str, columns: str | None, root: str = "results") -> str:
    done = CliRunner().invoke(main, arguments, env={"LLEM_RESULTS_ROOT": root, "COLUMNS": columns})
    assert done.exit_code == 0, done.output
    return done.output


def whole(output: str, name: str) -> bool:
    """Whether a name stands in a table's first column, folded at most between its pieces."""
    between = r"[^\n]*\n\s*"
    parts = [re.escape(piece.strip()) for piece in pieces(name)]
    return re.search(rf"(?:{between}|)".join(parts), output) is not None


@pytest.mark.parametrize("columns", ["40", "80", "200", None])
def test_names_are_whole_in_every_list(run: StoredRun, tmp_path: Path, columns: str | None) -> None:
    root = run.url.rsplit("/", 2)[0]
    study = tmp_path / "s.yaml"
    study.write_text(HEAD + "engine: transformers\n" + LONG + "runners: {transformers: process}\n")
    plan = llem("plan", str(study), columns=columns)
    ids = re.findall(r"transformers-\S*", llem("plan", str(study), columns=None))
    assert len(ids) >= 4
    for name in ids:
        assert whole(plan, name), (name, plan)
    for verb in (("history", "nightly"), ("results", "show", "--table", "cycles")):
        text = llem(*verb, columns=columns, root=root)
        for name in IDS:
            assert whole(text, name), (name, text)
        assert "…" not in text
    compared = llem(
        "compare", f"nightly/{FOLDER}#{IDS[0]}", f"nightly/{FOLDER}#{IDS[1]}", columns=columns, root=root
    )
    assert whole(compared, IDS[1])


@pytest.mark.parametrize("columns", ["40", "80", "200", None])
def test_a_run_s_name_copies_whole(run: StoredRun, columns: str | None) -> None:
    root = run.url.rsplit("/", 2)[0]
    assert f"nightly/{FOLDER}" in llem("results", "list", columns=columns, root=root)
    assert RUN_ID in llem("history", "nightly", columns=columns, root=root)
    assert f"Report: {run.url}/report.html" in llem("report", columns=columns, root=root)


@pytest.mark.parametrize("columns", ["40", "80"])
def test_no_line_of_a_plan_is_wider_than_the_terminal(tmp_path: Path, columns: str) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(HEAD + "engine: transformers\n" + LONG + "runners: {transformers: process}\n")
    for line in llem("plan", str(study), "--order", columns=columns).splitlines():
        assert len(line.rstrip()) <= int(columns), line


def test_a_pipe_has_no_width(tmp_path: Path) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(HEAD + "engine: transformers\n" + LONG + "runners: {transformers: process}\n")
    program = "from llem_airflow.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", str(study)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("transformers-")]
    assert len(rows) == 4
    assert all("org/model" in row for row in rows)


@given(text=st.text("abc123-_/=.: ", max_size=60), width=st.integers(1, 30))
def test_folding_loses_no_letter_and_keeps_to_the_width(text: str, width: int) -> None:
    lines = folded(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(map(len, lines)) <= width
    longest = max((len(piece.strip()) for piece in pieces(text)), default=0)
    if longest <= width:
        ends = ["".join(pieces(text)[:k]).replace(" ", "") for k in range(len(pieces(text)) + 1)]
        so_far = ""
        for line in lines:
            so_far += line.replace(" ", "")
            assert so_far in ends


@pytest.mark.parametrize(
    "kept", ["-1.5", "2/2", "token/s", "2026-11-27", "13:39:27", "12,345", "v0.33.0", "5d3e1c52"]
)
def test_numbers_dates_and_units_are_one_word(kept: str) -> None:
    assert pieces(kept) == [kept]


@given(
    rows=st.lists(st.tuples(*[st.text("ab-_/ 1", min_size=1, max_size=30)] * 3), min_size=1, max_size=4),
    width=st.integers(10, 120),
)
def test_a_table_shows_every_cell(rows: list[tuple[str, str, str]], width: int) -> None:
    out = io.StringIO()
    console = Console(width=width, force_terminal=False, file=out)
    show(console, Rows(("One", "Two", "Three"), rows))
    text = re.sub(r"\s", "", out.getvalue())
    for row in rows:
        for cell in row:
            for piece in pieces(cell):
                assert piece.replace(" ", "")[: width - 8] in text


def completions(words: list[str], incomplete: str) -> list[str]:
    found = ShellComplete(main, {}, "llem-airflow", "_LLEM_AIRFLOW_COMPLETE").get_completions(
        words, incomplete
    )
    return [item.value for item in found]


def test_the_shell_completes_runs_and_studies(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", run.url.rsplit("/", 2)[0])
    assert completions(["report"], "") == ["latest", "nightly"]
    assert completions(["report"], "nightly/") == [f"nightly/{FOLDER}"]
    assert completions(["results", "check"], "nig") == ["nightly"]
    assert completions(["compare", "nightly"], "nightly/") == [f"nightly/{FOLDER}"]
    assert completions(["history"], "") == ["nightly"]
    monkeypatch.setenv("LLEM_RESULTS_ROOT", "nope://x")
    assert completions(["report"], "") == []


@pytest.mark.parametrize("columns", ["0", "-5", "wide", ""])
def test_columns_that_are_no_width_say_nothing(run: StoredRun, columns: str) -> None:
    root = run.url.rsplit("/", 2)[0]
    for verb in (("results", "list"), ("report",)):
        assert llem(*verb, columns=columns, root=root) == llem(*verb, columns=None, root=root)
