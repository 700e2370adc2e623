from __future__ import annotations

from dataclasses import replace

import pytest

from llem_airflow.measurement.engines.contract import Prompt, Vocabulary
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.prompts import batches, prompt_set, synthetic_ids
from llem_airflow.protocol.spec import Synthetic
from tests.measurement.plugin.scripted_engine import ScriptedEngine
from tests.measurement.running import spec_of


def test_synthetic_prompts_have_the_exact_length_differ_and_hold_no_special_token() -> None:
    ids = list(synthetic_ids(Vocabulary(300, frozenset({0, 1, 2})), [64] * 20, seed=7))
    assert {len(one) for one in ids} == {64}
    assert len(set(ids)) == 20
    assert not {0, 1, 2} & {token for one in ids for token in one}


def test_the_same_seed_gives_the_same_prompts() -> None:
    vocabulary = Vocabulary(300, frozenset())
    assert list(synthetic_ids(vocabulary, [8] * 3, 1)) == list(synthetic_ids(vocabulary, [8] * 3, 1))
    assert list(synthetic_ids(vocabulary, [8] * 3, 1)) != list(synthetic_ids(vocabulary, [8] * 3, 2))


def test_texts_are_encoded_and_cut_in_the_order_of_the_study() -> None:
    spec = spec_of("scripted", {}, texts=("a" * 100, "bc"), output_tokens=5)
    first, second = prompt_set(spec, ScriptedEngine())
    assert (first.index, len(first.token_ids), first.output_tokens) == (0, 64, 5)
    assert second.token_ids == (ord("b"), ord("c"))


def test_a_synthetic_set_brings_its_own_output_length() -> None:
    spec = spec_of("scripted", {}, synthetic=Synthetic(input_tokens=12, output_tokens=34), output_tokens=5)
    prompts = prompt_set(spec, ScriptedEngine())
    assert {(len(prompt.token_ids), prompt.output_tokens) for prompt in prompts} == {(12, 34)}


def test_drawn_lengths_are_exact_for_each_prompt_and_its_answer() -> None:
    wanted = Synthetic(12, 34, input_lengths_tokens=(3, 17, 1, 9), output_lengths_tokens=(40, 1, 2, 30))
    prompts = prompt_set(spec_of("scripted", {}, synthetic=wanted), ScriptedEngine())
    assert [(len(one.token_ids), one.output_tokens) for one in prompts] == [(3, 40), (17, 1), (1, 2), (9, 30)]


def test_every_prompt_begins_with_the_shared_prefix_and_goes_on_as_it_would_without() -> None:
    wanted = Synthetic(12, 34, input_lengths_tokens=(3, 17, 1, 9))
    alone = prompt_set(spec_of("scripted", {}, synthetic=wanted), ScriptedEngine())
    shared = prompt_set(
        spec_of("scripted", {}, synthetic=replace(wanted, prefix_tokens=50)), ScriptedEngine()
    )
    prefix = shared[0].token_ids[:50]
    assert len(set(prefix)) > 10
    assert [one.token_ids for one in shared] == [prefix + one.token_ids for one in alone]


def test_a_prompt_without_tokens_is_named() -> None:
    with pytest.raises(MeasurementError, match="prompt 1 has no tokens"):
        prompt_set(spec_of("scripted", {}, texts=("a", "")), ScriptedEngine())


def test_batches_keep_the_order_and_the_last_may_be_smaller() -> None:
    prompts = tuple(Prompt(index, (1,), 1) for index in range(5))
    assert [[prompt.index for prompt in batch] for batch in batches(prompts, 2)] == [[0, 1], [2, 3], [4]]
    assert [len(batch) for batch in batches(prompts, None)] == [5]


def test_a_set_of_too_few_prompts_is_refused() -> None:
    spec = spec_of("scripted", {}, texts=("a", "b"))
    wanted = replace(spec, prompts=replace(spec.prompts, n_prompts=3))
    with pytest.raises(MeasurementError, match="a pass needs 3 prompts, the attempt was given 2"):
        prompt_set(wanted, ScriptedEngine())
    assert len(prompt_set(replace(spec, prompts=replace(spec.prompts, n_prompts=1)), ScriptedEngine())) == 1


def test_answers_have_256_tokens_unless_the_study_says_otherwise() -> None:
    spec = spec_of("scripted", {}, texts=("a",))
    for task, tokens in ((None, 256), ({}, 256), ({"max_output_tokens": 7}, 7)):
        (prompt,) = prompt_set(replace(spec, config={"task": task}), ScriptedEngine())
        assert prompt.output_tokens == tokens


def test_synthetic_prompts_without_a_seed_are_those_of_seed_0() -> None:
    spec = spec_of("scripted", {}, synthetic=Synthetic(input_tokens=12, output_tokens=34))
    none, zero, one = (
        prompt_set(replace(spec, config={"task": {"random_seed": seed}}), ScriptedEngine())
        for seed in (None, 0, 1)
    )
    assert none == zero != one
    assert [prompt.index for prompt in none] == list(range(spec.prompts.n_prompts))


@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_has_one_prompt_at_least(size: int) -> None:
    prompts = tuple(Prompt(index, (1,), 1) for index in range(2))
    assert [len(batch) for batch in batches(prompts, size)] == [1, 1]
