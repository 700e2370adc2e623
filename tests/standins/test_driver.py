"""The stand-in driver itself: a counter that is the integral of its power, registers, windows, visibility."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.standins.gpus import built

# Reads the driver through the unmodified nvidia-ml-py in a process of its own, as everybody else does.
READ = """
import json, sys, time
import pynvml
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
answers = []
for _ in range(int(sys.argv[1])):
    for handle in handles:
        before = time.time_ns()
        fields = pynvml.nvmlDeviceGetFieldValues(handle, [186, 185, 83])
        answers.append({
            "uuid": pynvml.nvmlDeviceGetUUID(handle),
            "epoch_s": (before + time.time_ns()) / 2e9,
            "register_s": fields[2].timestamp / 1e6,
            "instant_w": fields[0].value.uiVal / 1e3,
            "average_w": fields[1].value.uiVal / 1e3,
            "counter_j": fields[2].value.ullVal / 1e3,
            "slices": pynvml.nvmlDeviceGetMigMode(handle)[0],
        })
    time.sleep(float(sys.argv[2]))
print(json.dumps(answers))
"""


def read(folder: Path, script: str, *, times: int = 1, pause_s: float = 0.0, **environment: str) -> list[Any]:
    path = folder / "gpus.conf"
    path.write_text(script)
    said = subprocess.run(
        [sys.executable, "-c", READ, str(times), str(pause_s)],
        env={**built().environment(path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stderr == ""
    answers: list[Any] = json.loads(said.stdout)
    return answers


def energy_j(name: str, t_s: float) -> float:
    """The integrals of the profiles below, written out by hand a second time."""
    if name == "const 300":
        return 300 * t_s
    if name == "ramp 100 400 10":
        return 100 * t_s + 15 * t_s**2 if t_s < 10 else 2500 + 400 * (t_s - 10)
    if name == "square 100 400 0.7 0.3":
        whole, rest = divmod(t_s, 0.7)
        return whole * (0.21 * 400 + 0.49 * 100) + min(rest, 0.21) * 400 + max(rest - 0.21, 0) * 100
    if name == "sine 250 100 1.737":
        return 250 * t_s + 100 * 1.737 / (2 * math.pi) * (1 - math.cos(2 * math.pi * t_s / 1.737))
    assert name == "exponential 300 100 2"
    return 300 * t_s - 200 * (1 - math.exp(-t_s / 2))


PROFILES = (
    "const 300",
    "ramp 100 400 10",
    "square 100 400 0.7 0.3",
    "sine 250 100 1.737",
    "exponential 300 100 2",
)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("age_s", [3, 20])
def test_the_counter_is_the_closed_form_integral_at_its_last_update(
    tmp_path: Path, profile: str, age_s: int
) -> None:
    t0 = time.time_ns() // 10**9 - age_s
    (now,) = read(tmp_path, f"t0 = {t0}\ngpu.0.power = {profile}\n")
    since_load_j = (
        energy_j(profile, now["register_s"] - t0) + 60e6
    )  # a million seconds of idling at 60 W before
    assert now["counter_j"] == pytest.approx(since_load_j, abs=0.02)
    assert -1e-5 <= now["epoch_s"] - now["register_s"] < 0.15  # doubles of an epoch are microseconds apart


@pytest.mark.parametrize("profile", PROFILES)
def test_instant_and_average_power_are_means_of_25_ms_and_1_s(tmp_path: Path, profile: str) -> None:
    t0 = time.time_ns() // 10**9 - 5
    (now,) = read(tmp_path, f"t0 = {t0}\ngpu.0.power = {profile}\n")
    t_s = now["register_s"] - t0
    assert now["instant_w"] == pytest.approx(
        (energy_j(profile, t_s) - energy_j(profile, t_s - 0.025)) / 0.025, abs=0.1
    )
    assert now["average_w"] == pytest.approx(energy_j(profile, t_s) - energy_j(profile, t_s - 1), abs=0.1)


def test_a_recorded_curve_is_replayed_straight_between_its_points(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("seconds,watts\n0,100\n2,300\n4,100\n")
    t0 = time.time_ns() // 10**9 - 10
    (now,) = read(tmp_path, f"t0 = {t0}\ngpu.0.power = csv {tmp_path}/curve.csv\n")
    expected_j = 60e6 + 800 + 100 * (now["register_s"] - t0 - 4)
    assert now["counter_j"] == pytest.approx(expected_j, abs=0.02)
    assert now["instant_w"] == 100.0


def test_registers_hold_their_value_between_updates(tmp_path: Path) -> None:
    t0 = time.time_ns() // 10**9 - 5
    script = f"t0 = {t0}\ngpu.0.power = ramp 100 400 100\ngpu.0.update_ms = 100\n"
    answers = read(tmp_path, script, times=60, pause_s=0.005)
    values = {answer["counter_j"] for answer in answers}
    spans = answers[-1]["epoch_s"] - answers[0]["epoch_s"]
    assert len(values) <= spans / 0.1 + 2


def test_two_processes_agree_without_talking(tmp_path: Path) -> None:
    t0 = time.time_ns() // 10**9 - 5
    script = f"t0 = {t0}\ngpu.0.power = const 200\n"
    (first,), (second,) = read(tmp_path, script), read(tmp_path, script)
    elapsed_s = second["register_s"] - first["register_s"]
    assert second["counter_j"] - first["counter_j"] == pytest.approx(200 * elapsed_s, abs=0.01)


def test_a_container_sees_only_what_it_was_given(tmp_path: Path) -> None:
    script = "gpus = 3\ngpu.1.uuid = GPU-one\ngpu.2.mig.1.uuid = MIG-one\n"
    assert len(read(tmp_path, script)) == 3
    assert [one["uuid"] for one in read(tmp_path, script, NVIDIA_VISIBLE_DEVICES="GPU-one")] == ["GPU-one"]
    (board,) = read(tmp_path, script, NVIDIA_VISIBLE_DEVICES="MIG-one")
    assert (board["uuid"], board["slices"]) == ("GPU-5741d000-0000-0000-0000-000000000002", 1)


def test_a_typo_in_a_script_is_said_aloud(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"line 2 of its script is not understood: gpu\.0\.pwoer"):
        read(tmp_path, "gpus = 1\ngpu.0.pwoer = const 5\n")


def test_building_again_changes_nothing(tmp_path: Path) -> None:
    library = built().library_dir / "libnvidia-ml.so.1"
    before = library.stat().st_mtime_ns
    built()
    assert library.stat().st_mtime_ns == before
