"""The joules belong to the device that computed, or there are none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llem_airflow.analysis.checks import flags
from llem_airflow.analysis.energy import mismatch, of_the_model, window_energy
from tests.analysis.sampled import GPU, columns, cycle_result, meter, samples, window

OTHER = "GPU-99999999-0000-0000-0000-000000000000"


def cycle(kind: str, model: dict[str, Any]) -> Any:
    energy_kind = "estimate" if kind == "cpu-estimate" else "none" if kind == "none" else "measured"
    return dataclasses.replace(cycle_result(window(), meter(kind, energy_kind)), model=model)


@pytest.mark.parametrize(
    ("kind", "device", "same"),
    [
        ("nvml", "cuda", True),
        ("nvml", "cuda:0", True),
        ("nvml", "cpu", False),
        ("rapl", "cpu", True),
        ("rapl", "cuda:0", False),  # another vendor's GPU, without an NVIDIA driver
        ("rapl", "xpu:0", False),
        ("rapl", "mps:0", False),
        ("cpu-estimate", "cpu", True),
        ("cpu-estimate", "cuda:0", False),
        ("none", "cuda:0", True),
        ("nvml", None, True),
        ("rapl", None, True),
    ],
)
def test_the_meter_reads_the_model_s_device_or_the_energy_is_withheld(
    kind: str, device: str | None, same: bool
) -> None:
    result = cycle(kind, {} if device is None else {"device": device})
    energy = of_the_model(window_energy(columns(samples(lambda _: 100.0)), result.meter, window()), result)
    if kind == "none":
        assert [reason.code for reason in energy.withheld] == ["no_meter"]
    elif same:
        assert energy.energy_j == pytest.approx(1000.0)
    else:
        assert energy.energy_j is None
        assert (energy.average_power_w, energy.uncertainty_j, energy.active_j) == (None, None, None)
        (reason,) = energy.withheld
        assert reason.code == "other_device"
        assert device is not None
        assert reason.message in (mismatch(result) or "")
        assert any(
            flag.code == "other_device" and flag.severity == "withheld" for flag in flags(result, energy)
        )


def test_a_gpu_that_the_meter_did_not_read_withholds_the_energy() -> None:
    result = cycle("nvml", {"device": "cuda:0", "gpu_uuids": [OTHER]})
    assert OTHER in (mismatch(result) or "")
    assert mismatch(cycle("nvml", {"device": "cuda:0", "gpu_uuids": [GPU]})) is None


def test_gpus_that_hold_no_weights_and_weights_outside_the_gpus_are_told() -> None:
    two = dataclasses.replace(
        cycle("nvml", {"device": "cuda:0", "gpu_uuids": [GPU], "devices": ["cpu", "cuda:0"]}),
        meter=meter(devices=(GPU, OTHER)),
    )
    rows = samples(lambda _: 100.0, end_s=12) + samples(lambda _: 50.0, end_s=12, gpu=OTHER)
    found = {
        flag.code: flag.message for flag in flags(two, window_energy(columns(rows), two.meter, window()))
    }
    assert f"1 of the 2 GPUs whose energy counts; idle: {OTHER}" in found["idle_board"]
    assert "A part of the model lay on cpu" in found["offloaded"]


@pytest.mark.parametrize("kind", ["amdsmi", "of-a-third-party"])
def test_a_counter_whose_register_nobody_modelled_has_no_stated_uncertainty(kind: str) -> None:
    """Its register may be written once a second: the energy of an edge is then off by far more than a reading takes."""
    power = columns(samples(lambda _: 100.0, lambda t_s: 100.0 * t_s, register_s=1.0))
    energy = window_energy(power, meter(kind=kind), window())
    assert (energy.source, energy.uncertainty_j) == ("counter", None)
    told = flags(cycle_result(window(), meter(kind=kind)), energy)
    (flag,) = (one for one in told if one.code == "uncertainty_not_characterised")
    assert flag.message.endswith(
        f"not characterised: how the counter of the meter {kind} is written is not known."
    )
