from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.cli import main
from llem_airflow.results import StoredRun
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import Recording, provenance

JITTER = (0.0, 0.4, -0.4)


def _llem(run: StoredRun, *arguments: str) -> Result:
    root = run.url.rsplit("/", 2)[0]
    return CliRunner().invoke(main, arguments, env={"LLEM_RESULTS_ROOT": root, "COLUMNS": "160"})


def _run(make_run: MakeRun, run_id: str = "a", power_w: float = 200.0) -> StoredRun:
    run = make_run(
        {(0, k): Recording(power_w=power_w + JITTER[k - 1]) for k in (1, 2, 3)}, cycles=3, run_id=run_id
    )
    aggregate_run(run)
    return run


def test_report_aggregates_a_run_that_was_not(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording()})
    found = _llem(run, "report")
    assert found.exit_code == 0
    assert f"Report: {run.url}/report.html" in found.output
    assert run.folder.exists("summary.json")


def test_report_of_no_run_says_what_there_is_and_exits_with_2(make_run: MakeRun) -> None:
    found = _llem(_run(make_run), "report", "nightly/typo")
    assert found.exit_code == 2
    assert "names no run" in found.stderr
    assert "nightly/a" in found.stderr


def test_a_name_that_no_encoding_has_keeps_no_report_from_being_made(make_run: MakeRun) -> None:
    run = _run(make_run)
    plan = run.plan()
    plan["experiments"][0]["config"] = {"engine": "transformers", "task": {"model": "a\ud800b"}}
    run.folder.write("plan.json", json.dumps(plan).encode())
    found = _llem(run, "report", "--again")
    assert found.exit_code == 0, found.output
    assert "a\N{REPLACEMENT CHARACTER}b" in run.folder.read("report.html").decode()
    assert "a\N{REPLACEMENT CHARACTER}b" in found.output


def test_report_as_markdown_and_as_json(make_run: MakeRun) -> None:
    run = _run(make_run)
    page = _llem(run, "report", "--format", "markdown").output
    assert re.search(r"\| batch_size 1 \| 36\.\d J/token \[36\.\d to 36\.\d\] \|.* \| 3/3 \|", page)
    assert "no attempt left a result or an error" in page
    assert "| gpu-1 | transformers | 3 | 3 | 0 | 0 | " in page
    found = json.loads(_llem(run, "report", "--format", "json").output)
    assert (found["planned"], found["since_previous"]) == (6, None)


def test_compare_prints_the_verdict_and_fails_only_when_asked_to(make_run: MakeRun) -> None:
    run = _run(make_run)
    _run(make_run, "b", 240.0)
    found = _llem(run, "compare", "nightly/a", "nightly/b")
    assert found.exit_code == 0
    assert "REGRESSION" in found.output
    assert "outputs: same" in found.output
    assert _llem(run, "compare", "nightly/a", "nightly/b", "--fail-on-regression").exit_code == 1


def test_compare_prints_json(make_run: MakeRun) -> None:
    run = _run(make_run)
    report, without_results = json.loads(_llem(run, "compare", "nightly/a", "nightly/a", "--json").output)
    assert report["verdict"] == "unchanged"
    assert without_results["verdict"] == "not enough evidence"


def test_compare_of_a_run_with_itself_says_that_it_is_the_same(make_run: MakeRun) -> None:
    run = _run(make_run)
    _run(make_run, "b", 240.0)
    assert f"{run.url}: both sides are the same run" in _llem(run, "compare", "nightly/a", "nightly/a").output
    one = f"nightly/a#{IDS[0]}"
    assert f"{run.url}#{IDS[0]}: both sides are the same run" in _llem(run, "compare", one, one).output
    assert "same run" not in _llem(run, "compare", "nightly/a", "nightly/b").output
    assert "same run" not in _llem(run, "compare", one, f"nightly/a#{IDS[1]}").output


@pytest.mark.parametrize("threshold", ["0", "-0.1", "nan", "inf"])
def test_a_threshold_that_is_not_above_zero_is_refused(make_run: MakeRun, threshold: str) -> None:
    found = _llem(_run(make_run), "compare", "nightly/a", "nightly/a", f"--threshold={threshold}")
    assert found.exit_code == 2
    assert "a number above 0; 0.02 is 2 %" in found.stderr


def test_a_metric_without_a_better_cannot_decide(make_run: MakeRun) -> None:
    for name in ("energy_j", "joules"):
        found = _llem(_run(make_run), "compare", "nightly/a", "nightly/a", "--metric", name)
        assert found.exit_code == 2
        assert f"metric '{name}' cannot decide a comparison; choose one of: energy_per_output" in found.stderr


