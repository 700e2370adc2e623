from __future__ import annotations

import pytest

from llem_airflow.analysis import metrics


def test_hand_computed_values() -> None:
    assert metrics.output_tokens_per_s(500, 40.0) == pytest.approx(12.5)
    assert metrics.total_tokens_per_s(300, 500, 40.0) == pytest.approx(20.0)
    assert metrics.requests_per_s(10, 40.0) == pytest.approx(0.25)
    assert metrics.energy_per_output_token_j(8000.0, 500) == pytest.approx(16.0)
    assert metrics.energy_per_total_token_j(8000.0, 300, 500) == pytest.approx(10.0)
    assert metrics.energy_per_request_j(8000.0, 10) == pytest.approx(800.0)
    assert metrics.output_tokens_per_j(8000.0, 500) == pytest.approx(0.0625)
    assert metrics.energy_delay_product_j_s(800.0, 4.0) == pytest.approx(3200.0)


def test_carbon_and_cost_go_by_the_kilowatt_hour() -> None:
    assert metrics.co2e_g(3.6e6, 381.0) == pytest.approx(381.0)
    assert metrics.cost(1.8e6, 0.30) == pytest.approx(0.15)


def test_what_nothing_was_done_for_is_undefined_and_not_zero() -> None:
    assert metrics.energy_per_output_token_j(8000.0, 0) is None
    assert metrics.energy_per_total_token_j(8000.0, 0, 0) is None
    assert metrics.energy_per_request_j(8000.0, 0) is None
    assert metrics.output_tokens_per_j(0.0, 10) is None


def test_a_window_without_length_has_no_rate() -> None:
    assert metrics.output_tokens_per_s(10, 0.0) is None
    assert metrics.total_tokens_per_s(10, 10, 0.0) is None
    assert metrics.requests_per_s(10, 0.0) is None
