"""Two samplers of one window: they may differ by 3 %, or by what both say of their uncertainty; neither is averaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pytest

from llem_airflow.analysis.checks import compared, second_sampler
from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.analysis.series import columns as ref_columns
from llem_airflow.results.parquet import POWER_SCHEMA
from tests.analysis.conftest import MakeRun
from tests.analysis.sampled import columns, meter, row, samples, window
from tests.results.recorded import Recording


def stored(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=POWER_SCHEMA)


def steady(power_w: float) -> EnergyOfWindow:
    """Of a window of ten seconds, by integrals alone: their uncertainty is not known."""
    return window_energy(columns(samples(lambda _: power_w)), meter(), window())


@pytest.mark.parametrize(
    ("other_w", "said"),
    [(2.05, None), (1.95, None), (2.08, "+4.0%"), (1.92, "-4.0%"), (3.0, "+50.0%")],
)
def test_three_per_cent_between_them_is_expected_and_more_is_told(other_w: float, said: str | None) -> None:
    found = compared(meter(), stored(samples(lambda _: other_w)), window(), steady(2.0))
    assert [one.message for one in found] == [
        f"The second sampler of the measurement window is {said} off the one that counts."
    ] * (said is not None)
    assert {(one.code, one.severity) for one in found} <= {("samplers_disagree", "warning")}


def with_counter(power_w: float) -> EnergyOfWindow:
    rows = samples(lambda _: power_w, lambda t: power_w * t, register_s=0.1)
    found = window_energy(columns(rows), meter(), window())
    assert found.energy_j is not None
    assert found.uncertainty_j is not None
    return found


@pytest.mark.parametrize(("of_the_others_share", "told"), [(0.9, False), (1.1, True)])
def test_the_uncertainties_of_both_add_up(of_the_others_share: float, told: bool) -> None:
    """Ours is 150 J of 3,000; the other's comes on top."""
    other = with_counter(300.0)
    assert other.energy_j is not None
    assert other.uncertainty_j is not None
    off_j = 150.0 + of_the_others_share * other.uncertainty_j
    ours = replace(steady(300.0), energy_j=other.energy_j - off_j, uncertainty_j=150.0)
    rows = samples(lambda _: 300.0, lambda t: 300.0 * t, register_s=0.1)
    assert bool(compared(meter(), stored(rows), window(), ours)) == told


def test_a_second_sampler_without_energy_says_why_and_beside_none_of_ours_there_is_nothing_to_compare() -> (
    None
):
    rows = [row(0.0, error="GpuIsLost")]
    nothing = stored(rows)
    (flag,) = compared(meter(), nothing, window(), steady(300.0))
    assert flag.message.startswith("The second sampler has no energy to compare with: ")
    assert flag.message != "The second sampler has no energy to compare with: "
    withheld = window_energy(columns(rows), meter(), window())
    assert withheld.energy_j is None
    assert compared(meter(), nothing, window(), withheld) == ()


def test_a_second_sampler_is_looked_for_among_a_cycle_s_files_and_what_does_not_read_is_told(
    make_run: MakeRun,
) -> None:
    ref = make_run({(0, 1): Recording()}).cycles()[0]
    result = ref.result()
    ours = window_energy(ref_columns(ref.power()), result.meter, result.window)
    assert second_sampler(ref, result.window, ours) == ()
    ref.folder.write("meter_check.json", json.dumps(asdict(result.meter)).encode())
    (flag,) = second_sampler(ref, result.window, ours)
    assert flag.message.startswith("The second sampler's series cannot be read: ")
    ref.folder.write("power_check.parquet", ref.folder.read("power.parquet"))
    assert second_sampler(ref, result.window, ours) == ()
    (flag,) = second_sampler(ref, result.window, replace(ours, energy_j=1.0))
    assert flag.message.endswith("off the one that counts.")
