"""What the attempt tells of its own process, and how a signal ends it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from llem_airflow.measurement import process
from llem_airflow.measurement.process import (
    Work,
    cpu_time,
    host_memory,
    look_every_s,
    moved_on,
    sign_of_life,
    spent,
    work_so_far,
)
from llem_airflow.protocol.result import CpuTime


def run(body: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import hashlib, os, signal, sys, time\nfrom llem_airflow.measurement.process import on_termination\n"
    )
    program = code + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_action_runs_while_the_main_thread_is_in_native_code() -> None:
    done = run("""
        on_termination(lambda number: os._exit(100 + number))
        os.kill(os.getpid(), signal.SIGTERM)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    """)
    assert done.returncode == 100 + 15


def test_a_signal_to_a_forked_worker_ends_the_worker_and_not_us() -> None:
    done = run("""
        on_termination(lambda number: os._exit(99))
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
        time.sleep(0.2)
        os.kill(worker, signal.SIGTERM)
        _, status = os.waitpid(worker, 0)
        time.sleep(0.2)
        print(os.WTERMSIG(status))
    """)
    assert (done.returncode, done.stdout.strip()) == (0, "15")


def test_work_is_cpu_time_or_bytes() -> None:
    still = Work(1.0, 1000)
    assert not moved_on(still, Work(1.1, 2000))
    assert moved_on(still, Work(1.3, 1000))
    assert moved_on(still, Work(1.0, 3_000_000))


def test_a_step_that_works_is_said_to() -> None:
    said: list[str] = []
    heard = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        heard.set()

    for every_s in (0.5, 5.0, 50.0):  # a busy host may not give it a fifth of a second in half a second
        with sign_of_life(say, time.monotonic_ns(), every_s=every_s):
            until_s = time.monotonic() + 3 * every_s
            while not heard.is_set() and time.monotonic() < until_s:
                work_so_far()
        if heard.is_set():
            break
    told = re.fullmatch(r"still working after (\d+) s, (\d+) s of CPU time", said[0])
    assert told is not None
    assert int(told[1]) <= 3600
    assert int(told[2]) <= work_so_far().cpu_s + 1


def test_a_step_that_hangs_stays_silent() -> None:
    said: list[str] = []
    with sign_of_life(said.append, time.monotonic_ns(), every_s=0.001):
        time.sleep(0.05)
    assert said == []


ALONE = """
import subprocess, sys, time
from llem_airflow.measurement.process import cpu_time, spent
before = cpu_time()
child = subprocess.Popen([sys.executable, "-c", "x = 0\\nwhile True: x += 1"], start_new_session={apart})
end = time.monotonic() + 50
ticks = lambda: int(open(f"/proc/{{child.pid}}/stat").read().rpartition(")")[2].split()[11])
while ticks() < 60 and time.monotonic() < end:  # hundredths of a second, whatever else the host does
    time.sleep(0.05)
used = spent(before, cpu_time())
child.kill(); child.wait()
print(used.own_s, used.host_s)
"""


def used(*, apart: bool) -> tuple[float, float]:
    code = ALONE.format(apart=apart)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, start_new_session=True
    )
    own, host = map(float, done.stdout.split())
    return own, host


def test_a_child_of_the_attempt_is_its_own_and_another_process_is_not() -> None:
    own, host = used(apart=False)
    assert 0.2 < own <= host + 0.05
    own, host = used(apart=True)
    assert own < 0.2 < host


OF_ENDED_CHILDREN = """
import os, subprocess, sys
from llem_airflow.measurement.process import _of_session
child = "import os\\nwhile os.times().system < 0.1 or os.times().user < 0.1: os.stat('/')"
subprocess.run([sys.executable, "-c", child], check=True)
before, seen, after = sum(os.times()[:4]), _of_session(os.getsid(0)), sum(os.times()[:4])
print(before, seen, after, *os.times()[2:4])
"""


def test_the_time_of_children_that_have_ended_is_counted_user_and_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OF_ENDED_CHILDREN], capture_output=True, check=True, start_new_session=True
    )
    before, seen, after, user, system = map(float, done.stdout.split())
    assert min(user, system) >= 0.09
    assert before - 0.05 <= seen <= after + 0.05  # hundredths of a second, cut off four times


def test_what_is_masked_is_not_known() -> None:
    assert spent(None, CpuTime(1.0, 2.0, 2)) is None
    assert cpu_time() is not None


@pytest.mark.parametrize(
    ("cpu_s", "moved_bytes", "works"),
    [(0.25, 0, True), (0.125, 0, False), (0.0, 1 << 20, True), (0.0, (1 << 20) - 1, False), (0.0, 0, False)],
)
def test_a_fifth_of_a_second_or_a_mebibyte_is_work(cpu_s: float, moved_bytes: int, works: bool) -> None:
    assert moved_on(Work(8.0, 500), Work(8.0 + cpu_s, 500 + moved_bytes)) is works


@pytest.mark.parametrize(("silence_s", "every_s"), [(None, 20.0), (600.0, 20.0), (60.0, 20.0), (30.0, 10.0)])
def test_a_sign_comes_three_times_before_the_limit_of_silence(
    silence_s: float | None, every_s: float
) -> None:
    assert look_every_s(silence_s) == every_s


def test_work_so_far_is_what_the_kernel_accounts_to_this_process() -> None:
    before = work_so_far()
    Path("/proc/self/status").read_bytes()
    data = Path(sys.executable).read_bytes()
    now = work_so_far()
    assert now.io_bytes - before.io_bytes >= len(data)
    assert now.cpu_s == pytest.approx(sum(os.times()[:2]), abs=0.1)


def test_what_was_spent_is_the_difference_and_never_negative() -> None:
    assert spent(CpuTime(1.0, 10.0, 2), CpuTime(3.5, 14.0, 4)) == CpuTime(2.5, 4.0, 4)
    assert spent(CpuTime(3.0, 10.0, 2), CpuTime(1.0, 4.0, 2)) == CpuTime(0.0, 0.0, 2)
    assert spent(CpuTime(3.0, 10.0, 2), None) is None


def test_the_peak_of_memory_is_in_bytes() -> None:
    peak = host_memory()["peak_rss_bytes"]
    told = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    assert told is not None
    assert peak == pytest.approx(int(told[1]) * 1024, rel=0.1)


def test_the_peak_of_a_cgroup_is_read_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "max", tmp_path / "memory.peak", tmp_path / "later"
    monkeypatch.setattr(process, "_CGROUP_PEAKS", tuple(map(str, files)))
    assert host_memory()["cgroup_peak_bytes"] is None
    files[0].write_text("max\n")
    files[1].write_text("4096\n")
    files[2].write_text("8192\n")
    assert host_memory()["cgroup_peak_bytes"] == 4096
