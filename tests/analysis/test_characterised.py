"""What gpu-check found out about a board makes energies better, never worse, and is part of the stored evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llem_airflow.analysis.counter import counter_energy, find_register, seen_writes
from llem_airflow.analysis.cycle import by_which_profiles, characterised
from llem_airflow.protocol.gpu_profile import Sensor
from tests.analysis.test_register import WATTS, series

WATCHED = ((), (0.0,), (3.0,), (-1.0, 10.0), (-1.0, 0.0, 20.1))


def errors_j(period_s: float, phase_s: float, seed: int, sensor: Sensor) -> list[float]:
    """Error of the energy of 20 s for each way in which moves were watched; it has to be within its uncertainty."""
    found = []
    for watched in WATCHED:
        seen = replace(series(period_s, phase_s, watched, seed=seed), sensor=sensor)
        energy = counter_energy(seen, 0.0, 20.0, steps=True)
        assert energy.energy_j is not None
        error_j = abs(energy.energy_j - WATTS * 20)
        assert energy.uncertainty_j is None or error_j <= energy.uncertainty_j + 0.002
        found.append(error_j)
    return found


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.1, 0.1003, 0.1014, 0.25, 0.5])
def test_a_profile_never_makes_the_energy_of_a_steady_load_worse(period_s: float) -> None:
    """On the mean of 20 phases of the register, as one edge may lie luckily; for all ways of watching and for each.

    At 0.1 s exactly the assumption without a profile is the truth, and readings keep step with the register.
    """
    sensor = Sensor(counter_period_s=period_s * (1 + 1e-5), counter_period_uncertainty_s=2e-5 * period_s)
    phases_s = np.linspace(0.0, period_s, 20, endpoint=False).tolist()
    with_it = [errors_j(period_s, phase_s, i, sensor) for i, phase_s in enumerate(phases_s)]
    without = [errors_j(period_s, phase_s, i, Sensor()) for i, phase_s in enumerate(phases_s)]
    assert np.mean(with_it) <= 1.02 * np.mean(without) + 0.01
    slack_j = 0.1  # of 6000 J
    assert (np.mean(with_it, axis=0) <= 1.02 * np.mean(without, axis=0) + slack_j).all()


def test_the_period_of_a_fast_register_is_known_from_one_move() -> None:
    seen = series(0.02, 0.003, (0.0,))
    writes = seen_writes(seen.t_s, seen.call_s, seen.counter_j)
    alone = find_register(writes, seen.t_s)
    known = find_register(writes, seen.t_s, Sensor(counter_period_s=0.0200002))
    assert alone is not None
    assert known is not None
    assert (alone.period_s, known.period_s) == (0.1, 0.0200002)


def test_a_profile_that_the_moves_contradict_counts_for_nothing() -> None:
    seen = series(0.1007, 0.03, (-1.4, -1.3, -0.4, 1.6, 5.6, 15.6, 25.6))
    writes = seen_writes(seen.t_s, seen.call_s, seen.counter_j)
    wrong = find_register(writes, seen.t_s, Sensor(counter_period_s=0.073))
    alone = find_register(writes, seen.t_s)
    assert wrong is not None
    assert alone is not None
    assert wrong.period_s == alone.period_s


def test_averaged_power_is_late_by_half_of_the_window_that_was_found() -> None:
    seen = series(0.1, 0.0, ())
    assert replace(seen, sensor=Sensor(average_window_s=0.5)).average_delay_s == 0.25
    assert seen.average_delay_s == 0.0


@pytest.mark.parametrize(
    ("carried", "found"),
    [
        (
            {"driver": "580", "counter_period_s": 0.1, "average_window_s": None},
            {"GPU-1": Sensor(counter_period_s=0.1)},
        ),
        ({"driver": "570", "counter_period_s": 0.1}, {}),
        ({"problem": "not JSON"}, {}),
        ("nonsense", {}),
    ],
)
def test_only_a_profile_of_the_same_driver_counts(carried: object, found: dict[str, Sensor]) -> None:
    assert characterised({"power_sensors": {"GPU-1": carried}}, {"driver": "580"}) == found
    assert characterised({}, {}) == {}


def test_a_cycle_says_by_which_profiles_its_boards_were_characterised() -> None:
    made = {
        "driver": "580",
        "made_epoch_ns": 1_795_000_000_000_000_000,
        "made_by": "llem-airflow 1",
        "counter_period_s": 0.1,
    }
    record = {
        "power_sensors": {
            "GPU-1": made,
            "GPU-2": {"driver": "570"},
            "GPU-3": {"driver": "580", "power_period_s": 0.1},
        }
    }
    record["power_sensors"]["GPU-4"] = {"driver": "580", "counter_period_s": None}  # nothing was found
    sensors = characterised(record, {"driver": "580"})
    said = {
        devices: by_which_profiles(record, sensors, devices)
        for devices in ((), ("GPU-0",), ("GPU-1",), ("GPU-1", "GPU-2"), ("GPU-3",), ("GPU-4",))
    }
    assert said == {
        (): "not characterised",
        ("GPU-0",): "not characterised",
        ("GPU-1",): "characterised by gpu-check 2026-11-18 (llem-airflow 1)",
        ("GPU-1", "GPU-2"): "not characterised",
        ("GPU-3",): "characterised by gpu-check",
        ("GPU-4",): "not characterised",
    }
