from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from rich.console import Console

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.formatting import ABSENT
from llem_airflow.analysis.summary import Summary, setup_texts
from llem_airflow.report.markdown import PLACES, report_markdown
from llem_airflow.report.page import report_html
from llem_airflow.report.terminal import render_summary
from llem_airflow.report.view import metric_cell
from llem_airflow.results import StoredRun
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import Recording

ESTIMATE = Recording(
    energy_kind="estimate", meter_kind="cpu-estimate", gpus=("cpu",), counter=False, power_w=20.0
)


def page_of(run: StoredRun) -> str:
    aggregate_run(run, page=report_html)
    return run.folder.read("report.html").decode()


def _text(page: str) -> str:
    class Texts(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_data(self, data: str) -> None:
            self.found.append(data)

    reader = Texts()
    reader.feed(page)
    return re.sub(r"\s+", " ", " ".join(reader.found))


def test_the_page_needs_nothing_from_outside_and_no_script(make_run: MakeRun) -> None:
    page = page_of(make_run({(0, 1): Recording(), (1, 1): Recording()}, cycles=1))
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "@import" not in page


def test_a_run_that_measured_nothing_begins_with_why_and_shows_no_empty_tables(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run({}, cycles=1)
    (tmp_path / "left").mkdir()
    failed = {
        "category": "model_missing",
        "message": "the attempt failed: ValueError: no tokenizer from one of:\n(1) a file,\n(2) a class",
        "hint": "put the tokenizer's files next to the weights",
    }
    run.commit_failed(IDS[0], 1, 1, tmp_path / "left", {"failure": failed})
    html = page_of(run)
    page = _text(html)
    assert re.findall("<h2>(.*?)</h2>", html)[:2] == ["Not measured", "Flags"]
    assert not re.search("<h2>(Result|Efficiency|All statistics)</h2>|no energy", html)
    summary = Summary.from_json(run.summary() or {})
    reason = (
        "model_missing: the attempt failed: ValueError: no tokenizer from one of: (1) a file, (2) a class"
    )
    step = "Next step: Put the tokenizer's files next to the weights."
    for text in (page, _terminal(summary), report_markdown(summary)):
        told = re.sub(r"\s+", " ", text)
        assert reason in told
        assert step in told
        assert "batch_size 1" in told
        assert "1 cycles" not in told
    assert "2 of 2 planned cycles" not in page
    assert f" | {ABSENT} | " not in report_markdown(summary).split("## Reliability")[0]
    assert IDS[0] not in _terminal(summary)


def test_a_run_that_measured_nothing_after_another_one_has_its_report(make_run: MakeRun) -> None:
    for night in ("r1", "r2"):
        page = page_of(make_run({}, cycles=1, run_id=night))
        assert "Nothing was measured" in page
        assert "Changes from the previous run" not in page


def _terminal(summary: Summary) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render_summary(summary))
    return console.export_text()


def test_what_is_folded_away_is_printed_where_there_are_few_experiments(make_run: MakeRun) -> None:
    page = page_of(make_run({(0, 1): Recording(), (1, 1): Recording()}, cycles=1))
    assert '<main class="unfolded">' in page
    assert "not printed unless they are opened" not in page


def test_energy_that_is_an_estimate_is_marked_wherever_it_stands(make_run: MakeRun) -> None:
    text = _text(page_of(make_run({(i, c): ESTIMATE for i in (0, 1) for c in (1, 2)})))
    assert "Energy in this report is an estimate" in text
    # 20 W x 40 s / 220 tokens = 3.64 J per token, and 20 W.
    assert "Energy per output token (estimate)" in text
    assert re.search(r"~ 3\.64 J/token", text)
    assert "Mean power (estimate)" in text
    assert re.search(r"~ 20 W", text)
    assert "Energy (estimate) Per output token (estimate)" in text
    assert "~ 800 J" in text
    told = text.replace("estimated energy per output token 3.64 J/token", "")
    assert not re.search(r"(?<!~ )3\.64 J/token", told)
    assert "3.64 J/token estimate" not in text


def test_where_only_some_energies_are_estimates_each_of_them_says_so(make_run: MakeRun) -> None:
    text = _text(page_of(make_run({(0, 1): ESTIMATE, (1, 1): Recording()}, cycles=1)))
    assert "Energy per output token (estimate)" not in text.split("All statistics")[0]
    assert re.search(r"~ 3\.64 J/token estimate", text)
    assert "not compared, as another meter or boundary was read: batch_size 4" in text


def test_tpot_and_itl_share_a_column_where_they_are_equal(make_run: MakeRun) -> None:
    run = make_run({(i, 1): Recording() for i in (0, 1)}, cycles=1)
    result = page_of(run).split("<h2>Result</h2>")[1].split("</table>")[0]
    assert "TPOT and ITL mean" in result
    assert "ITL mean</th>" not in result.replace("TPOT and ITL mean</th>", "")
    cells = [
        metric_cell(one, name).value
        for one in aggregate_run(run).experiments
        for name in ("tpot_mean_s", "itl_mean_s")
    ]
    assert set(cells) == {"100"}


def test_the_answer_and_the_setting_stand_above_the_numbers_in_every_form(make_run: MakeRun) -> None:
    half = replace(Recording(), power_w=100.0)
    run = make_run({(0, 1): Recording(), (0, 2): Recording(), (1, 1): half, (1, 2): half})
    said = "batch_size 4 against 1: energy per output token \N{MINUS SIGN}50 %"
    page, summary = _text(page_of(run)), aggregate_run(run)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_summary(summary))
    for text in (page, report_markdown(summary), console.export_text()):
        plain = re.sub(r"[*\s]+", " ", text)
        assert said in plain
        assert plain.index(said) < plain.index("TTFT")
        for fact in (
            "tiny",
            "transformers 5.16.0",
            "Test GPU",
            "580.65.06",
            "nvml (measured, counter, board, not characterised)",
        ):
            assert plain.index(fact) < plain.index("TTFT")


