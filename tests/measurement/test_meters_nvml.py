"""The meter nvml against the stand-in driver: what is read, and what the user sees of every fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from llem_airflow.measurement.meters.contract import MeterUnavailableError
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.spec import MeterSpec
from tests.standins.gpus import Measured, doubt_ratio, measure, use_script

NVML = MeterSpec(kind="nvml")
GPU_0, GPU_1 = (f"GPU-5741d000-0000-0000-0000-{number:012d}" for number in (0, 1))
SLICE = "MIG-5741d000-0000-0000-0000-000000000001"

SILENT_GPU = """
fault = not_supported field=186
fault = not_supported field=185
fault = not_supported field=83
fault = not_supported call=nvmlDeviceGetPowerUsage
"""

Script = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    def use(text: str, *, starts_in_s: float = 0.0) -> None:
        use_script(monkeypatch, tmp_path, text, starts_in_s=starts_in_s)

    return use


def refusal(folder: Path, spec: MeterSpec = NVML) -> str:
    with pytest.raises(MeterUnavailableError) as refused:
        start_sampler(spec, folder / "power.csv")
    return str(refused.value)


def test_constant_power_is_measured_by_the_counter_within_a_tenth_of_a_percent(
    script: Script, tmp_path: Path
) -> None:
    script("gpu.0.power = const 300")
    energy = measure(tmp_path, NVML).energy
    assert (energy.source, energy.kind, energy.boundary) == ("counter", "measured", "board")
    assert energy.average_power_w == pytest.approx(300.0, rel=doubt_ratio(energy))
    assert energy.gpus[0].instant_j == pytest.approx(300.0 * energy.duration_s, rel=1e-3)


def test_all_gpus_are_read_and_summed(script: Script, tmp_path: Path) -> None:
    script("gpus = 2\ngpu.0.power = const 300\ngpu.1.power = const 100")
    measured = measure(tmp_path, MeterSpec(kind="auto"))
    assert measured.result.meter.devices == (GPU_0, GPU_1)
    assert measured.energy.average_power_w == pytest.approx(400.0, rel=doubt_ratio(measured.energy))
    assert measured.codes == set()


def test_only_the_gpus_that_were_given_are_read(script: Script, tmp_path: Path) -> None:
    script("gpus = 2\ngpu.0.power = const 300\ngpu.1.power = const 100")
    measured = measure(tmp_path, MeterSpec(kind="nvml", gpus=(GPU_1,)), 0.5)
    assert measured.result.meter.devices == (GPU_1,)


def test_every_column_is_filled(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 300\ngpu.0.event = 0x4\ngpu.0.temperature_c = 55", starts_in_s=-5.0)
    measured = measure(tmp_path, NVML, 0.3)
    row = {name: column[0] for name, column in measured.power.items()}
    assert row["t_after_mono_ns"] >= row["t_before_mono_ns"]
    del row["t_after_mono_ns"], row["t_before_mono_ns"], row["energy_mj"]
    assert row == {
        "gpu": GPU_0,
        "power_instant_mw": 300_000,
        "power_average_mw": 300_000,
        "sm_clock_mhz": 1410,
        "mem_clock_mhz": 1593,
        "event_reasons": 4,
        "temperature_c": 55,
        "mem_temperature_c": 65,
        "utilisation_percent": 98,
        "memory_used_bytes": 512 << 20,
        "error": None,
    }
    # What moves slowly is asked for once a second; what decides whether a run counts, with every sample.
    sampled = [i for i, power_mw in enumerate(measured.power["power_instant_mw"]) if power_mw is not None]
    assert {measured.power["event_reasons"][i] for i in sampled} == {4}
    assert 1 <= sum(measured.power["temperature_c"][i] is not None for i in sampled) < len(sampled) / 3


def test_the_devices_describe_themselves_with_limits_and_processes(script: Script, tmp_path: Path) -> None:
    script("gpu.0.limit_w = 350\ngpu.0.process = 4242 1073741824")
    (gpu,) = measure(tmp_path, NVML, 0.1).gpus
    assert (gpu["uuid"], gpu["enforced_power_limit_w"], gpu["mig_mode"]) == (GPU_0, 350.0, False)
    assert gpu["processes"] == [{"pid": 4242, "memory_used_bytes": 1 << 30}]
    assert gpu["driver_version"] == "580.65.06-standin"


def test_whatever_is_measured_with_the_stand_in_says_so(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 300")
    measured = measure(tmp_path, NVML, 0.1)
    assert "STAND-IN" in measured.result.meter.note
    assert "stand_in" in {flag.code for flag in measured.flags}


def test_the_power_of_a_mig_slice_is_its_boards_and_attributed(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 200\ngpu.0.mig.0.memory_used = 1\ngpu.0.mig.1.memory_used = 1")
    measured = measure(tmp_path, MeterSpec(kind="nvml", gpus=(SLICE,)))
    assert (measured.energy.kind, measured.result.meter.devices) == ("attributed", (GPU_0,))
    assert f"{SLICE} has no power sensor of its own" in measured.result.meter.note
    assert measured.codes == {"attributed"}


def test_two_slices_of_one_board_count_it_once(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 200\ngpu.0.mig.0.memory_used = 1\ngpu.0.mig.1.memory_used = 1")
    other = SLICE.replace("000001", "000000")
    measured = measure(tmp_path, MeterSpec(kind="nvml", gpus=(SLICE, other)))
    assert measured.energy.average_power_w == pytest.approx(200.0, rel=doubt_ratio(measured.energy))


# Faults at the start: the attempt fails with a sentence that says what to do.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fault = driver_not_loaded call=nvmlInit", "no NVIDIA driver answers here (DriverNotLoaded)"),
        ("fault = mismatch call=nvmlInit", "NVML/RM version mismatch. Run nvidia-smi on the host"),
        ("gpus = 0", "the driver shows no GPU here. Give the container a GPU"),
        ("fault = lost", "the NVIDIA driver does not work here: GPU is lost"),
        ("fault = lost gpu=0", "the driver refused: GPU is lost"),
        (
            "fault = no_permission call=nvmlDeviceGetFieldValues",
            "the driver refused: Insufficient Permissions",
        ),
        (SILENT_GPU, "tells neither its power nor its energy (NotSupported). Virtual GPUs do not"),
    ],
)
def test_a_driver_that_cannot_measure_refuses_with_what_to_do(
    script: Script, tmp_path: Path, text: str, said: str
) -> None:
    script(text)
    assert said in refusal(tmp_path)


def test_a_gpu_that_is_not_visible_is_named_with_the_visible_ones(script: Script, tmp_path: Path) -> None:
    script("gpus = 2")
    message = refusal(tmp_path, MeterSpec(kind="nvml", gpus=("GPU-of-another-host",)))
    assert "GPU-of-another-host was asked for but is not visible here (NotFound)" in message
    assert f"visible: {GPU_0}, {GPU_1}" in message


def test_auto_falls_back_without_a_driver_but_not_from_a_broken_one(script: Script, tmp_path: Path) -> None:
    script("fault = driver_not_loaded call=nvmlInit")
    sampler = start_sampler(MeterSpec(kind="auto"), tmp_path / "power.csv")
    assert sampler.kind in ("rapl", "cpu-estimate")
    sampler.stop()
    script("fault = mismatch call=nvmlInit")
    assert "version mismatch" in refusal(tmp_path, MeterSpec(kind="auto"))


# Faults inside the window: the number is withheld or flagged, and the evidence is kept.


def _around(script: Script, folder: Path, text: str, *, first_s: float = 1.5) -> Measured:
    """A window in which the clock of the script reaches 0; begun sooner before it where the host was too busy for that.

    A window that begins when the fault is there already does not have it inside.
    """
    for starts_in_s in (first_s, 6.0, 20.0):
        tried = folder / f"{starts_in_s}"
        tried.mkdir()
        zero_ns = time.monotonic_ns() + round(starts_in_s * 1e9)
        script(text, starts_in_s=starts_in_s)
        try:
            measured = measure(tried, NVML, starts_in_s + 1.5)
        except MeterUnavailableError:
            continue
        window = measured.result.window
        if window.t_begin_mono_ns + 500_000_000 < zero_ns < window.t_end_mono_ns - 1_000_000_000:
            return measured
    raise AssertionError("no window began before the fault")


def test_a_gpu_lost_inside_the_window_withholds_the_energy(script: Script, tmp_path: Path) -> None:
    measured = _around(script, tmp_path, "gpus = 2\ngpu.0.power = const 300\nfault = lost gpu=0 after_s=0")
    assert (measured.energy.energy_j, measured.codes) == (None, {"gpu_lost"})
    assert "GpuIsLost" in measured.power["error"]
    assert measured.energy.gpus[1].energy_j is not None


@pytest.mark.parametrize(("fault", "error"), [("no_permission", "NoPermission"), ("unknown", "Unknown")])
def test_a_driver_that_stops_answering_inside_the_window_withholds_the_energy(
    script: Script, tmp_path: Path, fault: str, error: str
) -> None:
    measured = _around(script, tmp_path, f"fault = {fault} call=nvmlDeviceGetFieldValues after_s=0")
    assert (measured.energy.energy_j, measured.codes) == (None, {"gpu_lost"})
    assert error in measured.power["error"]


def test_calls_that_time_out_for_a_while_leave_a_gap_and_the_counter_right(
    script: Script, tmp_path: Path
) -> None:
    measured = _through_a_gap(script, tmp_path)
    assert measured.energy.source == "counter"
    assert measured.energy.average_power_w == pytest.approx(300.0, rel=doubt_ratio(measured.energy))
    assert "gap" in {flag.code for flag in measured.flags}
    assert measured.codes == set()
    assert "Timeout" in measured.power["error"]


def _through_a_gap(script: Script, tmp_path: Path, number: int = 1) -> Measured:
    """A window in whose middle the driver does not answer for 0.8 s; begun at another moment where that was a bad one.

    Reads that coincide with the register's updates cannot tell its phase, and the gap takes those that could: about
    one start in ten. The uncertainty covers that.
    """
    folder = tmp_path / str(number)
    folder.mkdir()
    fault = "fault = timeout call=nvmlDeviceGetFieldValues after_s=0 until_s=0.8"
    text = f"gpu.0.power = const 300\ngpu.0.idle_w = 300\n{fault}"
    measured = _around(script, folder, text, first_s=2.0)
    energy_j, uncertainty_j = measured.energy.energy_j, measured.energy.uncertainty_j
    assert energy_j is not None
    assert uncertainty_j is not None
    if uncertainty_j < 0.01 * energy_j or number == 4:
        return measured
    assert abs(energy_j - 300.0 * measured.energy.duration_s) <= uncertainty_j
    return _through_a_gap(script, tmp_path, number + 1)


def test_a_counter_that_resets_gives_way_to_the_integral(script: Script, tmp_path: Path) -> None:
    text = "gpu.0.power = const 300\ngpu.0.idle_w = 300\nfault = counter_reset after_s=0"
    measured = _around(script, tmp_path, text)
    assert (measured.energy.source, measured.codes) == ("integral_instant", {"counter_reset"})
    assert measured.energy.gpus[0].instant_j == pytest.approx(300.0 * measured.energy.duration_s, rel=0.1)


def test_a_gpu_without_a_counter_is_integrated_and_flagged(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 300\nfault = not_supported field=83")
    sampler_tick = measure(tmp_path, NVML)
    assert (sampler_tick.energy.source, sampler_tick.codes) == ("integral_instant", {"no_counter"})
    assert sampler_tick.energy.average_power_w == pytest.approx(300.0)


def test_without_instant_power_the_average_is_the_fallback(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 300\nfault = not_supported field=83\nfault = not_supported field=186")
    measured = measure(tmp_path, NVML)
    assert (measured.energy.source, measured.codes) == ("integral_average", {"no_counter"})


@pytest.mark.parametrize(("legacy", "column"), [("8.0", "power_instant_mw"), ("8.6", "power_average_mw")])
def test_a_driver_without_power_fields_is_asked_the_old_way(
    script: Script, tmp_path: Path, legacy: str, column: str
) -> None:
    script(f"gpu.0.compute = {legacy}\nfault = not_supported field=185\nfault = not_supported field=186")
    power = measure(tmp_path, NVML, 0.3).power
    assert power[column][0] == 60_000
    assert power[{"power_instant_mw": "power_average_mw"}.get(column, "power_instant_mw")][0] is None


def test_slow_calls_are_flagged(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 300\nfault = slow call=nvmlDeviceGetFieldValues ms=60")
    measured = measure(tmp_path, NVML, 1.5)
    assert "slow_reads" in measured.codes
    assert measured.energy.average_power_w == pytest.approx(300.0, rel=0.2)


def test_a_throttled_gpu_is_flagged(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 300\ngpu.0.event = 0x40 0.5 60")
    assert measure(tmp_path, NVML, 2.0).codes == {"throttled"}


def test_a_foreign_process_is_flagged(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = const 300\ngpu.0.process = 4242 1073741824")
    assert measure(tmp_path, NVML).codes == {"foreign_process"}


def test_a_load_that_beats_with_the_sensor_is_flagged_and_the_counter_is_right(
    script: Script, tmp_path: Path
) -> None:
    # 100 ms of period, 20 % on: a 25 ms look at the same phase of each sees only one of the two levels.
    script("gpu.0.power = square 100 500 0.1 0.2")
    measured = measure(tmp_path, NVML, 3.0)
    assert measured.energy.average_power_w == pytest.approx(180.0, rel=0.02)
    assert measured.codes == {"counter_disagreement"}


def _edges(measured: Measured) -> list[int]:
    """Distances in nanoseconds between neighbouring readings closer than 20 ms."""
    times = sorted(measured.power["t_before_mono_ns"])
    return [b - a for a, b in pairwise(times) if b - a < 20_000_000]


def test_both_edges_are_caught_sharply(script: Script, tmp_path: Path) -> None:
    script("gpu.0.power = ramp 100 400 10")
    measured = measure(tmp_path, NVML)
    assert len(_edges(measured)) >= 2
    begin_ns = measured.result.window.t_begin_mono_ns
    assert time.monotonic_ns() > begin_ns
    assert measured.energy.uncertainty_j is not None
    assert measured.energy.uncertainty_j < 400 * 0.1
