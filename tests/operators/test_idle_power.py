"""Idle power that an earlier cycle measured: when it is taken over, when it is looked at, when it is measured again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.analysis.energy import window_energy
from llem_airflow.measurement.idle_power import IdlePhases, IdleRules
from llem_airflow.measurement.meters.contract import Reading
from llem_airflow.measurement.output import EventLog
from llem_airflow.operators.inputs import known_idle_power
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.gpus import idle_conditions
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import Experiment, load_study_text
from tests.measurement.running import HASH, Ran, run_on_gpu
from tests.standins.gpus import read_columns

STUDY = """\
study_name: idle
serving_mode: offline
study_execution: {n_cycles: 1}
engine: transformers
task: {model: m}
measurement: {meter: nvml, baseline: {STRATEGY}}
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_on_gpu(tmp_path_factory.mktemp("first"), "const 250")


def experiment(strategy: str) -> Experiment:
    return load_study_text(STUDY.replace("STRATEGY", strategy)).experiments[0]


def stored(folder: Path, of: Experiment, cycle: int, ran: Ran, *, age_s: float = 0.0) -> StoredRun:
    """The attempt, committed as that cycle."""
    run = ResultsRoot(str(folder)).run("idle", "manual__1")
    (ran.out / f"{HASH}_config.json").write_text((ran.out.parent / f"{HASH}_config.json").read_text())
    finished_ns = time.time_ns() - round(age_s * 1e9)
    run.commit_cycle(of.id, cycle, ran.out, {"finished_epoch_ns": finished_ns, "try_number": 1})
    return run


def begun(ran: Ran) -> list[str]:
    phases = [row["phase"] for row in ran.events if row["event"] == "phase_begin"]
    return [phase for phase in phases if phase.startswith("baseline")]


def test_idle_power_of_an_earlier_cycle_is_taken_over_and_subtracted(first: Ran, tmp_path: Path) -> None:
    cached = experiment("strategy: cached")
    run = stored(tmp_path, cached, 1, first)
    known = known_idle_power(run, cached, 2)
    assert known is not None
    assert (known.measured_in, known.check) == ("cycle 1", False)
    second = run_on_gpu(tmp_path, "const 250", known)
    assert begun(second) == []
    energy = window_energy(
        read_columns(second.out / "power.csv"),
        second.result.meter,
        second.result.window,
        events=second.events,
    )
    assert (energy.active_over, energy.baselines[0].measured_in) == ("baseline_bare", "cycle 1")
    assert energy.baselines[0].power_w == pytest.approx(250, rel=0.01)
    assert energy.active_j == pytest.approx(0.0, abs=5.0)
    run = stored(tmp_path, cached, 2, second)
    third = known_idle_power(run, cached, 3)
    assert third is not None
    assert third.measured_in == "cycle 1"  # never what was itself taken over


@pytest.mark.parametrize(
    ("strategy", "age_s"),
    [("strategy: fresh", 0), ("enabled: false", 0), ("strategy: cached, cache_ttl_seconds: 60", 61)],
)
def test_it_is_measured_again_when_the_study_says_so_or_it_is_too_old(
    strategy: str, age_s: float, first: Ran, tmp_path: Path
) -> None:
    of = experiment(strategy)
    assert known_idle_power(stored(tmp_path, of, 1, first, age_s=age_s), of, 2) is None


def test_without_an_earlier_cycle_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    run = ResultsRoot(str(tmp_path)).run("idle", "manual__1")
    assert known_idle_power(run, experiment("strategy: cached"), 2) is None


@pytest.mark.parametrize(
    ("now_w", "holds", "said"),
    [
        (251, True, "idle power of cycle 1 still holds; 251.0 W now, 250.0 W then (+0.4%, limit 10%)"),
        (300, False, "no longer holds: it is measured again; 300.0 W now, 250.0 W then (+20.0%, limit 10%)"),
    ],
)
def test_every_so_many_cycles_validated_looks_whether_it_still_holds(
    now_w: int, holds: bool, said: str, first: Ran, tmp_path: Path
) -> None:
    of = experiment("strategy: validated, validation_interval: 1")
    known = known_idle_power(stored(tmp_path, of, 1, first), of, 2)
    assert known is not None
    assert known.check
    rows = [Reading(at, at, "GPU", now_w * 1000).line() for at in range(0, 10**9, 10**8)]
    power_csv = tmp_path / "power.csv"
    power_csv.write_text(",".join(POWER_COLUMNS) + "\n" + "".join(rows))
    log = EventLog(tmp_path / "events.jsonl")
    baselines = IdlePhases(log, IdleRules(enabled=True, duration_s=0.2, settle_s=0.0), power_csv, 1)
    baselines.take_over(known, known.conditions)
    log.close()
    assert baselines.wanted is not holds
    assert said in (tmp_path / "events.jsonl").read_text()


def test_what_was_measured_on_another_device_or_under_another_limit_is_not_taken_over(
    first: Ran, tmp_path: Path
) -> None:
    of = experiment("strategy: cached")
    known = known_idle_power(stored(tmp_path, of, 1, first), of, 2)
    environment = json.loads((first.out / "environment.json").read_text())
    log = EventLog(tmp_path / "events.jsonl")
    rules = IdleRules(enabled=True, duration_s=30.0, settle_s=5.0)

    def wanted(boot_id: str, **changes: Any) -> bool:
        baselines = IdlePhases(log, rules, tmp_path / "power.csv", 1)
        gpu = environment["gpus"][0] | changes
        baselines.take_over(known, idle_conditions(boot_id, [gpu]))
        return baselines.wanted

    assert not wanted(environment["boot_id"])
    assert wanted("another boot")
    assert wanted(environment["boot_id"], uuid="GPU-of-somebody")
    assert wanted(environment["boot_id"], enforced_power_limit_w=200.0)
    log.close()
    assert "idle power of cycle 1 is not used" in (tmp_path / "events.jsonl").read_text()
