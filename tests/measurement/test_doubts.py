"""Whole attempts on the stand-in driver, in windows as long as users': each trouble raises its flag and no other."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.analysis.checks import flags
from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.analysis.flags import Flag
from llem_airflow.protocol.files import POWER
from tests.measurement.running import Ran, spec_of, start
from tests.standins.gpus import BUSY_HOST, built, doubt_ratio, read_columns

pytestmark = pytest.mark.patient

STEADY = {"step_s": 0.1, "batch_size": 2}
"""0.8 s an iteration: what a busy test machine adds to a step is less than the gates let pass."""


@dataclass(frozen=True)
class Trouble:
    """An attempt with one thing wrong.

    Attributes:
        codes: The flags that it must raise, all of them.
        gpu: Lines of the stand-in's script over those of a steady GPU.
        engine: What the scripted engine does over `STEADY`.
        warmup: Settings of the study's warm-up.
        window_s: Shortest window, in seconds.
        power_w: What the energy must come to on average, in watts; None where it is absent or changes.
    """

    codes: set[str]
    gpu: str = ""
    engine: dict[str, Any] = field(default_factory=dict)
    warmup: dict[str, Any] = field(default_factory=dict)
    window_s: float = 30.5
    power_w: float | None = 250.0


TROUBLES = {
    "none": Trouble(set()),
    "a warm-up whose latency drifts until its cap": Trouble(
        {"warmup_not_converged"},
        engine={"slower_by": 0.02, "drifting": 20},
        warmup={"max_prompts": 20},
    ),
    "a warm-up that was cut off while power rose": Trouble(
        {"warmup_not_checked", "drift"},
        gpu="gpu.0.power = exponential 300 200 60",
        warmup={"convergence_detection": False, "n_prompts": 5},
        power_w=None,
    ),
    "a throttled GPU": Trouble({"throttled"}, gpu="gpu.0.event = 0x40 0 600"),
    "a foreign process": Trouble({"foreign_process"}, gpu="gpu.0.process = 4242 1073741824"),
    "a short window": Trouble({"short_window"}, window_s=12.0),
    "a GPU lost in the window": Trouble({"gpu_lost"}, gpu="fault = lost gpu=0 after_s=30", power_w=None),
}


@dataclass(frozen=True)
class Judged:
    """What the analysis makes of an attempt."""

    ran: Ran

    @property
    def energy(self) -> EnergyOfWindow:
        power = read_columns(self.ran.out / POWER)
        return window_energy(power, self.ran.result.meter, self.ran.result.window)

    @property
    def flags(self) -> tuple[Flag, ...]:
        environment = json.loads((self.ran.out / "environment.json").read_text())
        return flags(self.ran.result, self.energy, events=self.ran.events, environment=environment)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Judged]]:
    """All attempts, run side by side: they sleep nearly all of the time."""
    started: dict[str, tuple[Path, subprocess.Popen[str]]] = {}
    try:
        for name, trouble in TROUBLES.items():
            folder = tmp_path_factory.mktemp("attempt")
            started[name] = (folder, attempt(trouble, folder))
        ended = {}
        for name, (folder, process) in started.items():
            stdout, _ = process.communicate(timeout=300)
            assert process.returncode == 0, stdout
            ended[name] = Judged(Ran(0, stdout, folder / "out"))
        yield ended
    finally:
        for _, process in started.values():
            process.kill()


def attempt(trouble: Trouble, folder: Path) -> subprocess.Popen[str]:
    script = folder / "gpus.conf"
    lines = [f"t0 = {time.time_ns() // 10**9}", "gpus = 1", "gpu.0.power = const 250", "gpu.0.idle_w = 60"]
    script.write_text("\n".join([*lines, trouble.gpu, ""]))
    warmup = {"thermal_floor_seconds": 1.0} | trouble.warmup
    config = {"measurement": {"baseline": {"enabled": False}}, "offline": {"warmup": warmup}}
    spec = spec_of("scripted", {"engine_params": STEADY | trouble.engine}, config=config, power="nvml")
    spec = replace(spec, meter=replace(spec.meter, min_window_s=trouble.window_s))
    return start(spec, folder, **built().environment(script))


@pytest.mark.parametrize("name", TROUBLES)
def test_each_trouble_raises_its_flag_and_no_other(judged: dict[str, Judged], name: str) -> None:
    found = judged[name].flags
    assert "stand_in" in {flag.code for flag in found}
    codes = {flag.code for flag in found} - {"stand_in"} - BUSY_HOST
    assert codes == TROUBLES[name].codes, [flag.message for flag in found]
    assert all(flag.message and flag.next_step for flag in found)


@pytest.mark.parametrize("name", [name for name, trouble in TROUBLES.items() if trouble.power_w])
def test_the_energy_is_right_all_the_same(judged: dict[str, Judged], name: str) -> None:
    energy = judged[name].energy
    assert energy.source == "counter"
    assert energy.average_power_w == pytest.approx(TROUBLES[name].power_w, rel=doubt_ratio(energy, 2e-3))


def test_the_energy_of_a_lost_gpu_is_absent_and_not_zero(judged: dict[str, Judged]) -> None:
    energy = judged["a GPU lost in the window"].energy
    assert (energy.energy_j, energy.average_power_w) == (None, None)
