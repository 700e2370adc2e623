"""Our calls against the recorded APIs of engines that cannot run here. This does not show that they work."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.engines.contract import Completion, Engine, only_answer
from llem_airflow.measurement.failure import MeasurementError, recognise
from llem_airflow.measurement.prompts import prompt_set
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.engine_api.recorded import RECORDS, Record, drift, engine_check, load_record
from llem_airflow.runners.engine_check import _archive
from llem_airflow.study.plan.rules import rules_of
from tests.measurement.engines import recorded_api
from tests.measurement.engines.recorded_api import Stage, install, without
from tests.measurement.running import spec_of

ENGINES = {"tensorrt": "TensorRTEngine", "vllm": "VllmEngine"}
VERSIONS = [(engine, version) for engine, versions in RECORDS.items() for version in versions]
COMPILED = {
    "engine_params": {
        "backend": "trt",
        "quant_config": {"quant_algo": "FP8"},
        "calib_config": {"calib_batches": 4},
        "fast_build": True,
        "max_batch_size": 4,
    }
}

# Without the first two the engine's processes end with the container, as `close` says; the third would go on to
# EngineArgs, which takes it too.
DISPENSABLE = {
    ("vllm.v1.engine.llm_engine.LLMEngine", "engine_core"),
    ("vllm.v1.engine.core_client.EngineCoreClient", "shutdown"),
    ("vllm.LLM", "__init__", "seed"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}'
    )
    return tmp_path


def engine_on(record: Record, engine: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Stage]:
    stage = Stage(record)
    install(monkeypatch, getattr(recorded_api, engine)(stage), __version__=record.version)
    name = f"llem_airflow.measurement.engines.{engine}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    made = getattr(importlib.import_module(name), ENGINES[engine])()
    monkeypatch.delitem(sys.modules, name)
    stage.used.clear()  # from here on, what the adapter does and not what an import looked at
    return made, stage


def spec(engine: str, model: Path, section: dict[str, Any] | None = None, **more: Any) -> ExperimentSpec:
    return spec_of(engine, section or {}, model_path=str(model), output_tokens=3, **more)


def use(one: Engine, wanted: ExperimentSpec) -> list[Completion]:
    """Everything that an attempt calls."""
    one.load(wanted)
    one.vocabulary()
    one.describe()
    one.reset_peaks()
    done = one.generate(prompt_set(wanted, one), lambda _: None)
    one.sync()
    one.reset(wanted)
    one.memory()
    one.close()
    return done


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_every_call_from_load_to_close_fits_the_record(
    engine: str, version: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, stage = engine_on(load_record(engine, version), engine, monkeypatch)
    assert stage.record.version.startswith(version)
    done = use(one, spec(engine, model))
    assert [completion.token_ids for completion in done] == [(0, 1, 2)] * 4
    assert {completion.finish_reason for completion in done} == {"length"}
    assert all(len(completion.token_mono_ns) == 3 for completion in done)
    assert stage.built[0].given["model"] == str(model)
    assert stage.built[1:] == ["shutdown"]


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_nothing_that_our_calls_use_can_be_lost_without_being_noticed(
    engine: str, version: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLLM_LLMAPI_BUILD_CACHE_ROOT", "/cache")
    with_gpu(monkeypatch, "NVIDIA H100 80GB HBM3")
    sections = [{}, COMPILED] if engine == "tensorrt" else [{}]
    record = load_record(engine, version)
    for section in sections:
        one, stage = engine_on(record, engine, monkeypatch)
        use(one, spec(engine, model, section))
        assert len(stage.used) > 15
        unnoticed = set()
        for lost in stage.used:
            one, _ = engine_on(without(record, *lost), engine, monkeypatch)
            try:
                use(one, spec(engine, model, section))
            except (TypeError, AttributeError) as error:
                assert lost[-1] in str(error) or "renamed" in str(error)  # noqa: PT017  # one for each part
            else:
                unnoticed.add(lost)
        assert unnoticed <= DISPENSABLE


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_lives_on_takes_the_next_sampling_without_being_built_again(
    engine: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, stage = engine_on(load_record(engine), engine, monkeypatch)
    one.load(spec(engine, model))
    one.reset(spec(engine, model, {"sampling_params": {"temperature": 0.5, "top_p": 0.9}}))
    sampling = one.describe().settings["sampling_params"]
    assert (sampling["temperature"], sampling["top_p"]) == (0.5, 0.9)
    one.reset(spec(engine, model))
    assert "top_p" not in one.describe().settings["sampling_params"]
    assert len(stage.built) == 1
    assert (("vllm.LLM", "reset_prefix_cache") in stage.used) is (engine == "vllm")


def test_a_vllm_that_still_holds_requests_of_the_experiment_before_does_not_go_on(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, stage = engine_on(load_record("vllm"), "vllm", monkeypatch)
    monkeypatch.setitem(type(one).reset.__globals__, "RESET_S", 0.0)
    wanted = spec("vllm", model)
    one.load(wanted)
    one.reset(wanted)
    params = types.SimpleNamespace(given={"max_tokens": 3})
    stage.built[0].llm_engine.add_request(request_id="held", prompt={"prompt_token_ids": [1]}, params=params)
    with pytest.raises(RuntimeError, match="requests of an earlier experiment still hold it"):
        one.reset(wanted)


def test_both_records_of_vllm_are_used_in_full(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, stage = engine_on(load_record("vllm"), "vllm", monkeypatch)
    use(one, spec("vllm", model))
    for needed in (
        ("vllm.LLM", "__init__", "model"),
        ("vllm.LLM", "get_metrics"),
        ("vllm.v1.engine.llm_engine.LLMEngine", "add_request", "params"),
        ("vllm.v1.engine.llm_engine.LLMEngine", "step"),
        ("vllm.outputs.CompletionOutput", "token_ids"),
        ("vllm.SamplingParams", "output_kind"),
        ("vllm.engine.arg_utils.EngineArgs", "enable_prefix_caching"),
        ("vllm.config.CacheConfig", "num_gpu_blocks"),
    ):
        assert needed in stage.used


def test_the_versions_of_vllm_differ_by_what_the_newer_one_added() -> None:
    newer, older = (load_record("vllm", version).classes for version in ("0.33.0", "0.32.0+cpu"))
    assert set(newer) == set(older)
    added = {name: set(newer[name].fields) - set(older[name].fields) for name in newer}
    assert added.pop("vllm.engine.arg_utils.EngineArgs") == {
        "monokernel",
        "sleep_mode_backend",
        "watchdog_config",
    }
    assert added.pop("vllm.config.VllmConfig") == {"watchdog_config"}
    assert not any(set(older[name].fields) - set(newer[name].fields) for name in newer)
    assert all(newer[name].methods == older[name].methods for name in newer)


def test_tensorrt_s_compiled_class_takes_its_own_arguments(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, stage = engine_on(load_record("tensorrt"), "tensorrt", monkeypatch)
    one.load(spec("tensorrt", model, COMPILED))
    given = stage.built[0].given
    assert "backend" not in given
    assert given["quant_config"].given == {"quant_algo": "FP8"}
    assert one.describe().settings["backend"] == "tensorrt"
    assert ("tensorrt_llm._tensorrt_engine.LLM", "fast_build") in stage.used


def with_gpu(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """A torch that sees this GPU, or none."""
    cuda = types.SimpleNamespace(is_available=lambda: name is not None, get_device_name=lambda index: name)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize(
    ("gpu", "folder"), [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), (None, "none")]
)
def test_compiled_engines_are_kept_per_kind_of_gpu(
    gpu: str | None, folder: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLLM_LLMAPI_BUILD_CACHE_ROOT", "/cache/tensorrt")
    with_gpu(monkeypatch, gpu)
    one, stage = engine_on(load_record("tensorrt"), "tensorrt", monkeypatch)
    one.load(spec("tensorrt", model, COMPILED))
    assert stage.built[0].given["enable_build_cache"].given == {
        "cache_root": Path("/cache/tensorrt") / folder
    }
    one.load(spec("tensorrt", model))
    assert "enable_build_cache" not in stage.built[1].given  # the PyTorch backend compiles nothing


def test_a_compiled_only_argument_is_refused_by_the_pytorch_class(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = engine_on(load_record("tensorrt"), "tensorrt", monkeypatch)
    with pytest.raises(TypeError, match="'fast_build'") as caught:
        one.load(spec("tensorrt", model, {"engine_params": {"fast_build": True}}))
    assert recognise(caught.value)[0] == "bad_parameter"


def test_an_unknown_backend_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = engine_on(load_record("tensorrt"), "tensorrt", monkeypatch)
    with pytest.raises(MeasurementError, match="'cpp' is not known; use pytorch or tensorrt"):
        one.load(spec("tensorrt", model, {"engine_params": {"backend": "cpp"}}))


@pytest.mark.parametrize(
    ("engine", "section"), [("vllm", "enable_prefix_caching"), ("tensorrt", "kv_cache_config")]
)
def test_reuse_of_earlier_passes_is_off_unless_the_study_turns_it_on(
    engine: str, section: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, stage = engine_on(load_record(engine), engine, monkeypatch)
    one.load(spec(engine, model))
    wanted = {"kv_cache_config": {"enable_block_reuse": True}, "enable_prefix_caching": True}[section]
    one.load(spec(engine, model, {"engine_params": {section: wanted}}))
    default, chosen = (llm.given[section] for llm in stage.built)
    if engine == "tensorrt":
        default, chosen = default.given["enable_block_reuse"], chosen.given["enable_block_reuse"]
    assert (default, chosen) == (False, True)


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_an_argument_that_the_engine_does_not_know_is_refused(
    engine: str, version: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = engine_on(load_record(engine, version), engine, monkeypatch)
    with pytest.raises(TypeError, match="'max_batchsize'"):
        one.load(spec(engine, model, {"engine_params": {"max_batchsize": 4}}))
    with pytest.raises(TypeError, match="'temprature'"):
        use(one, spec(engine, model, {"sampling_params": {"temprature": 1}}))


def test_the_most_of_the_key_value_cache_that_was_in_use_is_noted(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = engine_on(load_record("vllm"), "vllm", monkeypatch)
    wanted = spec("vllm", model)
    one.load(wanted)
    one.reset_peaks()
    assert one.memory()["kv_cache_peak_tokens"] is None
    one.generate(prompt_set(wanted, one), lambda _: None)
    assert one.memory()["kv_cache_peak_tokens"] == 400  # a quarter of 100 blocks of 16


def test_the_engine_check_names_what_an_image_has_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class SamplingParams:
        def __init__(self, max_tokens: int = 32) -> None: ...

    class CompletionOutput:
        token_ids: list[int]

    members = {
        "tensorrt_llm.SamplingParams": SamplingParams,
        "tensorrt_llm.llmapi.CompletionOutput": CompletionOutput,
    }
    install(monkeypatch, members, __version__="9.9")
    found = drift(load_record("tensorrt"))
    assert "tensorrt_llm.SamplingParams: takes no 'min_tokens' any more" in found
    assert "tensorrt_llm.llmapi.CompletionOutput: has no 'token_ids_diff' any more" in found
    assert any(line.startswith("tensorrt_llm.LLM: gone") for line in found)
    assert engine_check("tensorrt") == 1
    assert "tensorrt_llm 9.9 here; recorded: 1.2.1" in capsys.readouterr().out


def test_the_engine_check_says_when_there_is_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine_check("transformers") == 2
    assert "there is a record of vllm and tensorrt" in capsys.readouterr().out
    assert engine_check("tensorrt") == 2
    assert "tensorrt_llm is not in this image" in capsys.readouterr().out


def test_the_engine_check_runs_in_any_image_from_its_own_files_alone(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_archive())) as archive:
        archive.extractall(tmp_path, filter="tar")
    script = next(tmp_path.rglob("recorded.py"))
    assert {path.suffix for path in script.parent.iterdir()} == {".py", ".json"}
    assert script.parent.stat().st_mode & 0o555 == 0o555
    assert not [path for path in script.parent.iterdir() if path.stat().st_mode & 0o444 != 0o444]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), "vllm"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "engine-check: vllm is not in this image\n")


@pytest.mark.parametrize("answers", [[1], [0, 1], []])
@pytest.mark.parametrize("engine", ["vllm", "tensorrt"])
def test_several_sequences_of_one_prompt_are_not_one_answer(engine: str, answers: list[int]) -> None:
    output = types.SimpleNamespace(outputs=[types.SimpleNamespace(index=index) for index in answers])
    with pytest.raises(MeasurementError, match="one answer a prompt is measured") as failure:
        only_answer(engine, output)
    assert failure.value.category == "bad_parameter"


@pytest.mark.parametrize(
    ("engine", "key", "value"),
    [
        ("vllm", "n", 2),
        ("vllm", "stream_interval", 4),
        ("tensorrt", "n", 2),
        ("tensorrt", "best_of", 4),
        ("tensorrt", "use_beam_search", True),
    ],
)
def test_several_sequences_are_skipped_by_the_plan(engine: str, key: str, value: Any) -> None:
    rules = [
        rule
        for rule in rules_of(engine)
        if rule.invalid and rule.applies({engine: {"sampling_params": {key: value}}})
    ]
    assert rules
    assert all(rule.reason for rule in rules)


def test_stop_strings_bring_the_text_that_they_need(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sampling, text in (({}, False), ({"stop": ["end"]}, True)):
        one, _ = engine_on(load_record("vllm"), "vllm", monkeypatch)
        one.load(spec("vllm", model, {"sampling_params": sampling}))
        assert one.describe().settings["sampling_params"]["detokenize"] is text
