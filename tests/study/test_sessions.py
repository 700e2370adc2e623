"""Sessions of a plan: what loads alike in one pass shares a container, whatever order was asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llem_airflow.protocol.engine_keys import load_arguments
from llem_airflow.study import Study
from llem_airflow.study.plan.findings import not_runnable
from tests.study.texts import report, study

TWO_LOADS = (
    "sweep:\n  transformers.engine_params.dtype: [float32, bfloat16]\n"
    "  transformers.llem_execution.batch_size: [1, 2, 4]\n"
)


def in_sessions(
    order: str = "interleave",
    cycles: int = 2,
    more: str = "",
    body: str = TWO_LOADS,
    isolation: str = "process",
) -> Study:
    execution = f"n_cycles: {cycles}, experiment_order: {order}, isolation: {isolation}{more}"
    return study(f"{body}study_execution: {{{execution}}}\n")


def codes(found: Study) -> set[str]:
    return {warning.code for warning in found.warnings}


def problems(found: Study) -> str:
    return "\n".join(map(str, not_runnable(found)))


@pytest.mark.parametrize("order", ["sequential", "interleave", "shuffle", "reverse", "latin_square"])
def test_a_session_is_what_loads_alike_in_one_pass(order: str) -> None:
    found = in_sessions(order, cycles=3)
    plan, plain = found.plan, study(f"{TWO_LOADS}study_execution: {{n_cycles: 3}}\n").plan
    assert {(run.experiment_id, run.cycle) for run in plan.planned_cycles} == {
        (run.experiment_id, run.cycle) for run in plain.planned_cycles
    }
    assert [run.position for run in plan.planned_cycles] == list(range(18))
    assert len(plan.sessions) == 6
    for session in plan.sessions:
        assert len({run.cycle for run in session.cycles}) == 1
        assert len({run.experiment_id for run in session.cycles}) == len(session.cycles) == 3
        loads = {
            found.experiment(run.experiment_id).config["transformers"]["engine_params"]["dtype"]
            for run in session.cycles
        }
        assert len(loads) == 1
        places = [run.position for run in session.cycles]
        assert places == list(range(places[0], places[0] + 3)), "nothing comes between cycles of a session"


@pytest.mark.parametrize(
    ("key", "values", "alike"),
    [
        ("transformers.llem_execution.batch_size", [1, 2], True),
        ("transformers.llem_execution.chat_template", [True, False], True),
        ("transformers.sampling_params.temperature", [0.5, 1], True),
        ("task.max_output_tokens", [8, 16], True),
        ("task.random_seed", [1, 2], True),
        ("task.dataset.n_prompts", [1, 2], True),
        ("transformers.llem_execution.torch_compile", [True, False], False),
        ("transformers.engine_params.dtype", ["float32", "bfloat16"], False),
        ("transformers.engine_params.revision", ["main", "v2"], False),
        ("transformers.engine_params.use_cache", [True, False], True),
        ("vllm.engine_params.max_num_seqs", [1, 2], False),
        ("vllm.sampling_params.temperature", [0.5, 1], True),
        ("vllm.llem_execution.chat_template", [True, False], True),
        ("task.model", ["org/one", "org/two"], False),
        ("gpus.count", [1, 2], False),
    ],
)
def test_only_what_the_engine_reads_when_it_loads_parts_sessions(
    key: str, values: list[object], alike: bool
) -> None:
    engine = "engine: vllm\n" if key.startswith("vllm") else ""
    for isolation in ("process", "engine"):
        found = study(
            f"{engine}sweep: {{{key}: {str(values).lower()}}}\n"
            f"study_execution: {{n_cycles: 1, isolation: {isolation}}}\n"
        )
        assert len(found.plan.sessions) == (1 if alike else 2)
        assert ("session-alone" in codes(found)) is not alike


def test_a_seed_that_the_engine_takes_when_it_loads_parts_sessions() -> None:
    head = "serving_mode: offline\ntask: {model: org/model}\nmeasurement: {meter: cpu-estimate}\n"
    body = "sweep: {task.random_seed: [1, 2]}\nstudy_execution: {n_cycles: 1, isolation: engine}\n"
    sessions = {
        engine: len(study(f"engine: {engine}\n{body}", head=head).plan.sessions)
        for engine in ("transformers", "vllm", "tensorrt")
    }
    assert sessions == {"transformers": 1, "vllm": 2, "tensorrt": 1}


def test_isolation_is_no_part_of_what_is_measured() -> None:
    plain = study(TWO_LOADS)
    warm = in_sessions(isolation="engine")
    for inside in (in_sessions(), warm):
        assert [each.hash for each in plain.experiments] == [each.hash for each in inside.experiments]
    assert warm.plan.sessions == in_sessions().plan.sessions, "what shares a container can share an engine"
    assert plain.plan.sessions == ()
    assert {run.session for run in plain.plan.planned_cycles} == {None}
    assert "sessions" not in plain.plan.to_json()


def test_the_plan_that_is_kept_names_the_session_of_each_cycle() -> None:
    plan = in_sessions().plan
    assert plan.to_json()["sessions"] == [run.session for run in plan.planned_cycles]


def test_names_of_sessions_are_unique_and_short() -> None:
    model = "org/" + "a-very-long-name-of-a-model-" * 5
    body = TWO_LOADS.replace("sweep:\n", f"sweep:\n  task.model: [{model}x, {model}y]\n")
    names = [each.id for each in in_sessions(body=body, cycles=10).plan.sessions]
    assert len(set(names)) == 40
    assert max(map(len, names)) <= 60
    assert all(name == name.lower() and "." not in name for name in names)


@pytest.mark.parametrize(("order", "kept"), [("sequential", False), ("interleave", True), ("reverse", False)])
def test_an_order_that_sessions_cannot_keep_is_told(order: str, kept: bool) -> None:
    # Of a pass A B C | D E F, reversed F E D | C B A is kept; of the passes of several loads the sessions are whole.
    body = TWO_LOADS if order != "reverse" else TWO_LOADS.replace("[float32, bfloat16]", "[float32]")
    found = in_sessions(order, body=body)
    assert ("session-order" not in codes(found)) is (kept or order == "reverse")


def test_pauses_are_short_within_a_pass_and_long_between_passes() -> None:
    found = in_sessions("sequential", more=", experiment_gap_seconds: 5, cycle_gap_seconds: 50")
    runs = found.plan.planned_cycles
    for before, now in pairwise(runs):
        assert now.gap_before_s == (5 if now.cycle == before.cycle else 50)


@pytest.mark.parametrize(
    ("body", "more", "said"),
    [
        ("runners: {transformers: process}\n", "", "`runners` says process for transformers"),
        (
            "",
            ", experiment_gap_seconds: 60, session: {idle_seconds: 60}",
            "ends itself after 60 s without a cycle",
        ),
    ],
)
def test_what_sessions_cannot_do_is_refused_with_the_way_out(body: str, more: str, said: str) -> None:
    found = problems(in_sessions(more=more, body=TWO_LOADS + body))
    assert said in found
    assert problems(study(TWO_LOADS + body)) == ""


def test_a_search_for_a_rate_has_no_sessions() -> None:
    head = (
        "engine: vllm\nserving_mode: server\ntask: {model: org/model}\nmeasurement: {meter: cpu-estimate}\n"
    )
    server = "server: {traffic: {find_rate: {from: 1, to: 4, slo: {ttft_ms: 100}}}}\n"
    found = study(f"{server}study_execution: {{isolation: process}}\n", head=head)
    assert "find_rate asks for a rate when all cycles of another are there" in problems(found)


def test_an_unknown_isolation_is_refused() -> None:
    said = report("study_execution: {isolation: thread}\n")
    assert "'thread'" in said
    assert "allowed: container, process, engine" in said


def serving(engine: str, more: str) -> Study:
    head = (
        f"engine: {engine}\nserving_mode: server\ntask: {{model: org/model}}\n"
        "measurement: {meter: cpu-estimate}\nserver: {traffic: {rate: 1}}\n"
    )
    return study(more, head=head)


def test_a_server_lives_on_where_it_can_be_made_ready_for_the_next_experiment() -> None:
    said = problems(serving("tensorrt", "study_execution: {isolation: engine}\n"))
    assert (
        "the server of tensorrt cannot be made ready for a second experiment, and serving_mode is server"
        in said
    )
    assert "write `isolation: process`" in said
    assert problems(serving("tensorrt", "study_execution: {isolation: process}\n")) == ""
    assert problems(serving("vllm", "study_execution: {isolation: engine}\n")) == ""


def test_a_server_takes_all_traffic_of_equal_load_arguments_and_no_offline_experiment() -> None:
    sweep = "study_execution: {isolation: engine, n_cycles: 1}\nsweep: {server.traffic.rate: [1, 2, 4]}\n"
    (session,) = serving("vllm", sweep).plan.sessions
    assert len(session.cycles) == 3
    one = serving("vllm", "").experiments[0].config
    served, offline = (
        load_arguments("vllm", {**one, "serving_mode": mode}) for mode in ("server", "offline")
    )
    assert served == {**offline, "serving_mode": "server"}


def test_limits_of_a_session_without_sessions_have_no_effect() -> None:
    found = study("study_execution: {session: {max_restarts: 1}}\n")
    assert "works with study_execution.isolation: process or engine" in str(found.warnings)


def test_a_session_that_can_outlive_its_limit_is_told() -> None:
    assert "session-long" in codes(in_sessions(more=", session: {max_runtime_seconds: 1000}"))
    assert "session-long" not in codes(in_sessions())