def test_the_release_stands_in_the_header(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording()}, cycles=1)
    run.folder.write("run.json", json.dumps(dict(run.meta()) | {"version": "tiny@2601"}).encode())
    assert aggregate_run(run).setting["release"] == ["tiny@2601"]
    assert "release tiny@2601" in _text(page_of(run))


def test_a_summary_of_an_older_version_is_read_and_shown_without_an_answer(make_run: MakeRun) -> None:
    data = aggregate_run(make_run({(0, 1): Recording()})).to_json()
    for name in ("answer", "contrasts", "setting"):
        del data[name]
    for doubt in data["experiments"][0]["doubts"]:
        del doubt["messages"]
    old = Summary.from_json(data)
    assert (old.answer, old.contrasts, old.setting) == (None, (), {})
    assert "energy report" in report_markdown(old)


def test_the_setting_is_read_in_one_order_whatever_the_file_s(make_run: MakeRun) -> None:
    summary = aggregate_run(make_run({(0, 1): Recording()}))
    stored = Summary.from_json(json.loads(json.dumps(summary.to_json(), sort_keys=True)))
    names = [name for name, _ in setup_texts(stored.setting)]
    assert names == ["model", "engine", "hardware", "driver", "meter", "host"]


def test_markdown_lists_the_places_of_a_doubt_or_counts_those_it_leaves_out(make_run: MakeRun) -> None:
    summary = aggregate_run(make_run({(0, 1): Recording(window_s=12.0)}, cycles=1))
    one = summary.experiments[0]
    for count in (2, PLACES, PLACES + 3):
        many = [replace(one, id=f"e{k}", factors={"size": k}) for k in range(count)]
        text = report_markdown(replace(summary, experiments=tuple(many)))
        (line,) = [line for line in text.splitlines() if "The measurement window is" in line]
        listed = sum(f"size {k}, cycle 1" in line for k in range(count))
        more = re.search(r"and (\d+) more", line)
        assert listed + int(more[1] if more else 0) == count


