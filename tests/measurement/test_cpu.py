"""CPU time of the attempt and of the host."""

from __future__ import annotations

import subprocess
import sys

from llem_airflow.measurement.cpu import cpu_time, spent
from llem_airflow.protocol.result import CpuTime

ALONE = """
import subprocess, sys, time
from llem_airflow.measurement.cpu import cpu_time, spent
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
