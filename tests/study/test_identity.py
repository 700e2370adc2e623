from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.study.plan.identity import Slugs, canonical_json, experiment_hash
from tests.study.texts import HEAD, study

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def _shuffled(value: Any) -> Any:
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        return {key: _shuffled(value[key]) for key in reversed(list(value))}
    return [_shuffled(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_canonical_json_is_json_and_keeps_the_value(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(JSON)
def test_canonical_json_survives_its_own_round_trip(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@given(JSON)
def test_the_order_of_keys_never_matters(value: Any) -> None:
    assert canonical_json(_shuffled(value)) == canonical_json(value)


def test_whole_numbers_are_the_same_with_and_without_a_point() -> None:
    assert (
        canonical_json({"a": 0.0, "b": [1, 2.0]})
        == canonical_json({"b": [1.0, 2], "a": 0})
        == '{"a":0,"b":[1,2]}'
    )
    assert canonical_json(-0.0) == "0"
    assert canonical_json(True) != canonical_json(1)
    assert canonical_json("1") != canonical_json(1)


def test_there_is_no_canonical_form_of_what_is_not_json() -> None:
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(TypeError, match="no JSON value"):
            canonical_json(value)


def test_the_hash_of_an_experiment_never_changes_between_releases() -> None:
    # A change of this value makes every stored result a stranger: only a new format of the study may do it.
    assert study().experiments[0].hash == GOLDEN


GOLDEN = "4b80e041cb5ed7ea"


def test_the_hash_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from tests.study.texts import study; print(study().experiments[0].hash)"
    for seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == study().experiments[0].hash


def _hash(body: str = "", head: str = HEAD) -> str:
    return study(body, head=head).experiments[0].hash


@pytest.mark.parametrize(
    "body",
    [
        "study_name: other\n",
        "runners: {transformers: container}\n",
        "images: {transformers: my/img}\n",
        "output: {save_timeseries: false}\n",
        "airflow: {schedule: '@daily', retries: 7}\n",
        "study_execution: {n_cycles: 9, experiment_order: shuffle, experiment_gap_seconds: 3}\n",
        "study_execution: {experiment_timeout_seconds: 9, gpu_indices: [1]}\n",
        "versions: [{name: v1}]\n",
        "engine: pytorch\n",
        "transformers: {engine_params: {}}\n",
        "version: 1\n",
    ],
)
def test_where_when_and_how_often_are_not_in_the_hash(body: str) -> None:
    assert _hash(body) == _hash()


@pytest.mark.parametrize(
    "body",
    [
        "engine: vllm\n",
        "sampling_preset: creative\n",
        "offline: {warmup: {enabled: false}}\n",
        "transformers: {engine_params: {dtype: float16}}\n",
        "transformers: {llem_execution: {batch_size: 2}}\n",
        "passthrough_kwargs: {x: 1}\n",
        "gpus: {count: 2}\n",
    ],
)
def test_what_is_measured_is_in_the_hash(body: str) -> None:
    assert _hash(body) != _hash()


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace("org/model", "org/other"),
        HEAD.replace("cpu-estimate", "none"),
        HEAD.replace("cpu-estimate", "cpu-estimate, power_hz: 5"),
        HEAD.replace("model: org/model", "model: org/model, max_output_tokens: 3"),
    ],
)
def test_model_meter_and_lengths_are_in_the_hash(head: str) -> None:
    assert _hash(head=head) != _hash()


def test_where_the_gpus_are_is_not_in_the_hash() -> None:
    one = _hash("gpus: {count: 1, ids: ['0'], exclusive: host, memory_gb: 40}\n")
    assert one == _hash("gpus: {count: 1, ids: ['1']}\n")


def test_slo_bounds_are_not_in_the_hash() -> None:
    head = "serving_mode: server\nengine: vllm\ntask: {model: m}\n"
    plain = _hash("server: {traffic: {rate: 2}}\n", head)
    assert _hash("server: {traffic: {rate: 2, slo: {ttft_ms: 100}}}\n", head) == plain
    assert _hash("server: {traffic: {rate: 3}}\n", head) != plain


def test_older_names_of_the_meter_hash_like_the_meter() -> None:
    assert _hash(head=HEAD.replace("meter: cpu-estimate", "energy_sampler: codecarbon")) == _hash()


def test_defaults_hash_like_the_same_values_written_out() -> None:
    assert (
        _hash(head=HEAD.replace("org/model", "org/model, max_output_tokens: 256, random_seed: 42.0"))
        == _hash()
    )


def test_ids_are_short_plain_and_unique() -> None:
    long = "org/A-Very-Long-Model-Name-With-Many-Parts-70B-Instruct-v2.1"
    seeds = "{min: 1, max: 50, num: 50}"
    body = f"sweep:\n  task.model: [{long}, b/ü]\n  task.random_seed: {seeds}\n"
    ids = [experiment.id for experiment in study(body).experiments]
    assert len(set(ids)) == len(ids) == 100
    assert all(len(each) <= 60 and set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for each in ids)


def test_a_slug_says_what_differs() -> None:
    body = (
        "transformers: {llem_execution: {torch_compile: true}}\nsweep:\n"
        "  transformers.engine_params.dtype: [float16, float32]\n"
        "  transformers.sampling_params.temperature: [0.5, 1.0]\n"
    )
    assert study(body).experiments[0].slug == "transformers-float16-temperature-0p5"


def test_a_single_experiment_is_named_after_its_model() -> None:
    assert study().experiments[0].slug == "transformers-model"


def test_slugs_of_booleans_and_lists_are_readable() -> None:
    config = {"engine": "vllm", "task": {"model": "m"}, "vllm": {"a": True, "b": [1, 2], "c": None}}
    slug = Slugs([("vllm", "a"), ("vllm", "b"), ("vllm", "c")]).slug(config)
    assert slug.startswith("vllm-a-on-b-")
    assert experiment_hash(config) == experiment_hash(dict(reversed(config.items())))