def test_compare_of_an_unknown_experiment_says_which_there_are(make_run: MakeRun) -> None:
    found = _llem(_run(make_run), "compare", "nightly/a#typo", f"nightly/a#{IDS[0]}")
    assert found.exit_code == 2
    assert f"there are: {IDS[0]}" in found.stderr


def test_history_follows_an_experiment_over_runs(make_run: MakeRun) -> None:
    run = _run(make_run)
    _run(make_run, "b", 240.0)
    found = _llem(run, "history", "nightly")
    assert re.search(r"2\s+43\.6 J/token\s+regression: step", found.output)


def test_history_of_a_metric_that_cannot_become_worse_says_which_can(make_run: MakeRun) -> None:
    found = _llem(_run(make_run), "history", "nightly", "--metric", "energy_j")
    assert found.exit_code == 2
    assert "energy_j: more of it is neither better nor worse" in found.output
    assert "energy_per_output_token_j" in found.output


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_history_of_a_metric_that_no_run_has_says_so_in_every_form(
    make_run: MakeRun, form: list[str]
) -> None:
    found = _llem(_run(make_run), "history", "nightly", "--metric", "goodput_requests_per_s", *form)
    assert (found.exit_code, "has a value of goodput_requests_per_s" in found.output) == (2, True)


def test_history_of_an_unknown_metric_says_which_there_are(make_run: MakeRun) -> None:
    found = _llem(_run(make_run), "history", "nightly", "--metric", "joules")
    assert found.exit_code == 2
    assert "energy_per_output_token_j" in found.stderr


def test_list_shows_runs_with_their_state(make_run: MakeRun) -> None:
    run = _run(make_run)
    make_run({(0, 1): Recording()}, run_id="b")
    found = _llem(run, "results", "list")
    assert re.search(r"nightly/a .* 3/6 .* measured\s+done", found.output)
    assert re.search(r"nightly/b .* not aggregated", found.output)


def test_list_pages_through_the_runs_from_the_newest_on(make_run: MakeRun) -> None:
    run = _run(make_run)
    hours_ns = 3600 * 10**9
    for name, hours in (("b", 3), ("c", 1), ("d", 2)):
        made = make_run({(0, 1): Recording()}, run_id=name)
        made.folder.write(
            "run.json", json.dumps({**made.meta(), "started_epoch_ns": hours * hours_ns}).encode()
        )

    def listed(*arguments: str) -> tuple[list[str], str]:
        found = _llem(run, "results", "list", *arguments)
        assert found.exit_code == 0, found.output
        lines = found.output.splitlines()
        return [line.split()[0].partition("/")[2] for line in lines if "nightly/" in line], lines[-1]

    everything, _ = listed()
    assert everything == ["a", "b", "d", "c"]
    assert listed("--limit", "0")[0] == everything
    assert listed("--limit", "2") == (["a", "b"], "Runs 1 to 2 of 4; older ones: --skip 2")
    assert listed("--limit", "3", "--skip", "2") == (["d", "c"], "Runs 3 to 4 of 4")
    assert listed("--skip", "9") == ([], "There are no older runs than the 4 that --skip 9 leaves out")
    assert listed("--study", "nightly")[0] == everything
    other = _llem(run, "results", "list", "--study", "nigthly")
    assert other.exit_code == 2
    assert "there is no run of a study 'nigthly'; did you mean 'nightly'?" in other.output


def test_show_has_a_row_for_every_cycle_and_says_why_one_has_no_numbers(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run({(0, 1): Recording(), (1, 1): Recording()})
    for cycle, category, message in ((2, "gpu_unavailable", "0 of 1 free"), (2, "crash", "segfault")):
        failure = {"category": category, "message": message, "hint": "", "retryable": True}
        name = IDS[0] if category == "crash" else IDS[1]
        run.commit_failed(name, cycle, 1, tmp_path / "absent", provenance() | {"failure": failure})
    cycles = _llem(run, "results", "show", "--table", "cycles").output
    assert [cycles.count(status) for status in ("valid", "failed", "missed")] == [2, 1, 1]
    assert "segfault" in cycles
    reliability = _llem(run, "results", "show", "--table", "reliability").output
    (row,) = [line for line in reliability.splitlines() if "gpu-1" in line]
    assert row.split()[:6] == ["gpu-1", "transformers", "4", "2", "1", "2"]
    assert "gpu_unavailable" in "".join(reliability.split())


def test_check_of_whole_evidence_finds_nothing(make_run: MakeRun) -> None:
    found = _llem(_run(make_run), "results", "check")
    assert found.exit_code == 0
    assert "3 cycles, no problems" in found.output


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("environment.json", None, "is missing"),
        ("result.json", None, "its evidence is gone"),
        ("container.log", b"changed", "was changed after it was stored"),
        ("power.parquet", b"PAR1", "was changed after it was stored"),
    ],
)
def test_check_names_a_file_that_is_not_as_it_was_stored(
    make_run: MakeRun, file: str, content: bytes | None, message: str
) -> None:
    run = _run(make_run)
    target = Path(run.cycles()[1].folder.path) / file
    if content is None:
        target.unlink()
    else:
        target.write_bytes(content)
    found = _llem(run, "results", "check")
    assert found.exit_code == 1
    assert re.search(rf"cycle.2.*{message}", found.output)


