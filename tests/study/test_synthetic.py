"""Lengths of synthetic prompts: drawn as the keys say, with a seed, and told in the plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llem_airflow.study.prompts import Lengths, load_prompts
from tests.study.texts import report, study

N = 100_000


def dataset(**more: Any) -> dict[str, Any]:
    return {"source": "synthetic:512x128", "n_prompts": 50, "order": "interleaved", **more}


def head(mode: str = "serving_mode: offline", source: str = "synthetic:512x128", **keys: Any) -> str:
    said = "".join(f", {key}: {value}" for key, value in keys.items())
    task = f"task: {{model: org/model, dataset: {{source: '{source}', n_prompts: 50{said}}}}}\n"
    return f"{mode}\n{task}measurement: {{meter: cpu-estimate}}\n"


@pytest.mark.parametrize(("tokens", "ratio"), [(512, 0.5), (100, 0.1), (7, 1.0), (1000, 0.01)])
def test_a_range_is_uniform_over_its_whole_numbers_with_both_ends(tokens: int, ratio: float) -> None:
    low, high = Lengths(tokens, ratio).bounds
    assert (low, high) == (max(1, round(tokens * (1 - ratio))), round(tokens * (1 + ratio)))
    seen = np.bincount(Lengths(tokens, ratio).draw(N, "1"), minlength=high + 1)
    assert not seen[:low].any()
    assert len(seen) == high + 1
    assert stats.chisquare(seen[low:]).pvalue > 0.001


def test_a_normal_spread_has_its_mean_and_its_deviation() -> None:
    drawn = np.array(Lengths(512, stddev_tokens=64).draw(N, "1"))
    assert abs(drawn.mean() - 512.5) < 4 * 64 / N**0.5  # rounded up
    assert abs(drawn.std() - 64) < 1
    # Against the distribution itself: whole numbers, so the continuous one is compared half a token lower.
    assert stats.kstest(drawn - 0.5, stats.norm(512, 64).cdf).statistic < 0.01


@given(tokens=st.integers(1, 5000), ratio=st.floats(0, 1), share=st.floats(0, 1), seed=st.text(max_size=5))
def test_every_length_is_a_token_at_least_and_a_range_is_kept(
    tokens: int, ratio: float, share: float, seed: str
) -> None:
    low, high = Lengths(tokens, ratio).bounds
    assert 1 <= low <= tokens <= high
    assert all(low <= length <= high for length in Lengths(tokens, ratio).draw(20, seed))
    assert all(length >= 1 for length in Lengths(tokens, stddev_tokens=tokens * share).draw(20, seed))


def test_the_same_seed_gives_the_same_lengths_on_every_machine() -> None:
    assert Lengths(512, 0.5).draw(5, "42 input") == (413, 281, 601, 472, 565)
    assert Lengths(512, stddev_tokens=64).draw(5, "42 input") == (499, 478, 484, 559, 469)


def test_prompts_have_lengths_whatever_those_of_the_answers_are() -> None:
    one = load_prompts(dataset(input_tokens_stddev=50), seed=1, folder=None).synthetic
    two = load_prompts(dataset(input_tokens_stddev=50, output_tokens_stddev=9), seed=1, folder=None).synthetic
    assert one is not None
    assert two is not None
    assert one.input_lengths_tokens == two.input_lengths_tokens
    assert len(set(one.input_lengths_tokens)) > 10
    assert (one.output_lengths_tokens, len(two.output_lengths_tokens)) == ((), 50)


def test_the_hash_of_the_prompts_knows_what_was_drawn_and_older_ones_stay() -> None:
    plain, *others = (
        load_prompts(dataset(**keys), seed=1, folder=None).sha256
        for keys in ({}, {"range_ratio": 0.5}, {"prefix_tokens": 64}, {"output_tokens_stddev": 3})
    )
    assert plain.startswith("4492a90cbfb0")
    assert len({plain, *others}) == 4


@pytest.mark.parametrize("keys", [{"range_ratio": 0}, {"prefix_tokens": 0}, {"input_tokens_stddev": 0}])
def test_none_of_it_is_the_experiment_of_before(keys: dict[str, Any]) -> None:
    (plain,), (same,) = (study(head=head(**given)).experiments for given in ({}, keys))
    assert (plain.hash, plain.config) == (same.hash, same.config)


@pytest.mark.parametrize(
    "keys",
    [
        {"range_ratio": 0.5},
        {"prefix_tokens": 64},
        {"input_tokens_stddev": 3},
        {"output_tokens_stddev": 3},
    ],
)
def test_each_of_it_is_another_experiment(keys: dict[str, Any]) -> None:
    (plain,), (other,) = (study(head=head(**given)).experiments for given in ({}, keys))
    assert plain.hash != other.hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (head(source="builtin", range_ratio=0.5), "range_ratio needs synthetic prompts but source is 'builtin'"),
        (head(source="p.jsonl", prefix_tokens=8), "prefix_tokens needs synthetic prompts but source is 'p.jsonl'"),
        (
            head(range_ratio=0.5, output_tokens_stddev=9),
            "range_ratio is a uniform distribution and output_tokens_stddev a normal one",
        ),
        (head(output_tokens_stddev=129), "output_tokens_stddev 129 is above the 128 tokens of 'synthetic:512x128'"),
        (head(range_ratio=1.5), "task.dataset.range_ratio: found 1.5 (number); allowed: a number from 0 to 1"),
        (head(prefix_tokens=-1), "task.dataset.prefix_tokens: found -1 (whole number); allowed: a whole number from 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(text: str, expected: str) -> None:
    assert expected in report(head=text)


def notices(text: str, code: str) -> list[str]:
    return [each.message for each in study(head=text).warnings if each.code == code]


def test_the_plan_states_the_distribution() -> None:
    (told,) = notices(head(range_ratio=0.5), "drawn-lengths")
    assert told == (
        "synthetic:512x128: tokens of a prompt: 256 to 768 (uniform); of its answer: 64 to 192 (uniform); drawn from "
        "task.random_seed, the same in all experiments that have it"
    )
    (told,) = notices(head(input_tokens_stddev=50), "drawn-lengths")
    assert "of a prompt: mean 512, standard deviation 50 (normal, above 0); of its answer: 128; drawn" in told
    assert not notices(head(prefix_tokens=8), "drawn-lengths")


ON = "engine_params: {enable_prefix_caching: true}"
PER_REQUEST = "the prefix cache is off: the shared prefix of 64 tokens is computed for every request"
VLLM, TENSORRT = (
    "vllm.engine_params.enable_prefix_caching",
    "tensorrt.engine_params.kv_cache_config.enable_block_reuse",
)
ONCE = "the shared prefix of 64 tokens is computed once, as are prompts that repeat"


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("vllm", f"vllm: {PER_REQUEST}; {VLLM}: true keeps it"),
        (f"vllm\nvllm: {{{ON}}}", f"{VLLM} is on: {ONCE}"),
        ("tensorrt", f"tensorrt: {PER_REQUEST}; {TENSORRT}: true keeps it"),
        ("transformers", f"transformers: {PER_REQUEST}; this engine has none here"),
    ],
)
def test_the_plan_tells_what_the_prefix_cache_does_with_a_shared_prefix(engine: str, expected: str) -> None:
    text = head(f"serving_mode: offline\nengine: {engine}", prefix_tokens=64)
    assert notices(text, "prefix-cache") == [expected]
