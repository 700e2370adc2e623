"""When requests arrive: seeded arrival processes, drawn before the window opens."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

PROCESSES = ("poisson", "gamma", "constant")


def arrival_times(
    process: str, *, rate_per_s: float, duration_s: float, burstiness: float = 1.0, seed: int
) -> list[float]:
    """Draw the arrivals of one window. The same arguments give the same times in every process.

    - ``poisson``: gaps are exponential with mean 1 / rate, as in MLPerf Inference's server scenario.
    - ``gamma``: gaps are gamma distributed with mean 1 / rate and coefficient of variation ``burstiness``: shape
      1 / burstiness^2, scale burstiness^2 / rate. 1 is Poisson, above 1 is burstier, below 1 more even.
    - ``constant``: one request every 1 / rate, the first at 0.

    ``burstiness`` is llenergymeasure's (``server.traffic.burstiness``). **vLLM's ``--burstiness`` runs the other
    way**: it is the gamma shape itself, so that *lower* is burstier. burstiness_vllm = 1 / burstiness^2, and
    burstiness = 1 / sqrt(burstiness_vllm): 2 here is ``--burstiness 0.25`` there. vLLM also stretches its draws so that
    the last one falls on requests / rate; here the number of arrivals in a window is as random as the process makes it.

    Args:
        process: One of ``PROCESSES``.
        rate_per_s: Mean arrivals in a second.
        duration_s: Length of the window, in seconds.
        burstiness: Coefficient of variation of the gaps; only ``gamma`` looks at it.
        seed: Of the draws.

    Returns:
        Seconds from the start of the window, ascending, each below ``duration_s``.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """
    if process not in PROCESSES:
        raise ValueError(f"arrival process {process!r}: it must be one of {', '.join(PROCESSES)}")
    for name, value in (("rate_per_s", rate_per_s), ("burstiness", burstiness)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} {value!r}: it must be a finite number above 0")
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise ValueError(f"duration_s {duration_s!r}: it must be a finite number, 0 or more")
    if process == "constant":
        return list(_every(1.0 / rate_per_s, duration_s))
    return list(_renewals(_gap_of(process, rate_per_s, burstiness, random.Random(seed)), duration_s))  # noqa: S311 - no secret


def _gap_of(process: str, rate_per_s: float, burstiness: float, source: random.Random) -> Callable[[], float]:
    if process == "poisson":
        return lambda: source.expovariate(rate_per_s)
    shape, scale_s = burstiness**-2, burstiness**2 / rate_per_s
    return lambda: source.gammavariate(shape, scale_s)


def _renewals(gap_s: Callable[[], float], duration_s: float) -> Iterator[float]:
    at_s = gap_s()
    while at_s < duration_s:
        yield at_s
        at_s += gap_s()


def _every(gap_s: float, duration_s: float) -> Iterator[float]:
    index = 0
    while (at_s := index * gap_s) < duration_s:  # a product, so that rounding does not add up
        yield at_s
        index += 1