def test_check_finds_joules_that_do_not_come_out_again(make_run: MakeRun) -> None:
    run = _run(make_run)
    assert run.path is not None
    file = run.path / "cycles.parquet"
    table = pq.read_table(file)
    index = table.schema.get_field_index("energy_j")
    changed = [None if value is None else value * 1.01 for value in table.column("energy_j").to_pylist()]
    pq.write_table(table.set_column(index, table.schema.field(index), [changed]), file)
    found = _llem(run, "results", "check")
    assert found.exit_code == 1
    assert "J, the table says" in found.output


def test_export_writes_every_cycle_as_csv(make_run: MakeRun, tmp_path: Path) -> None:
    found = _llem(_run(make_run), "results", "export", "-o", str(tmp_path / "c.csv"))
    assert found.exit_code == 0
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert len(lines) == 1 + 6
    assert lines[0].startswith('"study","run_id","experiment","cycle","status"')


@pytest.mark.parametrize("table", ["cycles", "experiments", "power"])
def test_export_writes_json_and_parquet_with_every_row(make_run: MakeRun, tmp_path: Path, table: str) -> None:
    run = _run(make_run)
    assert run.path is not None
    rows = pq.read_metadata(run.path / f"{table}.parquet").num_rows
    for form in ("json", "jsonl", "parquet", "csv"):
        target = tmp_path / f"t.{form}"
        arguments = ("results", "export", "--table", table, "--format", form, "-o", str(target))
        assert _llem(run, *arguments).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert len(lines) == rows
    assert json.loads((tmp_path / "t.json").read_text()) == lines
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == rows
    assert len((tmp_path / "t.csv").read_text().splitlines()) == rows + 1


@pytest.mark.parametrize("form", ["json", "parquet", "csv"])
def test_export_writes_how_reliable_each_host_and_engine_was(
    make_run: MakeRun, tmp_path: Path, form: str
) -> None:
    target = tmp_path / f"t.{form}"
    arguments = ("results", "export", "--table", "reliability", "--format", form, "-o", str(target))
    assert _llem(_run(make_run), *arguments).exit_code == 0
    readers: dict[str, Any] = {
        "json": lambda: json.loads(target.read_text()),
        "parquet": lambda: pq.read_table(target).to_pylist(),
        "csv": lambda: list(csv.DictReader(target.read_text().splitlines())),
    }
    found = {row["host"] or None: row for row in readers[form]()}
    assert (int(found["gpu-1"]["valid"]), int(found["gpu-1"]["missed"])) == (3, 0)
    assert json.loads(found[None]["reasons"]) == {"no attempt left a result or an error": 3}


def test_prune_removes_nothing_without_yes(make_run: MakeRun) -> None:
    run = _run(make_run)
    _run(make_run, "b")
    found = _llem(run, "results", "prune", "--keep-runs", "1")
    assert "1 run," in found.output
    assert "would be removed" in found.output
    assert run.folder.exists("summary.json")


def test_prune_keeps_the_newest_runs_and_those_without_a_summary(make_run: MakeRun) -> None:
    run = _run(make_run)
    second = _run(make_run, "b")
    unfinished = make_run({(0, 1): Recording()}, run_id="c")
    assert _llem(run, "results", "prune", "--keep-runs", "1", "--yes").exit_code == 0
    left = [one.is_run() for one in (run, second, unfinished)]
    assert left == [False, True, True]
    assert not list(Path(run.url).parent.glob(".removed*"))


def test_prune_without_a_rule_is_refused(make_run: MakeRun) -> None:
    found = _llem(_run(make_run), "results", "prune")
    assert found.exit_code == 2
    assert "say what to keep: a number of runs (--keep-runs), of days (--keep-days), or both" in found.stderr
    for option in ("--keep-runs=-1", "--keep-days=-0.5", "--keep-days=nan"):
        found = _llem(_run(make_run), "results", "prune", option)
        told = f"{option.replace('=', ': what to keep must be a number from 0, not ')}\n"
        assert (found.exit_code, found.stderr) == (2, told)
