"""Whole attempts on the stand-in driver: what a measured device adds to an attempt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import parts
from tests.measurement.running import FAST_GPU, Ran, run, run_on_gpu, spec_of

GPU = "GPU-5741d000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    ran = run_on_gpu(tmp_path_factory.mktemp("gpu"), "const 250")
    for _ in range(5):
        if _ticks(ran):
            break
        # A busy host may hide the counter's move; the window then opens without one.
        ran = run_on_gpu(tmp_path_factory.mktemp("gpu"), "const 250")
    return ran


def _ticks(ran: Ran) -> list[int]:
    return [row["t_mono_ns"] for row in ran.events if row["event"] == "counter_tick"]


def test_the_window_opens_at_a_tick_of_the_energy_counter(measured: Ran) -> None:
    assert measured.code == 0, measured.stdout
    assert _ticks(measured) == [measured.result.window.t_begin_mono_ns]


def test_idle_phases_lie_before_the_import_and_after_the_load(measured: Ran) -> None:
    begun = [row["phase"] for row in measured.events if row["event"] == "phase_begin"]
    assert begun == ["baseline_bare", "import", "load", "baseline_loaded", "warmup", "measure", "cooldown"]


def test_warm_up_lasts_its_thermal_floor(measured: Ran) -> None:
    assert measured.result.warmup.duration_s >= 1.5


def test_the_environment_names_the_gpu_by_its_uuid(measured: Ran) -> None:
    found = json.loads((measured.out / "environment.json").read_text())
    assert [gpu["uuid"] for gpu in found["gpus"]] == [GPU]
    assert [gpu["uuid"] for gpu in found["gpus_after"]] == [GPU]
    assert found["driver"] == "580.65.06-standin"


def test_a_meter_that_is_not_there_says_so_before_the_engine_is_imported(tmp_path: Path) -> None:
    script = tmp_path / "gpus.conf"
    script.write_text("gpus = 1\ngpu.0.power = const 250\n")
    spec = spec_of("scripted", FAST_GPU, power="rapl")
    if Path("/sys/class/powercap/intel-rapl:0").exists():
        parts.missing("a host without RAPL")
    ran = run(spec, tmp_path)
    assert (ran.error.category, ran.error.phase) == ("meter_unavailable", "start"), ran.error
