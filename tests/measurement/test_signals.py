"""Signals are about whole processes, so each test is one."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run(body: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import hashlib, os, signal, sys, time\nfrom llem_airflow.measurement.signals import on_termination\n"
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
