"""``llem-airflow gpu-check`` on the five boards that were published: what it finds is what they play, or is unknown.

The whole command, with the stand-in's driver; only the process that reads the boards lives in virtual time.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from llem_airflow.cli import main
from llem_airflow.protocol.gpu_profile import GpuProfile
from tests.gpu_check.scripted import play_profiles, stepped
from tests.gpu_check.virtual_time import T0_S, pass_virtually

SECONDS = 40.0
NOISE_W = 60.0
BOARDS = stepped()
NOISY = {
    f"{name}-noisy": replace(one, uuid=f"{one.uuid}-noisy", noise_idle_w=NOISE_W, noise_load_w=NOISE_W)
    for name, one in BOARDS.items()
}
PLAYED = {**BOARDS, **NOISY}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GpuProfile]:
    """What the command keeps of each board, by the board's name."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        pass_virtually(patch, folder)
        play_profiles(patch, folder, [*PLAYED.values()], SECONDS, now_s=T0_S)
        minutes = str(SECONDS * len(PLAYED) / 60)
        arguments = ["gpu-check", "--minutes", minutes, "--model-seconds", "0", "--results", str(folder)]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    kept = [GpuProfile.loads(path.read_text(), path.name) for path in folder.glob(".gpu-profiles/*.json")]
    by_uuid = {one.uuid: one for one in kept}
    return {name: by_uuid[one.uuid] for name, one in PLAYED.items()}


@pytest.mark.parametrize("name", PLAYED)
def test_period_and_counter_step_of_a_published_board_are_found_within_two_percent(
    name: str, found: dict[str, GpuProfile]
) -> None:
    played = PLAYED[name]
    assert found[name].power_period_s == pytest.approx(played.power_period_s, rel=0.02)
    assert found[name].counter_period_s == pytest.approx(played.power_period_s, rel=0.02)
    assert found[name].counter_step_mj == played.counter_step_mj


@pytest.mark.parametrize("name", BOARDS)
def test_windows_of_a_published_board_are_found_within_two_percent(
    name: str, found: dict[str, GpuProfile]
) -> None:
    assert found[name].instant_window_s == pytest.approx(BOARDS[name].instant_window_s, rel=0.02)
    average_s = BOARDS[name].average_window_s
    assert found[name].average_window_s == (average_s and pytest.approx(average_s, rel=0.02))


@pytest.mark.parametrize("name", NOISY)
def test_a_window_that_noise_hides_cannot_be_known(name: str, found: dict[str, GpuProfile]) -> None:
    profile = found[name]
    line = {one.what: one for one in profile.findings}["averaging window of instant power"]
    assert (profile.instant_window_s, line.verdict) == (None, "unknown")
    assert "may be off by" in line.why or "noise" in line.why
