"""A study over several hosts: each cycle has one, the same in every plan, as a blocking factor."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product

import pytest

from llem_airflow.study import Study
from llem_airflow.study.plan.findings import not_runnable
from tests.study.texts import report, study

SWEEP = "sweep: {transformers.llem_execution.batch_size: [1, 2, 4]}\n"
SEARCHED = """\
serving_mode: server
engine: vllm
task: {model: org/model}
measurement: {meter: cpu-estimate}
server: {traffic: {find_rate: {from: 1, to: 8, tolerance: 0.5, slo: {ttft_ms: 500}}}}
"""


def spread(hosts: int, cycles: int, *, more: str = "", order: str = "sequential", body: str = SWEEP) -> Study:
    names = ", ".join(f"gpu{number}" for number in range(1, hosts + 1))
    execution = f"study_execution: {{n_cycles: {cycles}, experiment_order: {order}{more}}}\n"
    return study(f"{body}{execution}airflow: {{hosts: [{names}]}}\n")


def by_experiment(found: Study) -> dict[str, Counter[str | None]]:
    counted: dict[str, Counter[str | None]] = {}
    for run in found.plan.planned_cycles:
        counted.setdefault(run.experiment_id, Counter())[run.host] += 1
    return counted


def codes(found: Study) -> set[str]:
    return {warning.code for warning in found.warnings if warning.code.startswith("hosts")}


@pytest.mark.parametrize(
    ("hosts", "passes", "order"),
    list(product((1, 2, 3), (1, 2), ("sequential", "interleave", "shuffle", "reverse", "latin_square"))),
)
def test_the_cycles_of_each_experiment_are_as_many_on_every_host(hosts: int, passes: int, order: str) -> None:
    found = spread(hosts, hosts * passes, order=order)
    assert all(
        set(each.values()) == {passes} and len(each) == hosts for each in by_experiment(found).values()
    )
    assert found.plan == spread(hosts, hosts * passes, order=order).plan, "as it was planned before"
    assert codes(found) == set()


def test_in_a_pass_the_experiments_are_shared_out_too() -> None:
    found = spread(3, 3, order="interleave")
    for cycle in (1, 2, 3):
        hosts = [run.host for run in found.plan.planned_cycles if run.cycle == cycle]
        assert sorted(map(str, hosts)) == ["gpu1", "gpu2", "gpu3"]


def test_whole_experiments_may_have_one_host_and_the_plan_says_what_that_costs() -> None:
    text = "study_execution: {n_cycles: 4}\nairflow: {hosts: [gpu1, gpu2], spread: experiments}\n"
    found = study(SWEEP + text)
    assert [list(each) for each in by_experiment(found).values()] == [["gpu1"], ["gpu2"], ["gpu1"]]
    assert codes(found) == {"hosts-confounded"}


def test_numbers_that_do_not_fit_are_told_with_one_that_does() -> None:
    found = spread(2, 3)
    (warning,) = [each for each in found.warnings if each.code == "hosts-unbalanced"]
    assert "3 cycles over 2 hosts" in warning.message
    assert warning.message.endswith("n_cycles: 4 is")


def test_all_cycles_of_a_session_are_on_one_host() -> None:
    body = (
        "sweep:\n  transformers.engine_params.dtype: [float32, bfloat16]\n"
        "  transformers.llem_execution.batch_size: [1, 2, 4]\n"
    )
    found = spread(2, 2, more=", isolation: process", body=body)
    assert len(found.plan.sessions) == 4
    assert all(len({run.host for run in session.cycles}) == 1 for session in found.plan.sessions)
    assert all(set(each) == {"gpu1", "gpu2"} for each in by_experiment(found).values())


def test_the_rates_of_a_search_are_asked_for_on_one_host_in_each_cycle() -> None:
    found = study("study_execution: {n_cycles: 2}\nairflow: {hosts: [gpu1, gpu2]}\n", head=SEARCHED)
    assert found.plan.searches
    of_cycle: dict[int, set[str | None]] = {}
    for run in found.plan.planned_cycles:
        of_cycle.setdefault(run.cycle, set()).add(run.host)
    assert of_cycle == {1: {"gpu1"}, 2: {"gpu2"}}


def test_each_host_rests_after_its_own_cycles() -> None:
    more = ", experiment_gap_seconds: 10, cycle_gap_seconds: 100"
    runs = spread(2, 2, more=more, order="interleave").plan.planned_cycles
    for host in ("gpu1", "gpu2"):
        own = [run for run in runs if run.host == host]
        assert own[0].gap_before_s == 0
        assert [b.gap_before_s for a, b in pairwise(own)] == [
            100.0 if b.cycle != a.cycle else 10.0 for a, b in pairwise(own)
        ]


def test_the_plan_file_has_the_hosts_only_where_there_are_some() -> None:
    assert spread(2, 2).plan.to_json()["hosts"] == ["gpu1", "gpu2", "gpu2", "gpu1", "gpu1", "gpu2"]
    assert "hosts" not in study(SWEEP).plan.to_json()


def test_hosts_change_no_experiment() -> None:
    assert [each.hash for each in spread(2, 2).experiments] == [
        each.hash for each in study(SWEEP).experiments
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{spread: cycles}", "airflow.spread"),
        ("{mixed_gpus: true}", "it is about several hosts, and the study names none"),
        ("{hosts: [gpu1, gpu1]}", "airflow.hosts"),
        ("{hosts: gpu1}", "airflow.hosts"),
        ("{hosts: [gpu1], spread: hosts}", "allowed: cycles, experiments"),
    ],
)
def test_a_mistake_is_told_with_its_key(text: str, said: str) -> None:
    assert said in report(f"airflow: {text}\n")


def test_a_cluster_has_nodes_and_no_hosts() -> None:
    found = study("runners: {transformers: kubernetes}\nairflow: {hosts: [gpu1, gpu2]}\n")
    assert any("the cluster chooses nodes" in str(problem) for problem in not_runnable(found))
