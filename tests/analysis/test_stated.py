"""CO2e and cost come only from what a study states, and never without their source, year and the word estimate."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.metrics import derived
from llem_airflow.analysis.statistics import describe
from llem_airflow.report.markdown import report_markdown
from llem_airflow.report.page import report_html
from llem_airflow.study import StudyFileError
from tests.analysis.conftest import MakeRun
from tests.report.test_report import _text
from tests.results.recorded import Recording
from tests.study.texts import study

STATED: dict[str, Any] = {
    "carbon": {"g_per_kwh": 360, "source": "Umweltbundesamt", "year": 2024},
    "price": {"per_kwh": 0.25, "currency": "EUR", "source": "contract", "year": 2026},
}


def test_a_million_tokens_at_one_joule_are_a_kilowatt_hour_divided_by_three_point_six() -> None:
    carbon, price = derived(STATED, describe([0.9, 1.0, 1.1]))
    assert carbon.mean == pytest.approx(1e6 / 3.6e6 * 360)
    assert price.mean == pytest.approx(1e6 / 3.6e6 * 0.25)
    assert carbon.low is not None
    assert carbon.low < carbon.mean
    assert carbon.basis == "360 g CO2e/kWh (Umweltbundesamt, 2024)"
    assert price.basis == "0.25 EUR/kWh (contract, 2026)"


def test_nothing_is_derived_from_nothing() -> None:
    assert derived({}, describe([1.0])) == ()
    assert derived(STATED, None) == ()


def test_summary_report_and_markdown_show_the_estimate_with_source_and_year(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(), (0, 2): Recording()})
    run.write_plan("", {**run.plan(), "stated": STATED}, {"dag_id": "nightly"})
    summary = aggregate_run(run, page=report_html)
    stored = run.summary()
    assert stored is not None
    assert [one["name"] for one in stored["experiments"][0]["derived"]] == [
        "co2e_g_per_million_output_tokens",
        "cost_per_million_output_tokens",
    ]
    text = _text(run.folder.read("report.html").decode())
    assert "CO2e per million output tokens (estimate)" in text
    assert "~ 3,636 g CO2e" in text
    assert "360 g CO2e/kWh (Umweltbundesamt, 2024)" in text
    assert "~ 2.53 EUR [no interval]" in report_markdown(summary)


def test_a_study_states_its_electricity_and_an_intensity_without_a_source_is_a_mistake() -> None:
    good = study("output: {carbon: {g_per_kwh: 360, source: Umweltbundesamt, year: 2024}}\n")
    assert good.output.stated() == {"carbon": STATED["carbon"]}
    with pytest.raises(StudyFileError) as caught:
        study("output: {carbon: {g_per_kwh: 360}, price: {per_kwh: 0, currency: EUR, source: x, year: 12}}\n")
    text = str(caught.value)
    assert "output.carbon: the key 'source' is missing; add `source: ...`." in text
    assert "output.carbon: the key 'year' is missing" in text
    assert "output.price.per_kwh" in text
    assert "found 12 (whole number); allowed: a whole number from 1990 to 2100" in text
