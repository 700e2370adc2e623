from __future__ import annotations

import threading
import time

from llem_airflow.measurement.alive import Work, moved_on, sign_of_life, work_so_far


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