def test_a_doubt_over_cycles_tells_its_range_in_every_form(make_run: MakeRun) -> None:
    lengths = {(0, 1): 12.6, (0, 2): 10.2, (1, 1): 13.3, (1, 2): 11.0}
    run = make_run({key: Recording(window_s=length, requests=6) for key, length in lengths.items()})
    page, summary = _text(page_of(run)), aggregate_run(run)
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(render_summary(summary))
    for text in (page, report_markdown(summary), console.export_text()):
        assert "The measurement window is 10.2 to 13.3 s long" in text
        assert re.search(r"Worst: 10\.2 s in batch_size 1, cycle 2", text)


def test_measured_energy_is_not_called_an_estimate(make_run: MakeRun) -> None:
    text = _text(page_of(make_run({(i, c): Recording() for i in (0, 1) for c in (1, 2)})))
    assert "estimate" not in text.split("Definitions")[0]
    assert "36.4 J/token" in text


def test_every_cycle_without_a_result_is_listed_with_its_reason(make_run: MakeRun) -> None:
    text = _text(page_of(make_run({(0, 1): Recording()})))
    assert text.count("no attempt left a result or an error") >= 3
    assert "1 of 4 planned cycles valid" in text


def test_energy_that_is_withheld_is_a_dash_and_its_reason_a_code_and_never_a_zero(make_run: MakeRun) -> None:
    run = make_run({(i, 1): Recording() for i in (0, 1)}, cycles=1)
    run.cycles()[0].folder.write("power.parquet", b"")
    text = _text(page_of(run))
    cycles, reliability = text.split("Every cycle")[1].split("Reliability")
    assert re.search(rf"invalid_energy {ABSENT} {ABSENT} [\d.]+ token/s", cycles)
    assert re.search(r"gpu_missing \(1\)", reliability.split("Environment")[0])
    assert not re.search(r"(?<![\d.])0(\.0+)? (J|W)", text)


def test_the_gpus_of_an_environment_are_facts_and_not_a_program_s_notation(make_run: MakeRun) -> None:
    run = make_run({(i, 1): Recording() for i in (0, 1)}, cycles=1)
    same, other = (ref.folder for ref in run.cycles())
    told = json.loads(same.read("environment.json"))
    same.write("environment.json", json.dumps(told | {"gpus_after": told["gpus"]}).encode())
    other.write("environment.json", json.dumps(told | {"gpus_after": [{"name": "Another GPU"}]}).encode())
    page = page_of(run)
    assert page.count("<dt>gpus.0.name</dt><dd>Test GPU</dd>") == 2
    assert re.findall(r"<dt>gpus_after.*?</dd>", page) == ["<dt>gpus_after.0.name</dt><dd>Another GPU</dd>"]
    assert "{&#39;" not in page


def test_power_curves_name_their_phases(make_run: MakeRun) -> None:
    page = page_of(make_run({(0, 1): Recording(load_s=20, cooldown_s=20)}, cycles=1))
    for name in ("load", "warm-up", "measure", "cooldown"):
        assert re.search(rf"<text[^>]*>{name}</text>", page)


def test_names_from_a_study_cannot_inject_markup(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(config={"task": {"model": "<script>alert(1)</script> $x$"}})}, cycles=1)
    plan = run.plan()
    plan["experiments"][0]["config"] = {"model": "<script>alert(1)</script> $x$"}
    run.write_plan("<script>alert(2)</script>", plan, {"dag_id": "nightly"})
    assert "<script" not in page_of(run)


def test_the_terminal_table_shows_estimates_intervals_and_n(make_run: MakeRun) -> None:
    summary = aggregate_run(make_run({(0, 1): ESTIMATE, (0, 2): ESTIMATE}))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_summary(summary))
    text = console.export_text()
    assert "~ 3.64" in text
    assert "estimate" in text
    assert "2/2" in text
    assert "missing: batch_size 4 cycle 1" in text
