"""Profiles are kept beside the studies, and a stored cycle carries what it was measured with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llem_airflow.protocol.gpu_profile import GpuProfile
from llem_airflow.results import ResultReadError, ResultsRoot
from llem_airflow.results.records import read_profile, write_profile
from tests.results.recorded import Recording

PROFILE = GpuProfile(1, "GPU-1", "A100", "measured", driver="580", counter_period_s=0.1007)


def test_a_profile_is_kept_by_its_board_and_is_no_study(tmp_path: Path) -> None:
    root = ResultsRoot(tmp_path)
    write_profile(root.folder, PROFILE, {"txt": "page"})
    assert read_profile(root.folder, "GPU-1") == PROFILE
    assert read_profile(root.folder, "GPU-2") is None
    assert root.studies() == []
    assert (tmp_path / ".gpu-profiles" / "GPU-1.txt").read_text() == "page"


def stored(root: Path, **meter: object) -> dict[str, object]:
    """provenance.json of a cycle of the board."""
    recorded = Recording()
    result = recorded.result()
    raw = root / "raw"
    raw.mkdir()
    told = dataclasses.replace(result.meter, **meter)  # type: ignore[arg-type]  # fields by name
    (raw / "result.json").write_text(dataclasses.replace(result, meter=told).dumps())
    run = ResultsRoot(root / "results").run("study", "run")
    run.commit_cycle("e-1", 1, raw, {"host": "h"})
    ref = run.cycle("e-1", 1)
    assert ref is not None
    return ref.provenance()


def test_a_cycle_carries_the_profile_of_its_board(tmp_path: Path) -> None:
    write_profile(ResultsRoot(tmp_path / "results").folder, PROFILE, {})
    record = stored(tmp_path, kind="nvml", devices=("GPU-1", "GPU-2"))
    assert record["power_sensors"] == {
        "GPU-1": {
            "driver": "580",
            "made_epoch_ns": None,
            "made_by": None,
            "counter_period_s": 0.1007,
            "counter_period_uncertainty_s": None,
            "power_period_s": None,
            "instant_window_s": None,
            "average_window_s": None,
        }
    }


def test_a_cycle_without_a_characterised_board_carries_nothing(tmp_path: Path) -> None:
    assert "power_sensors" not in stored(tmp_path, kind="nvml", devices=("GPU-1",))


def test_a_damaged_profile_is_named_and_keeps_no_result_from_being_stored(tmp_path: Path) -> None:
    folder = tmp_path / "results" / ".gpu-profiles"
    folder.mkdir(parents=True)
    (folder / "GPU-1.json").write_text("{")
    with pytest.raises(ResultReadError, match="not JSON"):
        read_profile(ResultsRoot(tmp_path / "results").folder, "GPU-1")
    record = stored(tmp_path, kind="nvml", devices=("GPU-1",))
    assert "not JSON" in str(record["power_sensors"])
