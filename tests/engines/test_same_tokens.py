"""transformers and vLLM, each in its container, on the same real model and the same prompts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import docker
import pytest

from llem_airflow.protocol.files import EVENTS
from tests.engines.boxes import OUTPUT_TOKENS, PROMPTS, Observed, experiment, observe, observe_living, rows_of
from tests.engines.witness import WITNESSED, witnessed_bundle

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.timeout(900)]

MAX_SEQUENCES = 4
PARAMETERS = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": MAX_SEQUENCES}


@pytest.fixture(scope="module")
def transformers(
    docker_api: docker.APIClient, cpu_image: str, smol_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    section = {"llem_execution": {"batch_size": 2}, "sampling_params": {"do_sample": False}}
    spec = experiment("transformers", smol_model, section)
    return observe(docker_api, cpu_image, spec, tmp_path_factory.mktemp("transformers"), smol_model.parent)


@pytest.fixture(scope="module")
def vllm(
    docker_api: docker.APIClient, vllm_image: str, smol_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    folder = tmp_path_factory.mktemp("vllm")
    spec = experiment("vllm", smol_model, {"engine_params": PARAMETERS})
    bundle = witnessed_bundle(folder)
    return observe(docker_api, vllm_image, spec, folder / "out", smol_model.parent, bundle)


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest) -> Observed:
    observed: Observed = request.getfixturevalue(request.param)
    return observed


def test_greedy_answers_are_the_same_token_for_token(transformers: Observed, vllm: Observed) -> None:
    assert sorted(transformers.answers) == list(range(len(PROMPTS)))
    assert vllm.answers == transformers.answers
    assert len({tuple(answer) for answer in vllm.answers.values()}) == len(PROMPTS)


def test_a_vllm_that_lives_on_answers_as_one_of_its_own(
    docker_api: docker.APIClient, vllm_image: str, vllm: Observed, smol_model: Path, tmp_path: Path
) -> None:
    greedy = experiment("vllm", smol_model, {"engine_params": PARAMETERS})
    section = {"engine_params": PARAMETERS, "sampling_params": {"temperature": 1.5}}
    sampled = experiment("vllm", smol_model, section)
    first, second, third = observe_living(
        docker_api, vllm_image, [sampled, greedy, sampled], tmp_path, smol_model.parent
    )
    assert second.answers == vllm.answers
    assert first.answers != vllm.answers
    assert third.answers != vllm.answers
    loads = [
        "load" in {row.get("phase") for row in rows_of(one.out / EVENTS)} for one in (first, second, third)
    ]
    assert loads == [True, False, False]


def test_both_engines_are_given_the_same_prompt_tokens(transformers: Observed, vllm: Observed) -> None:
    lengths = [
        {row["prompt_index"]: row["input_tokens"] for row in one.measured} for one in (transformers, vllm)
    ]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0].values())) > 1


def test_every_answer_has_exactly_the_length_that_was_asked_for(engine: Observed) -> None:
    assert {len(row["output_token_ids"]) for row in engine.measured} == {OUTPUT_TOKENS}
    assert {row["output_tokens"] for row in engine.measured} == {OUTPUT_TOKENS}
    assert {row["finish_reason"] for row in engine.measured} == {"length"}


def test_the_window_counts_what_its_requests_add_up_to(engine: Observed) -> None:
    window = engine.result.window
    assert window.requests == len(engine.measured)
    assert window.requests % len(PROMPTS) == 0
    assert window.output_tokens == sum(row["output_tokens"] for row in engine.measured)
    assert window.input_tokens == sum(row["input_tokens"] for row in engine.measured)


def test_every_token_has_a_time_of_its_own_inside_the_window(engine: Observed) -> None:
    window = engine.result.window
    for row in engine.measured:
        times: list[int] = row["token_mono_ns"]
        assert len(times) == OUTPUT_TOKENS
        assert window.t_begin_mono_ns <= row["t_submit_mono_ns"] < times[0] == row["t_first_mono_ns"]
        assert times[-1] == row["t_last_mono_ns"] <= window.t_end_mono_ns
        assert all(later > earlier for earlier, later in pairwise(times))


def test_several_prompts_run_at_once(transformers: Observed, vllm: Observed) -> None:
    assert {row["batch_size"] for row in transformers.measured} == {1, 2}  # five prompts, two at a time
    first_pass = [row for row in vllm.measured if row["iteration"] == 0]
    together = [
        row for row in first_pass if row["t_first_mono_ns"] < min(r["t_last_mono_ns"] for r in first_pass)
    ]
    assert len(together) == MAX_SEQUENCES


def test_the_first_token_of_a_queued_prompt_is_timed_from_its_submission(vllm: Observed) -> None:
    first_pass = [row for row in vllm.measured if row["iteration"] == 0]
    *together, queued = sorted(first_pass, key=lambda row: row["t_first_mono_ns"])
    # One prompt more than run at once: it waits until another has all its tokens.
    assert queued["t_first_mono_ns"] > min(row["t_last_mono_ns"] for row in together)
    assert queued["t_submit_mono_ns"] < min(row["t_first_mono_ns"] for row in together)


def test_times_to_first_token_agree_with_vllm_s_own_statistics(vllm: Observed) -> None:
    for row, said in witnessed(vllm):
        ours_s = (row["t_first_mono_ns"] - row["t_submit_mono_ns"]) / 1e9
        assert ours_s == pytest.approx(said["first_s"] - said["queued_s"], rel=0.05, abs=0.02)


def test_times_between_tokens_agree_with_vllm_s_own_statistics(vllm: Observed) -> None:
    for row, said in witnessed(vllm):
        assert said["output_tokens"] == OUTPUT_TOKENS
        times: list[int] = row["token_mono_ns"]
        ours_s = mean(later - earlier for earlier, later in pairwise(times)) / 1e9
        theirs_s = (said["last_s"] - said["first_s"]) / (OUTPUT_TOKENS - 1)
        assert ours_s == pytest.approx(theirs_s, rel=0.02, abs=0.001)


def test_the_engine_tells_its_version_model_and_key_value_cache(
    transformers: Observed, vllm: Observed
) -> None:
    assert vllm.result.engine_version.startswith("0.32.0")
    capacity = vllm.environment["engine_settings"]["kv_cache_capacity_tokens"]
    assert capacity > 256
    assert 0 < vllm.result.memory["kv_cache_peak_tokens"] <= capacity
    for one in (transformers, vllm):
        assert one.result.model["n_parameters"] == 134_515_008
        assert one.result.model["dtype"] == "float32"
    same = "flops_per_token"
    assert vllm.result.model[same] == transformers.result.model[same]


def witnessed(observed: Observed) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Each measured request with what vLLM said of it."""
    said = rows_of(observed.out / WITNESSED)
    by_name = {int(row["request_id"].split("-")[1]): row for row in said}
    # The adapter numbers its requests in the order of submission; the warm-up came first.
    names = sorted(by_name)[-len(observed.measured) :]
    measured = sorted(observed.measured, key=lambda row: (row["iteration"], row["prompt_index"]))
    return [(row, by_name[name]) for row, name in zip(measured, names, strict=True)]
