"""``llem-airflow gpu-check`` on stand-in boards whose script plays its plan."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llem_airflow.cli import main
from llem_airflow.protocol.gpu_profile import GpuProfile
from llem_airflow.results.folder import Folder
from llem_airflow.results.records import write_profile
from tests.gpu_check.scripted import play_boards
from tests.gpu_check.virtual_time import T0_S, pass_virtually
from tests.standins.gpus import use_script

SECONDS = 26.0


def check(root: Path, *options: str, seconds: float = SECONDS) -> Result:
    arguments = ["gpu-check", "--minutes", str(seconds / 60), "--results", str(root), *options]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("gpu-check")
    with pytest.MonkeyPatch.context() as patch:
        play_boards(
            patch, folder, ["update_ms = 100.7\ninstant_ms = 30\naverage_ms = 500\nlegacy = average"], SECONDS
        )
        return folder, check(folder)


def stored(folder: Path) -> GpuProfile:
    """The one profile that is kept."""
    (path,) = (folder / ".gpu-profiles").glob("*.json")
    return GpuProfile.loads(path.read_text(), str(path))


def test_a_board_s_period_windows_and_step_are_found_within_two_percent(checked: tuple[Path, Result]) -> None:
    assert checked[1].exit_code == 0, checked[1].output
    profile = stored(checked[0])
    assert profile.counter_period_s == pytest.approx(0.1007, rel=0.02)
    assert profile.power_period_s == pytest.approx(0.1007, rel=0.02)
    # A reading every 2 ms, which a busy machine delays: what it leaves open decides whether 2 % of 30 ms are known.
    assert profile.instant_window_uncertainty_s is not None
    assert profile.instant_window_uncertainty_s < 0.003
    assert profile.instant_window_s is None or profile.instant_window_s == pytest.approx(0.030, rel=0.02)
    assert profile.average_window_s == pytest.approx(0.5, rel=0.02)
    assert profile.counter_step_mj == 1
    assert profile.counter_to_integral_ratio == pytest.approx(1, abs=0.01)
    assert (profile.idle_bare_w, profile.load_w, profile.load) == (60.0, 360.0, "scripted")


def test_the_pages_say_a_verdict_for_every_line(checked: tuple[Path, Result]) -> None:
    folder, result = checked
    profile = stored(folder)
    text, page = (
        (folder / ".gpu-profiles" / f"{profile.uuid}.{ending}").read_text() for ending in ("txt", "html")
    )
    assert "differs         averaging window of averaged power: " in text
    assert "cannot be known thermal time constant: -" in text
    assert text in result.output
    assert all(escape(found.what) in page for found in profile.findings)
    assert page.count("<svg") == 4


NO_POWER = [
    f"fault = not_supported {what}"
    for what in ("field=186", "field=185", "field=83", "call=nvmlDeviceGetPowerUsage")
]
BAD_DRIVERS = {
    "lost": (
        ["fault = lost after_s=4"],
        1,
        "stopped answering before the end (GpuIsLost)",
        {"power at full load": "the board stopped answering before"},
    ),
    "no permission": (
        ["fault = no_permission call=nvmlDeviceGetFieldValues"],
        1,
        "Insufficient Permissions",
        {"step of the energy counter": "the board was not checked"},
    ),
    "no counter": (
        ["fault = not_supported field=83", "fault = not_supported call=nvmlDeviceGetTotalEnergyConsumption"],
        0,
        "what NVML refuses: field_83_energy: NotSupported, total_energy: NotSupported",
        {
            "update period of the energy counter": "the driver does not tell it",
            "counter / integral of instant power": "the driver does not tell it",
            "power at full load": "there was no load",
        },
    ),
    "no power": (NO_POWER, 1, "tells neither its power nor its energy", {}),
    "no answer at all": (["fault = unknown"], 2, "the NVIDIA driver does not work here", {}),
}


@pytest.mark.parametrize(("faults", "code", "said", "why"), BAD_DRIVERS.values(), ids=BAD_DRIVERS)
def test_a_bad_driver_ends_in_a_page(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    faults: list[str],
    code: int,
    said: str,
    why: dict[str, str],
) -> None:
    pass_virtually(monkeypatch, tmp_path)
    use_script(monkeypatch, tmp_path, "\n".join(faults), now_s=T0_S)
    uuid = "GPU-5741d000-0000-0000-0000-000000000000"
    earlier = GpuProfile(1, uuid, "A100 (STAND-IN)", "measured", counter_period_s=0.1, edge_delay_s=0.0)
    write_profile(Folder.at(tmp_path), earlier, {})
    result = check(tmp_path, seconds=6.0)
    assert (result.exit_code, "Traceback" in result.output) == (code, False)
    assert said in result.output
    lines = result.output.splitlines()
    for what, reason in why.items():
        told = lines[lines.index(f"cannot be known {what}: -") + 1]
        assert told.endswith(f"; {reason}")
    assert stored(tmp_path).counter_period_s == pytest.approx(0.1, rel=0.02)  # of now, or of the earlier one


def test_a_board_that_does_not_tell_its_uuid_has_its_pages_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_script(monkeypatch, tmp_path, "fault = no_permission call=nvmlDeviceGetUUID")
    result = check(tmp_path, seconds=6.0)
    assert result.exit_code == 1, result.output
    kept = {path.suffix: path.read_text() for path in tmp_path.glob(".gpu-profiles/GPU-0-of-unknown-UUID.*")}
    assert {".json", ".html", ".txt"} == set(kept)
    assert all("tells neither its name nor its UUID" in text for text in kept.values())


def test_without_a_load_and_a_field_it_says_what_it_could_not_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pass_virtually(monkeypatch, tmp_path)
    script = "gpu.0.power = sine 200 50 1.737\nfault = not_supported field=186"
    use_script(monkeypatch, tmp_path, script, now_s=T0_S)
    result = check(tmp_path, "--json", seconds=6.0)
    (profile,) = json.loads(result.stdout)
    assert (result.exit_code, profile["load"], profile["average_window_s"]) == (0, "none", None)
    assert profile["counter_period_s"] == pytest.approx(0.1, rel=0.02)
    assert "A stand-in has no CUDA" in profile["note"]
    assert profile["answers"]["field_186_power_instant"] == "NotSupported"
    why = {found["what"]: (found["verdict"], found["why"]) for found in profile["findings"]}
    assert why["averaging window of instant power"] == ("unknown", "the driver does not tell it")
    assert why["averaging window of averaged power"] == ("unknown", "there was no load whose edges are known")
