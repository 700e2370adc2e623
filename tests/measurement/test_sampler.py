from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

import llem_airflow
from llem_airflow.analysis.energy import window_energy
from llem_airflow.measurement.meters.contract import MeterUnavailableError, Reading
from llem_airflow.measurement.sampler import Sampler, start_sampler
from llem_airflow.measurement.sampling import TickWatch
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.result import Window
from llem_airflow.protocol.spec import MeterSpec
from llem_airflow.protocol.typed_json import to_json
from tests.standins.gpus import read_columns

ESTIMATE = MeterSpec(kind="cpu-estimate")


def rows(power_csv: Path) -> int:
    return len(power_csv.read_text().splitlines()) - 1


def wait_for(happened: object, *, at_most_s: float = 10.0) -> None:
    assert callable(happened)
    end_s = time.monotonic() + at_most_s
    while not happened():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.02)


def pid_of(sampler: Sampler) -> int:
    return sampler._channel.process.pid


def test_it_samples_at_the_requested_rate_and_reports_itself(tmp_path: Path) -> None:
    sampler = start_sampler(MeterSpec(kind="cpu-estimate", power_hz=20), tmp_path / "power.csv")
    time.sleep(0.5)
    meter = sampler.stop()
    assert (meter.kind, meter.energy_kind, meter.devices) == ("cpu-estimate", "estimate", ("cpu",))
    assert (meter.requested_hz, meter.failed_reads) == (20, 0)
    times_ns = read_columns(tmp_path / "power.csv")["t_before_mono_ns"]
    assert meter.achieved_hz is not None
    assert meter.achieved_hz < 21  # a busy host misses some
    assert statistics.median(b - a for a, b in pairwise(times_ns)) == pytest.approx(50e6, rel=0.3)
    assert meter.samples == rows(tmp_path / "power.csv") > 10
    assert meter.call_p50_s is not None
    assert meter.sampler_cpu_s is not None


def test_it_goes_on_for_a_second_after_it_is_told_to_stop(tmp_path: Path) -> None:
    sampler = start_sampler(ESTIMATE, tmp_path / "power.csv")
    told_ns = time.monotonic_ns()
    sampler.stop()
    times_ns = read_columns(tmp_path / "power.csv")["t_after_mono_ns"]
    assert times_ns[-1] - told_ns >= 1e9


def test_an_estimated_window_has_an_energy_between_the_stated_wattages(tmp_path: Path) -> None:
    sampler = start_sampler(ESTIMATE, tmp_path / "power.csv")
    begin_ns = time.monotonic_ns()
    assert sampler.wait_for_tick() is None  # its counter flows: the edge is sampled instead
    time.sleep(0.3)
    window = Window(begin_ns, time.monotonic_ns(), 1, 1, 1, 1)
    sampler.wait_for_tick()
    energy = window_energy(read_columns(tmp_path / "power.csv"), sampler.stop(), window)
    assert energy.average_power_w is not None
    assert 9.9 <= energy.average_power_w <= 65.1


def test_stop_is_safe_to_call_twice_and_questions_after_it_are_answered_with_nothing(tmp_path: Path) -> None:
    sampler = start_sampler(ESTIMATE, tmp_path / "power.csv")
    assert sampler.stop() is sampler.stop()
    assert (sampler.wait_for_tick(), sampler.describe_gpus()) == (None, [])


def test_without_a_meter_the_file_has_only_its_header(tmp_path: Path) -> None:
    sampler = start_sampler(MeterSpec(kind="none"), tmp_path / "power.csv")
    meter = sampler.stop()
    assert (tmp_path / "power.csv").read_text() == ",".join(POWER_COLUMNS) + "\n"
    assert (meter.kind, meter.samples, meter.achieved_hz, meter.call_p50_s) == ("none", 0, None, None)


def test_a_killed_sampler_keeps_its_rows_and_the_meter_says_what_happened(tmp_path: Path) -> None:
    sampler = start_sampler(ESTIMATE, tmp_path / "power.csv")
    wait_for(lambda: rows(tmp_path / "power.csv") >= 3)
    os.kill(pid_of(sampler), signal.SIGKILL)
    meter = sampler.stop()
    assert meter.samples == rows(tmp_path / "power.csv") >= 3
    assert meter.achieved_hz is None
    assert "ended before it was told to" in meter.note


def test_signals_that_end_the_inference_do_not_end_the_sampler(tmp_path: Path) -> None:
    sampler = start_sampler(ESTIMATE, tmp_path / "power.csv")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid_of(sampler), number)
    seen = rows(tmp_path / "power.csv")
    wait_for(lambda: rows(tmp_path / "power.csv") > seen)
    assert sampler.stop().achieved_hz is not None


