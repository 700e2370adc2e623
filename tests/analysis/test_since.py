"""A report looks back: what changed since the run before, and why something could not be compared."""

from __future__ import annotations

import json
import re
from typing import Any

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.compare_named import against_previous
from llem_airflow.analysis.energy import SEMANTICS_VERSION
from llem_airflow.analysis.verdict import Verdict
from llem_airflow.report.markdown import report_markdown
from llem_airflow.report.page import report_html
from llem_airflow.results import StoredRun
from tests.analysis.conftest import IDS, MakeRun
from tests.report.test_report import _text
from tests.results.recorded import Recording

JITTER = (0.0, 0.4, -0.4, 0.2, -0.2)


def _run(make_run: MakeRun, run_id: str, day: int, power_w: float, **changes: Any) -> StoredRun:
    recordings = {
        (index, cycle): Recording(power_w=power_w + JITTER[cycle - 1], **changes)
        for index in (0, 1)
        for cycle in range(1, 6)
    }
    run = make_run(recordings, cycles=5, run_id=run_id)
    meta = {**run.meta(), "started_epoch_ns": day * 86_400 * 10**9}
    run.folder.write("run.json", b"{}")
    run.write_plan("model: tiny\n", run.plan(), meta)
    return run


def _page(run: StoredRun) -> str:
    aggregate_run(run, page=report_html)
    return _text(run.folder.read("report.html").decode())


def test_the_report_says_what_changed_since_the_run_before(make_run: MakeRun) -> None:
    aggregate_run(_run(make_run, "monday", 1, 200))
    text = _page(_run(make_run, "tuesday", 2, 220))
    assert "Against run monday" in text
    assert "2 regression" in text
    assert "+10.0 %" in text


def test_markdown_and_json_say_what_changed_too(make_run: MakeRun) -> None:
    aggregate_run(_run(make_run, "monday", 1, 200))
    run = _run(make_run, "tuesday", 2, 220)
    summary = aggregate_run(run)
    since = against_previous(run)
    page = report_markdown(summary, since)
    assert "Against run `monday` of 1970-01-02 00:00:00 UTC: 2 regression." in page
    assert re.search(
        r"\| batch_size 1 \| regression \| \+10\.0 % \[\+9\.\d % to \+10\.\d %\] \| .* \| same \|", page
    )
    assert "one comparison in five is a false alarm" in page
    assert since is not None
    told = json.loads(json.dumps(since.to_json(), allow_nan=False))
    assert (told["run_id"], [one["verdict"] for one in told["comparisons"]]) == ("monday", ["regression"] * 2)


def test_markdown_lists_what_differs_instead_of_a_number(make_run: MakeRun) -> None:
    aggregate_run(_run(make_run, "monday", 1, 200))
    run = _run(make_run, "tuesday", 2, 220, gpus=("GPU-other",))
    page = report_markdown(aggregate_run(run), against_previous(run))
    assert "| not comparable | conditions differ: gpus: " in page


def test_a_first_run_has_no_such_section(make_run: MakeRun) -> None:
    run = _run(make_run, "monday", 1, 200)
    assert "Changes from the previous run" not in _page(run)
    assert against_previous(run) is None


def test_what_differs_is_listed_instead_of_a_number(make_run: MakeRun) -> None:
    aggregate_run(_run(make_run, "monday", 1, 200))
    text = _page(_run(make_run, "tuesday", 2, 220, gpus=("GPU-other",)))
    assert "Conditions differ: gpus: " in text
    assert "2 not comparable" in text


def test_tables_of_older_formulas_are_refused_and_named(make_run: MakeRun) -> None:
    before, after = _run(make_run, "monday", 1, 200), _run(make_run, "tuesday", 2, 200)
    aggregate_run(before)
    aggregate_run(after)
    _as_of_older_formulas(before)
    found = against_previous(after)
    assert found is not None
    assert [one.verdict for one in found.reports] == [Verdict.NOT_COMPARABLE] * 2
    assert found.reports[0].differences == {"energy_semantics": [0, SEMANTICS_VERSION]}


def _as_of_older_formulas(run: StoredRun) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415 - for this test alone

    with run.folder.open("cycles.parquet") as file:
        table = pq.read_table(file)
    index = table.schema.get_field_index("fingerprint")
    older = [
        text and text.replace(f'"energy_semantics": {SEMANTICS_VERSION}', '"energy_semantics": 0')
        for text in table[index].to_pylist()
    ]
    with run.folder.atomic_write("cycles.parquet") as file:
        pq.write_table(table.set_column(index, table.schema.field(index), [older]), file)


def test_an_experiment_that_is_new_or_gone_is_told(make_run: MakeRun) -> None:
    before, after = _run(make_run, "monday", 1, 200), _run(make_run, "tuesday", 2, 200)
    aggregate_run(before)
    plan = after.plan()
    for item in plan["experiments"][1:]:
        item["id"], item["hash"] = "tiny-new-cccccccc", "cccccccc00000000"
    plan["order"] = [IDS[0], "tiny-new-cccccccc"] * 5
    after.write_plan("model: tiny\n", plan, after.meta())
    text = _page(after)
    assert "New in this run: " in text
