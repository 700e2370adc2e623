"""The transformers engine on a real, tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from llem_airflow.measurement.engines.contract import Completion, open_engine
from llem_airflow.measurement.failure import attempt_error
from llem_airflow.measurement.prompts import batches, prompt_set
from llem_airflow.protocol.result import AttemptError
from llem_airflow.protocol.spec import Synthetic
from llem_airflow.study.plan.rules import rules_of
from tests.measurement.running import Ran, run, spec_of

pytestmark = pytest.mark.engine


def answered(model: Path, section: dict[str, Any] | None = None, **more: Any) -> list[Completion]:
    """What the engine answers to the prompt set, in this process, in the study's batches."""
    spec = spec_of("transformers", section or {}, model_path=str(model), **more)
    engine = open_engine("transformers", offline=True)
    engine.load(spec)
    work = batches(prompt_set(spec, engine), engine.batch_size())
    found = [completion for batch in work for completion in engine.generate(batch, lambda _: None)]
    engine.close()
    return found


def failed(model: Path, section: dict[str, Any], **more: Any) -> AttemptError:
    """The structured error of an attempt that must fail."""
    try:
        answered(model, section, **more)
    except Exception as error:  # noqa: BLE001  # as the attempt does
        return attempt_error(error, "load")
    raise AssertionError("it did not fail")


def tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


@pytest.fixture(scope="module")
def batched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    section = {"llem_execution": {"batch_size": 3}}
    spec = spec_of("transformers", section, model_path=str(tiny_model), output_tokens=12)
    return run(spec, tmp_path_factory.mktemp("batched"))


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


def test_padding_and_batching_do_not_change_what_is_answered(tiny_model: Path) -> None:
    alone = answered(tiny_model, {}, output_tokens=12)
    together = answered(tiny_model, {"llem_execution": {"batch_size": 4}}, output_tokens=12)
    assert tokens(alone) == tokens(together)
    assert len(set(tokens(alone))) > 1


def test_sampling_with_a_seed_is_repeatable_and_is_not_greedy(tiny_model: Path) -> None:
    more: dict[str, Any] = {"output_tokens": 12, "config": {"sampling_preset": "creative"}}
    one, other = answered(tiny_model, **more), answered(tiny_model, **more)
    assert tokens(one) == tokens(other)
    assert tokens(one) != tokens(answered(tiny_model, output_tokens=12))


def test_an_engine_that_lives_on_answers_as_a_fresh_one(tiny_model: Path) -> None:
    path = str(tiny_model)
    sampled = {
        "sampling_params": {"do_sample": True, "temperature": 1.5},
        "llem_execution": {"batch_size": 2},
    }
    static = {"engine_params": {"cache_implementation": "static"}}
    long = spec_of("transformers", static, model_path=path, output_tokens=32)
    engine = open_engine("transformers", offline=True)
    engine.load(long)
    engine.generate(prompt_set(long, engine), lambda _: None)
    kept: Any = vars(engine._model)  # type: ignore[attr-defined]  # where transformers keeps a length
    longest = kept["_previous_max_cache_length"]
    for section in (sampled, {}, static):
        spec = spec_of("transformers", section, model_path=path)
        engine.reset(spec)
        work = batches(prompt_set(spec, engine), engine.batch_size())
        again = [completion for batch in work for completion in engine.generate(batch, lambda _: None)]
        assert tokens(again) == tokens(answered(tiny_model, section))
    assert kept["_previous_max_cache_length"] < longest, "a static cache is made for this experiment alone"
    engine.close()


def test_a_compiled_model_answers_the_same(tiny_model: Path) -> None:
    # The eager backend goes the whole way of compilation but for the C++ compiler, which takes minutes here.
    section = {"llem_execution": {"torch_compile": True, "torch_compile_backend": "eager"}}
    few: dict[str, Any] = {"texts": ("import os, sys",), "output_tokens": 4}
    assert tokens(answered(tiny_model, section, **few)) == tokens(answered(tiny_model, **few))


def test_an_answer_ends_at_the_end_token_where_lengths_are_not_fixed() -> None:
    from llem_airflow.measurement.engines.transformers import completion  # noqa: PLC0415  # torch only in here

    ended = completion(0, [5, 6, 2, 3, 3], [10, 20, 30, 40, 50], 1, (2,))
    assert (ended.token_ids, ended.token_mono_ns, ended.finish_reason) == ((5, 6, 2), (10, 20, 30), "stop")
    full = completion(0, [5, 6], [10, 20], 1, (2,))
    assert (full.token_ids, full.finish_reason) == ((5, 6), "length")


