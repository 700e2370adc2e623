"""The leaderboard: measured energy of one workload within a limit, of runs that the user may read alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llem_airflow.analysis.leaderboard import Entrant, boards
from llem_airflow.frames import experiments_df
from llem_airflow.results import layout
from tests.web.conftest import Site
from tests.web.loaded import loaded
from tests.web.written import ENERGY, GPU, written

ONE = Entrant(
    source={},
    model="m",
    hardware="h",
    engine="e",
    workload="w",
    energy_kind="measured",
    n=3,
    energy_per_output_token_j=1.0,
    low_j=0.9,
    high_j=1.1,
    output_tokens_per_s=100.0,
    latencies_s={"ttft_p95_s": 0.1, "tpot_mean_s": None},
)
FRUGAL = replace(ONE, energy_per_output_token_j=0.5, low_j=0.45, high_j=0.55, latencies_s={"ttft_p95_s": 0.4})
OTHER = replace(
    ONE, model="n", energy_per_output_token_j=0.8, low_j=0.7, high_j=0.9, latencies_s={"ttft_p95_s": 0.2}
)


def test_each_contender_stands_with_its_least_energy_within_the_limit() -> None:
    (board,) = boards([ONE, FRUGAL, OTHER], "ttft_p95_s")
    assert [(one.rank, one.entrant, one.tried) for one in board.ranked] == [(1, FRUGAL, 2), (2, OTHER, 1)]
    (board,) = boards([ONE, FRUGAL, OTHER], "ttft_p95_s", 0.2)
    assert [one.entrant for one in board.ranked] == [OTHER, ONE]
    (board,) = boards([ONE, FRUGAL, OTHER], "ttft_p95_s", 0.15)
    assert ([one.entrant for one in board.ranked], board.beyond) == ([ONE], (OTHER,))


def test_a_latency_that_is_not_known_is_within_no_limit() -> None:
    (board,) = boards([ONE, FRUGAL], "tpot_mean_s", 1.0)
    assert (board.ranked, board.beyond, board.unknown) == ((), (), (FRUGAL,))
    (board,) = boards([ONE, FRUGAL], "tpot_mean_s")
    assert [one.entrant for one in board.ranked] == [FRUGAL]


def test_of_a_server_the_cheapest_rate_that_holds_has_the_place() -> None:
    idle = replace(ONE, energy_per_output_token_j=3.0, latencies_s={"ttft_p95_s": 0.05}, meets_slo=True)
    busy = replace(ONE, energy_per_output_token_j=1.2, latencies_s={"ttft_p95_s": 0.3}, meets_slo=True)
    late = replace(ONE, energy_per_output_token_j=0.9, latencies_s={"ttft_p95_s": 0.6}, meets_slo=False)
    full = replace(late, energy_per_output_token_j=0.7, saturated=True)

    def places(limit_s: float | None, *entrants: Entrant) -> tuple[list[Entrant], tuple[Entrant, ...]]:
        (board,) = boards(entrants, "ttft_p95_s", limit_s)
        return [one.entrant for one in board.ranked], board.beyond

    rates = idle, busy, late, full
    assert places(None, *rates) == ([busy], ()), "its study's bounds hold"
    assert places(1.0, *rates) == ([late], ()), "the limit is in their place; what is saturated is nowhere"
    assert places(0.1, *rates) == ([idle], ())
    assert places(0.01, *rates) == ([], (idle,))
    assert places(None, late, full) == ([], (late,))
    (board,) = boards([replace(one, energy_kind="estimate") for one in rates], "ttft_p95_s")
    assert board.apart == (replace(busy, energy_kind="estimate"),)


def test_rates_of_a_server_are_configurations_of_one_workload(site: Site, tmp_path: Path) -> None:
    loaded(site.root, tmp_path, "r1", dag_id="nightly")
    (board,) = site.get("/api/leaderboard").json()["boards"]
    assert "served (open loop, arrival poisson" in board["workload"]
    assert "rate" not in board["workload"]
    (row,) = board["ranked"]
    assert (row["source"]["label"], row["tried"]) == ("rate 4", 4)
    assert (row["meets_slo"], row["saturated"]) == (True, False)


@pytest.mark.parametrize("kind", ["estimate", "attributed", "mixed", "none"])
def test_what_was_not_measured_has_no_rank(kind: str) -> None:
    guess = replace(FRUGAL, energy_kind=kind)
    (board,) = boards([ONE, guess], "ttft_p95_s")
    assert ([one.entrant for one in board.ranked], board.apart) == ([ONE], (guess,))


def test_only_one_workload_is_compared() -> None:
    found = boards([ONE, replace(OTHER, workload="v"), replace(ONE, model="p")], "ttft_p95_s")
    assert [(one.workload, len(one.ranked)) for one in found] == [("w", 2), ("v", 1)]


def test_intervals_that_meet_are_level() -> None:
    near = replace(ONE, model="near", energy_per_output_token_j=1.15, low_j=1.05, high_j=1.25)
    far = replace(ONE, model="far", energy_per_output_token_j=1.3, low_j=1.2, high_j=1.4)
    single = replace(ONE, model="single", energy_per_output_token_j=2.0, n=1, low_j=None, high_j=None)
    (board,) = boards([far, single, near, ONE], "ttft_p95_s")
    assert [(one.entrant.model, one.level) for one in board.ranked] == [
        ("m", False),
        ("near", True),
        ("far", False),
        ("single", True),
    ]


@pytest.mark.parametrize(
    ("latency", "limit_s"), [("energy_j", None), ("ttft_p95_s", 0.0), ("ttft_p95_s", -1.0)]
)
def test_no_latency_and_no_limit_that_there_is_not(latency: str, limit_s: float | None) -> None:
    with pytest.raises(ValueError, match=r"latency|limit"):
        boards([ONE], latency, limit_s)


def test_the_newest_run_of_each_study_dag_and_release_competes(site: Site) -> None:
    site.dag("other")
    written(site.root, {"a-aaaaaaaa": [9.0, 9.1, 9.2]}, night=0)
    values = {"a-aaaaaaaa": [2.0, 2.1, 2.2], "b-bbbbbbbb": [1.0, 1.1, 1.2]}
    ours = written(site.root, values, night=1, measures={"ttft_mean_s": 0.2})
    theirs = {"model": "larger", "gpus": [{**GPU, "name": "B200"}] * 2}
    written(site.root, {"c-cccccccc": [0.5, 0.6, 0.7]}, dag_id="other", study="secret", fingerprint=theirs)
    written(
        site.root, {"d-dddddddd": [0.1, 0.1, 0.1]}, study="laptop", fingerprint={"energy_kind": "estimate"}
    )
    (board,) = site.get("/api/leaderboard").json()["boards"]
    (row,) = board["ranked"]
    frame = experiments_df(ours).set_index("experiment")
    assert row["source"]["experiment"] == "b-bbbbbbbb"
    assert row["energy_per_output_token_j"] == frame.loc["b-bbbbbbbb", ENERGY]
    assert (row["low_j"], row["high_j"]) == tuple(
        frame.loc["b-bbbbbbbb", [f"{ENERGY}_low", f"{ENERGY}_high"]]
    )
    assert (row["hardware"], row["engine"], row["latency_s"], row["tried"]) == (
        "1 x NVIDIA H100",
        "vllm 0.11",
        pytest.approx(0.2),
        2,
    )
    assert [one["energy_kind"] for one in board["apart"]] == ["estimate"]
    both = site.get("/api/leaderboard", user="nightly+other").json()["boards"]
    assert [(one["model"], one["hardware"]) for one in both[0]["ranked"]] == [
        ("larger", "2 x B200"),
        ("tiny", "1 x NVIDIA H100"),
    ]
    beyond = site.get("/api/leaderboard", limit_s=0.1).json()["boards"][0]
    assert ([one["source"]["experiment"] for one in beyond["beyond"]], beyond["ranked"]) == (
        ["b-bbbbbbbb"],
        [],
    )


def test_only_runs_that_the_user_may_read_compete(site: Site) -> None:
    site.dag("other")
    written(site.root, {"a-aaaaaaaa": [1.0, 1.1, 1.2]})
    written(site.root, {"c-cccccccc": [0.5, 0.6, 0.7]}, dag_id="other", study="secret")
    written(site.root, {"c-cccccccc": [0.5, 0.6, 0.7]}, dag_id="", study="imported")
    for user, studies in (
        ("nightly", ["nightly"]),
        ("other", ["secret"]),
        ("nightly+other", ["nightly", "secret"]),
        ("nightly-runs", []),
        ("none", []),
        ("~", []),
    ):
        answer = site.get("/api/leaderboard", user=user)
        found = [one["source"]["study"] for board in answer.json()["boards"] for one in board["ranked"]]
        assert sorted(found) == ([] if not studies else studies if len(studies) == 1 else ["secret"])
        assert ("secret" in answer.text) == ("secret" in studies)
        assert "imported" not in answer.text


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "x"])
def test_a_limit_that_is_none_is_refused(site: Site, limit: str) -> None:
    assert site.get("/api/leaderboard", limit_s=limit).status_code == 422
    assert site.get("/api/leaderboard", latency="energy_j").status_code == 409


def test_different_prompts_lengths_and_arrivals_are_different_workloads(site: Site) -> None:
    base = {"serving_mode": "offline", "task": {"model": "tiny", "max_output_tokens": 16}}
    values = {"a-aaaaaaaa": [1.0, 1.1, 1.2]}
    served = {"serving_mode": "server", "server": {"traffic": {"rate": 2, "slo": {"ttft_ms": 5}}}}
    for place, (config, prompts) in enumerate(
        (
            (base, "a"),
            (base, "b"),
            ({**base, "task": {"model": "tiny", "max_output_tokens": 32}}, "a"),
            ({**base, **served}, "a"),
            ({**base, "serving_mode": "server", "server": {"traffic": {"rate": 2, "seed": 3}}}, "a"),
        )
    ):
        told = {"prompts_sha256": prompts * 64, "model": f"m{place}"}
        written(site.root, values, study=f"s{place}", config=config, fingerprint=told)
    found = site.get("/api/leaderboard").json()["boards"]
    assert sorted(len(board["ranked"]) for board in found) == [1, 1, 1, 2]
    (both,) = (board["ranked"] for board in found if len(board["ranked"]) == 2)
    assert [row["source"]["label"] for row in both] == ["a-aaaaaaaa, rate 2"] * 2


def test_a_damaged_run_is_told_and_hides_no_other(site: Site) -> None:
    assert site.get("/api/leaderboard").json()["boards"] == []
    written(site.root, {"a-aaaaaaaa": [1.0, 1.1, 1.2]})
    run = written(site.root, {"a-aaaaaaaa": [1.0, 1.1, 1.2]}, study="broken")
    run.folder.write(layout.EXPERIMENTS_TABLE, b"PAR1")
    found = site.get("/api/leaderboard").json()
    assert (len(found["boards"]), "cannot be read" in found["problems"][0]) == (1, True)
