"""The load upon a server: one of a rate and of users of a closed loop, and what goes with each."""

from __future__ import annotations

import pytest

from llem_airflow.study.plan.order import longest_s
from tests.study.texts import report, study, values

HEAD = "serving_mode: server\nengine: vllm\ntask: {model: org/model}\nmeasurement: {meter: cpu-estimate}\n"
TRAFFIC = ("server", "traffic")


def test_a_closed_loop_is_swept_and_its_config_has_nothing_of_arrivals() -> None:
    text = "sweep: {server.traffic.concurrency: [1, 8]}\n"
    first, second = values(text, *TRAFFIC, head=HEAD)
    assert (first["concurrency"], second["concurrency"]) == (1, 8)
    assert not {"rate", "arrival", "burstiness", "concurrency_cap", "seed"} & set(first)
    one, other = study(text, head=HEAD).experiments
    assert one.hash != other.hash
    assert one.slug == "vllm-concurrency-1"
    assert one.wall_clock_s == longest_s(one.config["server"])


def test_an_open_loop_keeps_the_identity_that_it_had() -> None:
    (one,) = study("server: {traffic: {rate: 2}}\n", head=HEAD).experiments
    assert "concurrency" not in one.config["server"]["traffic"]
    assert one.hash == "3633709c7aec2292"


@pytest.mark.parametrize(
    "key", ["rate: 2", "arrival: gamma", "burstiness: 2", "concurrency_cap: 4", "seed: 1"]
)
def test_a_closed_loop_takes_nothing_of_arrivals(key: str) -> None:
    found = report(f"server:\n  traffic:\n    concurrency: 4\n    {key}\n", head=HEAD)
    name = key.partition(":")[0]
    assert f"a closed loop has no {name}" in found
    assert found.startswith("study.yaml:8:")
    assert f" server.traffic.{name}: " in found


@pytest.mark.parametrize(
    "body",
    [
        "server: {traffic: {rate: 2}}\nsweep: {server.traffic.concurrency: [1, 2]}\n",
        "server: {traffic: {concurrency: 2}}\nsweep: {server.traffic.rate: [1, 2]}\n",
        "sweep: {server.traffic.concurrency: [1, 2], server.traffic.rate: [1, 2]}\n",
    ],
)
def test_both_loops_are_refused_wherever_they_are_written(body: str) -> None:
    assert "a closed loop has no rate" in report(body, head=HEAD)


def test_both_loops_can_be_in_one_study() -> None:
    loops = "sweep:\n  load:\n    - {server.traffic.rate: [1, 2]}\n    - {server.traffic.concurrency: 4}\n"
    found = values(loops, *TRAFFIC, "concurrency", head=HEAD)
    assert found == [None, None, 4]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("server: {}\n", "the key 'server.traffic.rate' is missing"),
        ("server: {traffic: {window_seconds: 10}}\n", "the key 'server.traffic.rate' is missing"),
        ("server: {traffic: {concurrency: 0}}\n", "found 0"),
        ("server: {traffic: {concurrency: 1.5}}\n", "found 1.5"),
        ("server: {traffic: {concurency: 4}}\n", "Did you mean 'concurrency'?"),
        (
            "server: {traffic: {seed: 1}}\nsweep:\n  load:\n    - {server.traffic.rate: 1}\n    - {}\n",
            "it says of no load",
        ),
    ],
)
def test_no_load_is_told(body: str, words: str) -> None:
    assert words in report(body, head=HEAD)
