from __future__ import annotations

import pyarrow as pa
import pytest

from llem_airflow.analysis.cycle import measures
from llem_airflow.analysis.energy import window_energy
from llem_airflow.analysis.latency import Requests
from llem_airflow.analysis.metrics import METRICS
from llem_airflow.analysis.series import Phase
from llem_airflow.protocol.result import Window
from llem_airflow.results.parquet import REQUESTS_SCHEMA
from llem_airflow.study.names import METRIC_NAMES
from tests.analysis.sampled import at_ns, columns, meter, samples

S = 1_000_000_000


def test_a_study_may_name_every_metric_that_has_a_direction() -> None:
    assert [metric.name for metric in METRICS if metric.better != "-"] == list(METRIC_NAMES)


def test_the_metrics_of_a_cycle_are_those_worked_out_by_hand() -> None:
    """100 W for 10 s; two requests a second of 40 prompt and 50 generated tokens, of 0.5 s each."""
    window = Window(at_ns(0), at_ns(10), 4, 20, 800, 1000)
    rows = [
        {
            "phase": "measure",
            "t_submit_mono_ns": at_ns(begin_s / 2),
            "t_first_mono_ns": at_ns(begin_s / 2) + S // 100,
            "t_last_mono_ns": at_ns(begin_s / 2) + S // 2,
            "output_tokens": 50,
        }
        for begin_s in range(20)
    ]
    energy = window_energy(columns(samples(lambda _: 100.0)), meter(), window)
    marks = (Phase("load", 1 * S, 6 * S), Phase("warmup", 6 * S, 8 * S))
    found = measures(window, energy, Requests.of(pa.Table.from_pylist(rows, schema=REQUESTS_SCHEMA)), marks)
    assert {name: value for name, value in found.items() if name in HAND} == {
        name: pytest.approx(value) for name, value in HAND.items()
    }
    assert set(found) == {metric.name for metric in METRICS}


HAND = {
    "window_s": 10.0,
    "output_tokens": 1000.0,
    "input_tokens": 800.0,
    "requests": 20.0,
    "load_s": 5.0,
    "warmup_s": 2.0,
    "output_tokens_per_s": 100.0,
    "total_tokens_per_s": 180.0,
    "requests_per_s": 2.0,
    "energy_j": 1000.0,
    "average_power_w": 100.0,
    "energy_per_output_token_j": 1.0,
    "energy_per_total_token_j": 1000 / 1800,
    "energy_per_request_j": 50.0,
    "output_tokens_per_j": 1.0,
    "energy_delay_product_j_s": 25.0,
    "ttft_mean_s": 0.01,
    "ttft_p50_s": 0.01,
    "ttft_p90_s": 0.01,
    "ttft_p95_s": 0.01,
    "tpot_mean_s": 0.01,
    "e2el_mean_s": 0.5,
    "e2el_p50_s": 0.5,
    "e2el_p90_s": 0.5,
    "e2el_p95_s": 0.5,
}
