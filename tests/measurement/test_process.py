"""What the attempt tells of its own process, and how a signal ends it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time

from llem_airflow.measurement.process import Work, cpu_time, moved_on, sign_of_life, spent, work_so_far
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

    with sign_of_life(say, time.monotonic_ns(), every_s=0.5):
        while not heard.is_set():
            work_so_far()
    assert said[0].startswith("still at it after ")


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
end = time.monotonic() + 1.5
while time.monotonic() < end:
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


def test_what_is_masked_is_not_known() -> None:
    assert spent(None, CpuTime(1.0, 2.0, 2)) is None
    assert cpu_time() is not None
