"""A board that was seen once is played back: what the stand-in's driver answers is what its profile says."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from llem_airflow.protocol.gpu_profile import GpuProfile
from tests.standins.boards import published, script_of
from tests.standins.test_driver import read

LOW_W, HIGH_W, PERIOD_S = 60.0, 300.0, 0.66

OWN_CLOCK = GpuProfile(
    schema_version=1,
    uuid="GPU-own-clock",
    name="A counter with a clock and a unit of its own",
    source="measured",
    power_period_s=0.050,
    counter_period_s=0.080,
    counter_step_mj=500.0,
    edge_delay_s=0.015,
    noise_idle_w=2.0,
    noise_load_w=2.0,
)
JITTER = GpuProfile(
    schema_version=1,
    uuid="GPU-jitter",
    name="Writes that come early or late",
    source="measured",
    power_period_s=0.020,
    power_jitter_s=0.002,
)


def energy_j(t_s: float) -> float:
    """Of the square, which is high in the first half of its period."""
    whole, rest_s = divmod(t_s, PERIOD_S)
    high_s = whole * PERIOD_S / 2 + min(rest_s, PERIOD_S / 2)
    return high_s * HIGH_W + (t_s - high_s) * LOW_W


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each board answers, by its UUID; the script's clock is the epoch's."""
    folder = tmp_path_factory.mktemp("boards")
    square = f"power = square {LOW_W} {HIGH_W} {PERIOD_S} 0.5"
    boards = [*published().values(), OWN_CLOCK, JITTER]
    lines = [f"{script_of(one, i)}gpu.{i}.{square}\n" for i, one in enumerate(boards)]
    lines += [f"gpu.5.power = const {HIGH_W}\n"]
    said = read(folder, f"t0 = 1\ngpus = {len(boards)}\n{''.join(lines)}", times=80, pause_s=0.02)
    return {uuid: list(rows) for uuid, rows in itertools.groupby(sorted(said, key=_uuid), _uuid)}


def _uuid(answer: dict[str, Any]) -> str:
    return str(answer["uuid"])


def test_the_published_boards_are_five_with_their_source_and_without_invented_numbers() -> None:
    boards = published()
    assert len(boards) == 5
    for one in boards.values():
        assert one.source == "published"
        assert "arXiv 2312.02741" in one.note
        assert "row" in one.note
        assert (one.counter_period_s, one.power_jitter_s, one.edge_delay_s, one.noise_load_w) == (None,) * 4
        assert ("field=185" in script_of(one)) == (one.average_window_s is None)


@pytest.mark.parametrize("board", published())
def test_a_published_board_answers_with_its_period_and_windows(
    board: str, played: dict[str, list[Any]]
) -> None:
    """Every answer is the closed form: the load's mean over the window that ends at the register's last write."""
    profile = published()[board]
    assert profile.power_period_s
    for row in played[profile.uuid]:
        to_s = row["register_s"] - 1  # the script's clock began at epoch second 1
        assert to_s / profile.power_period_s == pytest.approx(round(to_s / profile.power_period_s), abs=1e-4)
        assert 0 <= row["epoch_s"] - row["register_s"] < profile.power_period_s + 0.01
        windows = {"instant_w": profile.instant_window_s, "average_w": profile.average_window_s}
        for column, window_s in windows.items():
            if window_s is not None:
                mean_w = (energy_j(to_s) - energy_j(to_s - window_s)) / window_s
                assert row[column] == pytest.approx(mean_w, abs=0.3)  # the timestamp has microseconds


def test_lag_noise_and_the_counter_s_own_clock_and_unit_are_played(played: dict[str, list[Any]]) -> None:
    rows = played[OWN_CLOCK.uuid]
    counters_mj = np.round([row["counter_j"] * 1e3 for row in rows])
    assert np.all(counters_mj % 500 == 0)
    writes = np.array([row["register_s"] - 1 for row in rows]) / 0.080
    assert np.allclose(writes, np.round(writes), atol=1e-3)
    late_s = [row["epoch_s"] - row["register_s"] for row in rows]
    assert min(late_s) > 0.0149
    noisy = np.unique([row["instant_w"] for row in rows])
    assert len(noisy) > 10
    assert np.mean(noisy) == pytest.approx(HIGH_W, abs=3)
    assert 0.8 < np.std(noisy) < 3.5


def test_jitter_moves_the_writes_about_their_steady_times(played: dict[str, list[Any]]) -> None:
    writes_s = np.unique([row["register_s"] - 1 for row in played[JITTER.uuid]])
    off_s = writes_s - np.round(writes_s / 0.020) * 0.020
    assert len(writes_s) > 20
    assert 0.001 < np.std(off_s) < 0.0035
    assert np.max(np.abs(off_s)) <= 0.009001
