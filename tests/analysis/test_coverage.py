"""The uncertainty of an energy covers its error: sampled cells of ``benchmarks/coverage.py``."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.coverage import LOADS, Cell, measure

REPEATS = 24


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.15, 0.5])
def test_the_uncertainty_covers_what_it_states_and_errors_stay_below_two_plain_reads(
    load: str, period_s: float
) -> None:
    rows = [
        measure(Cell(period_s, jitter_s, lag_s, busy, load, window_s), REPEATS)
        for jitter_s, lag_s, busy, window_s in (
            (0.0, 0.0, False, 5.0),
            (0.0, 0.05, False, 10.0),
            (0.005, 0.02, True, 5.0),
            (0.02, 0.0, True, 1.0),
        )
    ]
    assert all(row.unknown == 0 for row in rows)
    assert np.mean([row.covered for row in rows]) >= 0.95
    assert min(row.covered for row in rows) >= 0.87  # of 24 windows, three may fall outside by chance
    assert sum(row.error_j for row in rows) < sum(row.plain_error_j for row in rows)


def test_smooth_loads_on_a_usual_board_are_told_to_a_fraction_of_a_register_period() -> None:
    row = measure(Cell(0.1, 0.0, 0.0, False, "constant", 10.0), REPEATS)
    assert row.error_j / row.exact_j < 1e-4
    assert row.uncertainty_j / row.exact_j < 1e-3
