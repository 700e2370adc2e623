from __future__ import annotations

import os
import statistics
import subprocess
import sys
from itertools import pairwise

import pytest
from scipy import stats

from llem_airflow.measurement.load.arrivals import PROCESSES, arrival_times

DRAWS = 100_000

GOLDEN = {  # seed 42, 2 requests a second; the same on Python 3.10 to 3.13
    "poisson": [0.510030144, 0.522694563, 0.683506595, 0.809799688, 1.476596024],
    "gamma 2": [0.47537456, 0.491644598, 2.293341341, 2.383457059, 2.389954988],
    "gamma 0.5": [0.620878438, 0.967510787, 1.704847781, 2.148744186, 2.457708102],
}


def gaps_s(process: str, rate_per_s: float, burstiness: float = 1.0) -> list[float]:
    times_s = arrival_times(
        process, rate_per_s=rate_per_s, duration_s=1.02 * DRAWS / rate_per_s, burstiness=burstiness, seed=7
    )
    return [after - before for before, after in pairwise([0.0, *times_s])][:DRAWS]


def test_poisson_gaps_are_exponential() -> None:
    gaps = gaps_s("poisson", 20.0)
    assert len(gaps) == DRAWS
    assert stats.kstest(gaps, stats.expon(scale=1 / 20).cdf).pvalue > 0.01


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 2.0])
def test_gamma_gaps_are_gamma_with_the_burstiness_as_their_coefficient_of_variation(
    burstiness: float,
) -> None:
    gaps = gaps_s("gamma", 5.0, burstiness)
    vllm_shape = (
        1 / burstiness**2
    )  # `vllm bench serve --burstiness`: np.random.gamma(shape, 1 / (rate * shape))
    assert stats.kstest(gaps, stats.gamma(vllm_shape, scale=1 / (5.0 * vllm_shape)).cdf).pvalue > 0.01
    assert statistics.fmean(gaps) == pytest.approx(1 / 5.0, rel=0.03)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(burstiness, rel=0.03)


def test_constant_arrivals_are_the_rate_in_every_window() -> None:
    assert arrival_times("constant", rate_per_s=4, duration_s=1.0, seed=1) == [0.0, 0.25, 0.5, 0.75]
    gaps = gaps_s("constant", 30.0)[1:]
    assert max(abs(gap - 1 / 30) for gap in gaps) < 1e-9
    assert len(arrival_times("constant", rate_per_s=0.1, duration_s=3600, seed=1)) == 360


@pytest.mark.parametrize("process", PROCESSES)
def test_the_same_seed_gives_the_same_schedule_and_another_one_another(process: str) -> None:
    def drawn(seed: int) -> list[float]:
        return arrival_times(process, rate_per_s=50, duration_s=20, burstiness=1.7, seed=seed)

    assert drawn(3) == drawn(3)
    assert (drawn(3) == drawn(4)) is (process == "constant")
    assert drawn(3) == sorted(drawn(3))
    assert all(0 <= at_s < 20 for at_s in drawn(3))


def test_the_first_draws_are_these_in_every_version() -> None:
    def first(process: str, burstiness: float = 1.0) -> list[float]:
        times_s = arrival_times(process, rate_per_s=2, duration_s=60, burstiness=burstiness, seed=42)
        return [round(at_s, 9) for at_s in times_s[:5]]

    drawn = {"poisson": first("poisson"), "gamma 2": first("gamma", 2.0), "gamma 0.5": first("gamma", 0.5)}
    assert drawn == GOLDEN
    assert first("constant") == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_the_hash_seed_of_the_process_does_not_matter() -> None:
    program = (
        "from llem_airflow.measurement.load.arrivals import arrival_times\n"
        "print(arrival_times('gamma', rate_per_s=9, duration_s=9, burstiness=3, seed=5))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("rate_per_s", 0.0),
        ("rate_per_s", -1.0),
        ("rate_per_s", float("inf")),
        ("rate_per_s", float("nan")),
        ("burstiness", 0.0),
        ("burstiness", float("nan")),
        ("duration_s", -1.0),
        ("duration_s", float("inf")),
    ],
)
def test_an_argument_out_of_range_is_named(argument: str, value: float) -> None:
    arguments = {"rate_per_s": 1.0, "duration_s": 1.0, "burstiness": 1.0, argument: value}
    with pytest.raises(ValueError, match=argument):
        arrival_times("gamma", **arguments, seed=1)


def test_an_unknown_process_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'uniform'.*poisson, gamma, constant"):
        arrival_times("uniform", rate_per_s=1, duration_s=1, seed=1)


def test_no_time_no_arrivals() -> None:
    assert arrival_times("constant", rate_per_s=1, duration_s=0, seed=1) == []
    assert arrival_times("poisson", rate_per_s=1, duration_s=0, seed=1) == []