def test_a_minimum_of_its_own_lets_answers_end_early(tiny_model: Path) -> None:
    section = {"sampling_params": {"min_new_tokens": 1, "eos_token_id": list(range(2048))}}
    done = answered(tiny_model, section, output_tokens=12)
    assert {len(one.token_ids) for one in done} <= {1, 2}
    assert {one.finish_reason for one in done} == {"stop"}


def test_answers_of_a_batch_have_their_own_lengths(tiny_model: Path) -> None:
    made = Synthetic(9, 5, input_lengths_tokens=(3, 9, 7, 12), output_lengths_tokens=(5, 2, 7, 1))
    found = answered(tiny_model, {"llem_execution": {"batch_size": 4}}, synthetic=made)
    assert [(len(one.token_ids), len(one.token_mono_ns)) for one in found] == [(n, n) for n in (5, 2, 7, 1)]
    assert {one.finish_reason for one in found} == {"length"}


def test_synthetic_prompts_have_their_exact_lengths(tiny_model: Path) -> None:
    engine = open_engine("transformers", offline=True)
    spec = spec_of("transformers", {}, model_path=str(tiny_model), synthetic=Synthetic(33, 5))
    engine.load(spec)
    prompts = prompt_set(spec, engine)
    assert {len(prompt.token_ids) for prompt in prompts} == {33}
    assert {len(one.token_ids) for one in engine.generate(prompts, lambda _: None)} == {5}


def test_long_prompts_are_cut_to_the_task_s_limit(tiny_model: Path) -> None:
    engine = open_engine("transformers", offline=True)
    engine.load(spec_of("transformers", {}, model_path=str(tiny_model)))
    assert [len(ids) for ids in engine.encode(["return " * 500, "x"], 64)] == [64, 1]


def test_the_chat_template_is_applied_where_the_study_asks(tiny_model: Path) -> None:
    engine = open_engine("transformers", offline=True)
    section = {"llem_execution": {"chat_template": True}}
    engine.load(spec_of("transformers", section, model_path=str(tiny_model)))
    chat = engine.encode(["x"], 64)[0]
    engine.load(spec_of("transformers", {}, model_path=str(tiny_model)))
    assert len(chat) > len(engine.encode(["x"], 64)[0])


def test_the_attention_implementation_is_passed_on_and_described(tiny_model: Path) -> None:
    engine = open_engine("transformers", offline=True)
    section = {"engine_params": {"attn_implementation": "eager", "dtype": "bfloat16"}}
    engine.load(spec_of("transformers", section, model_path=str(tiny_model)))
    model = engine.describe().model
    assert (model["attention"], model["dtype"]) == ("eager", "bfloat16")


def test_a_folder_without_a_model_says_which_and_what_to_check(tmp_path: Path) -> None:
    error = failed(tmp_path / "nothing", {})
    assert error.category == "model_missing"
    assert "nothing holds no config.json here" in error.message


def test_weights_without_a_tokenizer_are_recognised(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(
        tiny_model, bare, ignore=shutil.ignore_patterns("*token*", "*.jinja", "vocab*", "merges*")
    )
    assert failed(bare, {}).category == "tokenizer_missing"


def test_a_damaged_weight_file_says_to_fetch_it_again(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"not a tensor file")
    error = failed(broken, {})
    assert error.category == "model_missing"
    assert "damaged or incomplete" in error.message


def test_a_hub_model_in_offline_mode_is_a_missing_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    spec = spec_of("transformers", {})
    engine = open_engine("transformers", offline=True)
    with pytest.raises(OSError) as caught:  # noqa: PT011  # what is asserted is what we make of it
        engine.load(spec)
    assert attempt_error(caught.value, "load").category == "model_missing"


def test_a_wrong_engine_parameter_is_recognised_and_named(tiny_model: Path) -> None:
    error = failed(tiny_model, {"engine_params": {"attn_implementation": "flash_attention_9"}})
    assert error.category == "bad_parameter", error.message
    assert "flash_attention_9" in error.message


@pytest.mark.parametrize(
    "parameters",
    [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}],
    ids=["8 bits", "4 bits"],
)
def test_quantisation_whose_package_is_missing_is_told(tiny_model: Path, parameters: dict[str, Any]) -> None:
    error = failed(tiny_model, {"engine_params": parameters})
    assert error.category == "engine_missing"
    assert "quantization requires bitsandbytes" in error.message
    assert "use an image that holds it, or remove the setting" in error.message


