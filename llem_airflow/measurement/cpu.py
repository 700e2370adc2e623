"""CPU time of this attempt and of the whole host: who else computed while we measured."""

from __future__ import annotations

import os
from pathlib import Path

from llem_airflow.measurement.meters.cpu_estimate import HostCpuTime
from llem_airflow.protocol.result import CpuTime


def cpu_time() -> CpuTime | None:
    """Spent so far; None where the host's is masked.

    The attempt is every process of its session: the engine, its workers, the sampler. A child that has ended is in
    its parent's account.
    """
    host = HostCpuTime().read()
    if host is None:
        return None
    return CpuTime(own_s=_of_session(os.getsid(0)), host_s=host.busy_s, cores=host.cores)


def spent(before: CpuTime | None, after: CpuTime | None) -> CpuTime | None:
    """What was spent between two looks."""
    if before is None or after is None:
        return None
    return CpuTime(max(after.own_s - before.own_s, 0.0), max(after.host_s - before.host_s, 0.0), after.cores)


def _of_session(session: int) -> float:
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name may hold spaces and brackets: what follows the last bracket is fields 3 on (proc(5)).
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")
