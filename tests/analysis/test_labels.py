"""Experiments are called by what sets them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.analysis.plan import LONGEST, distinct_labels, factor_label, factors

KEYS = st.sampled_from(["a", "b", "c"])
CONFIGS = st.lists(
    st.dictionaries(
        KEYS, st.integers(0, 1) | st.dictionaries(KEYS, st.integers(0, 1), max_size=2), max_size=3
    ),
    min_size=1,
    max_size=4,
)


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


@given(CONFIGS)
def test_factors_are_the_keys_whose_values_differ_and_tell_unequal_configurations_apart(
    configs: list[dict[str, Any]],
) -> None:
    found = factors(configs)
    for config, own in zip(configs, found, strict=True):
        assert own == {key: at(config, key) for key in own}
    for key in found[0]:
        assert len({repr(own[key]) for own in found}) > 1
    for one, own in zip(configs, found, strict=True):
        for other, theirs in zip(configs, found, strict=True):
            if own == theirs:  # then they differ in nothing but keys that are absent or empty
                assert pruned(one) == pruned(other)


def pruned(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: inner for key, item in value.items() if (inner := pruned(item)) not in (None, {})}


def test_another_engine_is_one_difference_and_not_one_for_each_of_its_keys() -> None:
    def config(engine: str, **own: Any) -> dict[str, Any]:
        return {"engine": engine, "task": {"model": "lab/m"}, engine: own}

    found = factors(
        [
            config("vllm", seed=1, max_num_seqs=8),
            config("transformers", batch_size=1, dtype="float32"),
            config("transformers", batch_size=8, dtype="float32"),
        ]
    )
    assert [factor_label(own, "x") for own in found] == [
        "vllm",
        "transformers, batch_size 1",
        "transformers, batch_size 8",
    ]


def test_names_that_are_no_names_are_ids() -> None:
    assert distinct_labels(["a-1", "b-2"], ["same", "same"]) == ["a-1", "b-2"]
    assert distinct_labels(["a-1", "b-2"], ["x" * (LONGEST + 1), "y"]) == ["a-1", "b-2"]