def test_it_outlives_its_parent_by_a_second_and_then_ends_by_itself(tmp_path: Path) -> None:
    program = (
        "import pathlib, os, sys, time\n"
        "from llem_airflow.measurement.sampler import start_sampler\n"
        "from llem_airflow.protocol.spec import MeterSpec\n"
        "sampler = start_sampler(MeterSpec(kind='cpu-estimate'), pathlib.Path(sys.argv[1]))\n"
        "print(sampler._channel.process.pid, time.monotonic_ns(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    power_csv = tmp_path / "power.csv"
    said = subprocess.run(
        [sys.executable, "-c", program, str(power_csv)], capture_output=True, text=True, check=False
    ).stdout
    pid, died_ns = map(int, said.split())
    wait_for(lambda: not _alive(pid))
    assert read_columns(power_csv)["t_after_mono_ns"][-1] - died_ns >= 1e9


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_meter_that_is_not_there_is_an_error_and_not_another_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(MeterUnavailableError, match=r"no NVIDIA driver answers here.*cpu-estimate"):
        start_sampler(MeterSpec(kind="nvml"), tmp_path / "power.csv")
    with pytest.raises(MeterUnavailableError, match="no NVIDIA driver answers here"):
        start_sampler(MeterSpec(kind="auto", gpus=("GPU-1",)), tmp_path / "power.csv")


def test_a_sampling_process_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailableError, match="ended or was silent at its start"):
        start_sampler(ESTIMATE, tmp_path / "no such folder" / "power.csv")


def test_it_works_from_a_bundle_beside_a_hostile_working_directory(tmp_path: Path) -> None:
    package = Path(llem_airflow.__file__).parent
    bundle = tmp_path / "llem.pyz"
    with zipfile.ZipFile(bundle, "w") as files:
        parts = (package.glob(pattern) for pattern in ("__init__.py", "protocol/*.py", "measurement/**/*.py"))
        for path in itertools.chain(*parts):
            files.write(path, Path("llem_airflow") / path.relative_to(package))
    (tmp_path / "json.py").write_text("raise SystemExit('the working directory was imported')\n")
    (tmp_path / "power.csv").touch()
    program = (
        "import sys; sys.path[0:0] = [sys.argv[1]]\n"
        "import pathlib\n"
        "from llem_airflow.measurement import sampler\n"
        "from llem_airflow.protocol.spec import MeterSpec\n"
        "assert sys.argv[1] in sampler.__file__\n"
        "started = sampler.start_sampler(MeterSpec(kind='cpu-estimate'), pathlib.Path('power.csv'))\n"
        "print(started.stop().samples)\n"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    said = subprocess.run(
        [sys.executable, "-c", program, str(bundle)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert int(said.stdout) > 5


def test_the_process_can_be_run_by_hand(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "llem_airflow.measurement.sampler",
        json.dumps(to_json(ESTIMATE)),
        str(tmp_path / "power.csv"),
    ]
    said = subprocess.run(command, input=b"describe 1\n", capture_output=True, check=True).stdout
    messages = [json.loads(line) for line in said.splitlines()]
    assert messages[0]["facts"]["kind"] == "cpu-estimate"
    assert {"id": "1", "gpus": []} in messages
    assert "stopped" in messages[-1]


def test_a_process_without_its_meter_says_why_and_ends_with_one(tmp_path: Path) -> None:
    code = [
        sys.executable,
        "-m",
        "llem_airflow.measurement.sampler",
        json.dumps(to_json(MeterSpec(kind="nvml"))),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [*code, str(tmp_path / "power.csv")], input=b"", env=environment, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert "no NVIDIA driver answers here" in json.loads(done.stdout)["error"]
    assert (tmp_path / "power.csv").read_text() == ",".join(POWER_COLUMNS) + "\n"


def tick(t_ms: int, energy_mj: int, gpu: str = "GPU-0") -> Reading:
    return Reading(t_ms * 10**6, t_ms * 10**6, gpu, energy_mj=energy_mj)


def test_a_counter_watch_keeps_the_last_old_and_the_first_new_value_of_each_device() -> None:
    watch = TickWatch([tick(0, 5), tick(0, 7, "GPU-1")], 0)
    assert watch.look([tick(1, 5), tick(1, 7, "GPU-1")]) == []
    assert watch.look([tick(2, 5), tick(2, 8, "GPU-1")]) == [tick(1, 7, "GPU-1"), tick(2, 8, "GPU-1")]
    assert (watch.waiting, watch.tick_ns) == (True, 1_500_000)
    assert watch.look([tick(3, 6), tick(3, 8, "GPU-1")]) == [tick(2, 5), tick(3, 6)]
    assert not watch.waiting


def test_a_counter_watch_that_was_stalled_keeps_the_blurred_move_and_waits_for_a_sharp_one() -> None:
    watch = TickWatch([tick(0, 5)], 0)
    assert watch.look([tick(30, 6)]) == [tick(0, 5), tick(30, 6)]
    assert (watch.waiting, watch.tick_ns) == (True, None)
    assert watch.look([tick(99, 6)]) == []
    assert watch.look([tick(101, 7)]) == [tick(99, 6), tick(101, 7)]
    assert (watch.waiting, watch.tick_ns) == (False, 100_000_000)


def test_a_counter_watch_makes_do_with_blurred_moves_of_a_slow_driver() -> None:
    watch = TickWatch([tick(0, 5)], 0)
    for move in range(1, 4):
        assert watch.waiting
        assert len(watch.look([tick(100 * move, 5 + move)])) == 2
    assert (watch.waiting, watch.tick_ns) == (False, None)
