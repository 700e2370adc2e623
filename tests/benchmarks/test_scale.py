"""The simulated night measures every cycle once and gives no GPU twice, whatever the pools and gaps."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.scale import Host, Simulation, factory, hosts_of
from llem_airflow.operators import waits


@pytest.mark.parametrize(("pool", "gap_s"), [(True, 0), (False, 0), (True, 30), (False, 5)])
def test_every_cycle_is_measured_once_and_no_gpu_is_given_twice(
    tmp_path: Path, pool: bool, gap_s: int
) -> None:
    options = argparse.Namespace(hosts=2, gpus=4, experiments=24, cycles=3, gap_s=gap_s)
    hosts = hosts_of(factory(options, tmp_path), options.gpus, pool=pool)
    most = 0

    def given(host: Host) -> None:
        nonlocal most
        gpus = [gpu for holder in host.held.values() for gpu in holder.gpus]
        assert len(gpus) == len(set(gpus))
        most = max(most, len(gpus))

    clock = waits.now_epoch_s
    night = Simulation(hosts, 0.5, given).run()
    assert waits.now_epoch_s is clock
    assert night.cycles == 24 * 3
    assert night.tries >= night.cycles
    assert most == options.gpus
    assert night.busy_gpu_s <= options.gpus * len(hosts) * night.wall_s
    assert not any(host.queue or host.held or any(run.tasks for run in host.runs) for host in hosts)
