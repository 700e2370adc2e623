from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

from rich.console import Console

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.quantity import ABSENT
from llem_airflow.analysis.table import render_summary
from llem_airflow.results import StoredRun
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import Recording

ESTIMATE = Recording(
    energy_kind="estimate", meter_kind="cpu-estimate", gpus=("cpu",), counter=False, power_w=20.0
)


def _page(run: StoredRun) -> str:
    aggregate_run(run)
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
    page = _page(make_run({(0, 1): Recording(), (1, 1): Recording()}, cycles=1))
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "@import" not in page


def test_what_is_folded_away_is_printed_where_there_are_few_experiments(make_run: MakeRun) -> None:
    page = _page(make_run({(0, 1): Recording(), (1, 1): Recording()}, cycles=1))
    assert '<main class="unfolded">' in page
    assert "not printed unless they are opened" not in page


def test_energy_that_is_an_estimate_is_marked_wherever_it_stands(make_run: MakeRun) -> None:
    text = _text(_page(make_run({(i, c): ESTIMATE for i in (0, 1) for c in (1, 2)})))
    assert "Energy in this report is an estimate" in text
    # 20 W x 40 s / 220 tokens = 3.64 J per token, and 20 W.
    assert re.search(r"~ 3\.64 J/token estimate", text)
    assert re.search(r"~ 20 W estimate", text)
    assert "~ 800 J estimate" in text
    assert not re.search(r"(?<!~ )3\.64 J/token", text)


def test_measured_energy_is_not_called_an_estimate(make_run: MakeRun) -> None:
    text = _text(_page(make_run({(i, c): Recording() for i in (0, 1) for c in (1, 2)})))
    assert "estimate" not in text.split("Definitions")[0]
    assert "36.4 J/token" in text


def test_every_cycle_without_a_result_is_listed_with_its_reason(make_run: MakeRun) -> None:
    text = _text(_page(make_run({(0, 1): Recording()})))
    assert text.count("no attempt left a result or an error") >= 3
    assert "1 of 4 planned cycles valid" in text


def test_energy_that_is_withheld_is_a_dash_and_its_reason_a_code_and_never_a_zero(make_run: MakeRun) -> None:
    run = make_run({(i, 1): Recording() for i in (0, 1)}, cycles=1)
    run.cycles()[0].folder.write("power.parquet", b"")
    text = _text(_page(run))
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
    page = _page(run)
    assert page.count("<dt>gpus.0.name</dt><dd>Test GPU</dd>") == 2
    assert re.findall(r"<dt>gpus_after.*?</dd>", page) == ["<dt>gpus_after.0.name</dt><dd>Another GPU</dd>"]
    assert "{&#39;" not in page


def test_power_curves_name_their_phases(make_run: MakeRun) -> None:
    page = _page(make_run({(0, 1): Recording(load_s=20, cooldown_s=20)}, cycles=1))
    for name in ("load", "warm-up", "measure", "cooldown"):
        assert re.search(rf"<text[^>]*>{name}</text>", page)


def test_names_from_a_study_cannot_inject_markup(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(config={"task": {"model": "<script>alert(1)</script> $x$"}})}, cycles=1)
    plan = run.plan()
    plan["experiments"][0]["config"] = {"model": "<script>alert(1)</script> $x$"}
    run.write_plan("<script>alert(2)</script>", plan, {"dag_id": "nightly"})
    assert "<script" not in _page(run)


def test_the_terminal_table_shows_estimates_intervals_and_n(make_run: MakeRun) -> None:
    summary = aggregate_run(make_run({(0, 1): ESTIMATE, (0, 2): ESTIMATE}), report=False)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_summary(summary))
    text = console.export_text()
    assert "~ 3.64" in text
    assert "estimate" in text
    assert "2/2" in text
    assert f"missing: {IDS[1]} cycle 1" in text
