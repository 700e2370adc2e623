"""The transformers engine on a real, tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.protocol.spec import Synthetic
from tests.measurement.running import TEXTS, Ran, run, spec_of

pytestmark = pytest.mark.engine


def attempt(tiny_model: Path, folder: Path, section: dict[str, Any] | None = None, **more: Any) -> Ran:
    return run(spec_of("transformers", section or {}, model_path=str(tiny_model), **more), folder)


@pytest.fixture(scope="module")
def batched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    section = {"llem_execution": {"batch_size": 3}}
    return attempt(tiny_model, tmp_path_factory.mktemp("batched"), section, output_tokens=12)


def test_a_real_model_runs_to_a_result(batched: Ran) -> None:
    assert batched.code == 0, batched.stdout
    model = batched.result.model
    assert (model["architecture"], model["dtype"], model["device"]) == ("LlamaForCausalLM", "float32", "cpu")


def test_every_sequence_of_a_batch_has_a_time_per_token(batched: Ran) -> None:
    for row in batched.requests:
        times = row["token_mono_ns"]
        assert len(times) == row["output_tokens"] == len(row["output_token_ids"]) == 12
        assert times == sorted(times)
        assert row["t_submit_mono_ns"] < row["t_first_mono_ns"] == times[0]
    assert {row["batch_size"] for row in batched.requests} == {3, 1}


def test_lengths_are_fixed_so_the_end_token_does_not_shorten_an_answer(batched: Ran) -> None:
    assert {row["finish_reason"] for row in batched.requests} == {"length"}


def test_padding_does_not_change_what_is_answered(tiny_model: Path, tmp_path: Path, batched: Ran) -> None:
    alone = attempt(tiny_model, tmp_path, output_tokens=12)
    assert answers(alone) == answers(batched)


def test_parameters_and_operations_are_those_of_the_weights(batched: Ran, tiny_model: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, shared, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    attention = hidden * size * heads * 2 + hidden * size * shared * 2
    matrices = layers * (attention + 3 * hidden * inner) + hidden * config["vocab_size"]
    assert batched.result.model["flops_per_token"] == 2 * matrices
    assert batched.result.model["attention_flops_per_token_per_context_token"] == 4 * layers * heads * size
    norms = (2 * layers + 1) * hidden
    assert batched.result.model["n_parameters"] == matrices + norms  # embedding and head share their storage


def test_the_environment_names_versions_and_what_was_loaded(batched: Ran) -> None:
    found = json.loads((batched.out / "environment.json").read_text())
    assert found["libraries"]["torch"]
    assert found["engine_settings"]["engine_params"] == {"dtype": "float32"}
    assert found["settings"]["OMP_NUM_THREADS"] == "1"
    assert found["engine_settings"]["torch_threads"] == 1


def test_sampling_with_a_seed_is_repeatable_and_is_not_greedy(
    tiny_model: Path, tmp_path: Path, batched: Ran
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    section = {"engine_params": {"attn_implementation": "eager"}, "llem_execution": {"batch_size": 4}}
    more: dict[str, Any] = {"output_tokens": 12, "config": {"sampling_preset": "creative"}}
    one = attempt(tiny_model, tmp_path / "a", section, **more)
    other = attempt(tiny_model, tmp_path / "b", section, **more)
    assert answers(one) == answers(other)
    assert answers(one) != answers(batched)
    assert one.result.model["attention"] == "eager"


def test_synthetic_prompts_have_their_exact_lengths(tiny_model: Path, tmp_path: Path) -> None:
    ran = attempt(tiny_model, tmp_path, synthetic=Synthetic(input_tokens=33, output_tokens=5))
    assert {(row["input_tokens"], row["output_tokens"]) for row in ran.requests} == {(33, 5)}


def test_long_prompts_are_cut_to_the_task_s_limit(tiny_model: Path, tmp_path: Path) -> None:
    ran = attempt(tiny_model, tmp_path, texts=("return " * 500, "x"))
    assert max(row["input_tokens"] for row in ran.requests) == 64


def test_the_chat_template_is_applied_where_the_study_asks(tiny_model: Path, tmp_path: Path) -> None:
    plain = attempt(tiny_model, tmp_path)
    (tmp_path / "chat").mkdir()
    chat = attempt(tiny_model, tmp_path / "chat", {"llem_execution": {"chat_template": True}})
    assert input_tokens(chat) > input_tokens(plain)


def test_a_folder_without_a_model_says_which_and_what_to_check(tmp_path: Path) -> None:
    ran = attempt(tmp_path / "nothing", tmp_path)
    assert (ran.error.category, ran.error.phase) == ("model_missing", "load")
    assert "holds no config.json here" in ran.error.message


def test_weights_without_a_tokenizer_are_recognised(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(
        tiny_model, bare, ignore=shutil.ignore_patterns("*token*", "*.jinja", "vocab*", "merges*")
    )
    ran = attempt(bare, tmp_path)
    assert ran.error.category == "tokenizer_missing", ran.error.message


def test_a_wrong_engine_parameter_is_recognised_and_named(tiny_model: Path, tmp_path: Path) -> None:
    ran = attempt(tiny_model, tmp_path, {"engine_params": {"attn_implementation": "flash_attention_9"}})
    assert (ran.error.category, ran.error.phase) == ("bad_parameter", "load"), ran.error.message
    assert "flash_attention_9" in ran.error.message


def test_a_wrong_sampling_parameter_is_recognised_and_named(tiny_model: Path, tmp_path: Path) -> None:
    ran = attempt(tiny_model, tmp_path, {"sampling_params": {"temprature": 0.5}})
    assert (ran.error.category, ran.error.phase) == ("bad_parameter", "warmup"), ran.error.message
    assert "temprature" in ran.error.message


def test_a_dtype_that_is_none_is_named(tiny_model: Path, tmp_path: Path) -> None:
    ran = attempt(tiny_model, tmp_path, {"engine_params": {"dtype": "float23"}})
    assert ran.error.message.startswith("transformers.engine_params.dtype: 'float23' is not a dtype")


def test_an_unknown_execution_setting_lists_the_known(tiny_model: Path, tmp_path: Path) -> None:
    ran = attempt(tiny_model, tmp_path, {"llem_execution": {"batchsize": 2}})
    assert "transformers.llem_execution.batchsize is not known" in ran.error.message
    assert "batch_size" in ran.error.message


def answers(ran: Ran) -> dict[int, list[int]]:
    """Tokens of the first measured pass, by prompt."""
    found: dict[int, list[int]] = {}
    for row in ran.requests:
        if row["phase"] == "measure":
            found.setdefault(row["prompt_index"], row["output_token_ids"])
    assert len(found) == len(TEXTS)
    return found


def input_tokens(ran: Ran) -> int:
    """Prompt tokens of the longest request."""
    return max(int(row["input_tokens"]) for row in ran.requests)