def test_an_allocation_that_the_machine_refuses_is_recognised(tiny_model: Path) -> None:
    error = failed(
        tiny_model, {"sampling_params": {"cache_implementation": "static", "max_cache_len": 10**11}}
    )
    assert (error.category, error.type) == ("out_of_memory_host", "RuntimeError")
    assert "Raise the container's memory limit" in error.message


def test_a_device_map_of_accelerate_answers_the_same(tiny_model: Path) -> None:
    few: dict[str, Any] = {"texts": ("import os, sys",), "output_tokens": 4}
    mapped = answered(tiny_model, {"engine_params": {"device_map": "auto"}}, **few)
    assert tokens(mapped) == tokens(answered(tiny_model, **few))


def test_a_wrong_sampling_parameter_is_recognised_and_named(tiny_model: Path) -> None:
    error = failed(tiny_model, {"sampling_params": {"temprature": 0.5}})
    assert error.category == "bad_parameter", error.message
    assert "temprature" in error.message


def test_a_dtype_that_is_none_is_named(tiny_model: Path) -> None:
    error = failed(tiny_model, {"engine_params": {"dtype": "float23"}})
    assert error.message.startswith("transformers.engine_params.dtype: 'float23' is not a dtype")


def test_an_unknown_execution_setting_lists_the_known(tiny_model: Path) -> None:
    error = failed(tiny_model, {"llem_execution": {"batchsize": 2}})
    assert "transformers.llem_execution.batchsize is not known" in error.message
    assert "batch_size" in error.message


LOOKUP = {"prompt_lookup_num_tokens": 3}


@pytest.mark.parametrize("section", [{"sampling_params": LOOKUP}, {"engine_params": LOOKUP}])
def test_several_tokens_of_one_step_are_all_counted(tiny_model: Path, section: dict[str, Any]) -> None:
    """Prompt lookup checks drafts: a step brings one to four tokens, and the answer stays the same."""
    text = ("the cat sat on the mat and the cat sat on the mat and the cat sat on",)
    plain = answered(tiny_model, texts=text, output_tokens=24)
    drafted = answered(tiny_model, section, texts=text, output_tokens=24)
    assert tokens(drafted) == tokens(plain)
    assert [len(one.token_mono_ns) for one in drafted] == [24]
    assert len(set(drafted[0].token_mono_ns)) < 24


@pytest.mark.parametrize(
    ("sampling", "batch_size"),
    [
        ({"do_sample": True, "num_return_sequences": 4}, 1),
        ({"do_sample": True, "num_return_sequences": 2}, 2),
    ],
)
def test_several_sequences_of_one_prompt_are_refused(
    tiny_model: Path, sampling: dict[str, Any], batch_size: int
) -> None:
    section = {"sampling_params": sampling, "llem_execution": {"batch_size": batch_size}}
    error = failed(tiny_model, section)
    assert error.category == "bad_parameter"
    assert "one answer a prompt is measured here" in error.message


NOT_OURS: list[tuple[str, Any]] = [
    ("num_beams", 4),
    ("num_return_sequences", 4),
    ("prompt_lookup_num_tokens", 0),
    ("stop_strings", ["x"]),
    ("token_healing", True),
    ("penalty_alpha", 0.6),
    ("dola_layers", "high"),
    ("force_words_ids", [[3]]),
    ("cache_implementation", "paged"),
]


@pytest.mark.parametrize(("key", "value"), NOT_OURS)
def test_what_the_adapter_cannot_run_is_a_rule_of_the_plan(tiny_model: Path, key: str, value: Any) -> None:
    """Each fails for real, and is skipped with its reason before it could."""
    assert failed(tiny_model, {"sampling_params": {key: value, "top_k": 4}}).message
    point = {"transformers": {"sampling_params": {key: value}}}
    assert any(rule.invalid and rule.applies(point) for rule in rules_of("transformers"))
