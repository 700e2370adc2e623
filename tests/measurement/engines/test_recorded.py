"""Our calls against the recorded APIs of engines that cannot run here. This does not show that they work."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.engines.contract import Completion, Engine
from llem_airflow.measurement.engines.record import Record, RecordedClass, drift, engine_check, load_record
from llem_airflow.measurement.failure import MeasurementError, recognise
from llem_airflow.measurement.prompts import prompt_set
from llem_airflow.protocol.spec import ExperimentSpec
from tests.measurement.engines.recorded_api import install, tensorrt_classes, vllm_classes
from tests.measurement.running import spec_of

CLASSES = {"tensorrt": tensorrt_classes, "vllm": vllm_classes}
ENGINES = {"tensorrt": "TensorRTEngine", "vllm": "VllmEngine"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}'
    )
    return tmp_path


def engine_on(record: Record, engine: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, list[Any]]:
    built: list[Any] = []
    install(monkeypatch, CLASSES[engine](record, built), __version__=record.version)
    name = f"llem_airflow.measurement.engines.{engine}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    made = getattr(importlib.import_module(name), ENGINES[engine])()
    monkeypatch.delitem(sys.modules, name)
    return made, built


def spec(engine: str, model: Path, section: dict[str, Any] | None = None, **more: Any) -> ExperimentSpec:
    return spec_of(engine, section or {}, model_path=str(model), output_tokens=3, **more)


def use(one: Engine, wanted: ExperimentSpec) -> list[Completion]:
    """Everything that an attempt calls."""
    one.load(wanted)
    return one.generate(prompt_set(wanted, one), lambda _: None)


def changed(record: Record, cls: str, method: str, old: str) -> Record:
    """The record of a version that has renamed an argument."""
    recorded = record.classes[cls]
    signature = recorded.methods[method]
    parameters = [
        one.replace(name="renamed") if one.name == old else one for one in signature.parameters.values()
    ]
    methods = {**recorded.methods, method: inspect.Signature(parameters)}
    return _with(record, dataclasses.replace(recorded, methods=methods))


def without_field(record: Record, cls: str, field: str) -> Record:
    recorded = record.classes[cls]
    fields = tuple(name for name in recorded.fields if name != field)
    return _with(record, dataclasses.replace(recorded, fields=fields))


def _with(record: Record, recorded: RecordedClass) -> Record:
    return dataclasses.replace(record, classes={**record.classes, recorded.name: recorded})


@pytest.mark.parametrize("engine", ["tensorrt", "vllm"])
def test_every_call_from_load_to_close_fits_the_record(
    engine: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, built = engine_on(load_record(engine), engine, monkeypatch)
    done = use(one, spec(engine, model))
    assert [completion.token_ids for completion in done] == [(0, 1, 2)] * 4
    assert {completion.finish_reason for completion in done} == {"length"}
    assert all(len(completion.token_mono_ns) == 3 for completion in done)
    assert built[0].given["model"] == str(model)
    one.close()


def test_tensorrt_s_compiled_class_takes_its_own_arguments(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, built = engine_on(load_record("tensorrt"), "tensorrt", monkeypatch)
    parameters = {
        "backend": "trt",
        "quant_config": {"quant_algo": "FP8"},
        "fast_build": True,
        "max_batch_size": 4,
    }
    one.load(spec("tensorrt", model, {"engine_params": parameters}))
    assert "backend" not in built[0].given
    assert built[0].given["quant_config"].given == {"quant_algo": "FP8"}
    assert one.describe().settings["backend"] == "tensorrt"


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
    one, built = engine_on(load_record(engine), engine, monkeypatch)
    one.load(spec(engine, model))
    wanted = {"kv_cache_config": {"enable_block_reuse": True}, "enable_prefix_caching": True}[section]
    one.load(spec(engine, model, {"engine_params": {section: wanted}}))
    default, chosen = (llm.given[section] for llm in built)
    if engine == "tensorrt":
        default, chosen = default.given["enable_block_reuse"], chosen.given["enable_block_reuse"]
    assert (default, chosen) == (False, True)


@pytest.mark.parametrize("engine", ["tensorrt", "vllm"])
def test_an_argument_that_the_engine_does_not_know_is_refused(
    engine: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = engine_on(load_record(engine), engine, monkeypatch)
    with pytest.raises(TypeError, match="'max_batchsize'"):
        one.load(spec(engine, model, {"engine_params": {"max_batchsize": 4}}))
    with pytest.raises(TypeError, match="'temprature'"):
        use(one, spec(engine, model, {"sampling_params": {"temprature": 1}}))


CHANGES = [
    ("tensorrt", "tensorrt_llm.LLM", "generate_async", "streaming"),
    ("tensorrt", "tensorrt_llm.LLM", "generate_async", "sampling_params"),
    ("tensorrt", "tensorrt_llm.LLM", "__init__", "model"),
    ("vllm", "vllm.LLM", "__init__", "model"),
]


@pytest.mark.parametrize(("engine", "cls", "method", "argument"), CHANGES)
def test_a_renamed_argument_is_noticed(
    engine: str, cls: str, method: str, argument: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = engine_on(changed(load_record(engine), cls, method, argument), engine, monkeypatch)
    with pytest.raises(TypeError, match=f"{argument}|renamed"):
        use(one, spec(engine, model))


FIELDS = [
    ("tensorrt", "tensorrt_llm.SamplingParams", "min_tokens"),
    ("tensorrt", "tensorrt_llm.llmapi.KvCacheConfig", "enable_block_reuse"),
    ("vllm", "vllm.SamplingParams", "output_kind"),
    ("vllm", "vllm.engine.arg_utils.EngineArgs", "enable_prefix_caching"),
]


@pytest.mark.parametrize(("engine", "cls", "field"), FIELDS)
def test_a_field_that_is_gone_is_noticed(
    engine: str, cls: str, field: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = engine_on(without_field(load_record(engine), cls, field), engine, monkeypatch)
    with pytest.raises(TypeError, match=field):
        use(one, spec(engine, model))


def test_the_engine_check_names_what_an_image_has_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class SamplingParams:
        def __init__(self, max_tokens: int = 32) -> None: ...

    install(monkeypatch, {"tensorrt_llm.SamplingParams": SamplingParams}, __version__="9.9")
    found = drift(load_record("tensorrt"))
    assert "tensorrt_llm.SamplingParams: takes no 'min_tokens' any more" in found
    assert any(line.startswith("tensorrt_llm.LLM: gone") for line in found)
    assert engine_check("tensorrt") == 1
    assert "tensorrt_llm 9.9 here; recorded: 1.2.1" in capsys.readouterr().out


def test_the_engine_check_says_when_there_is_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine_check("transformers") == 2
    assert "there is a record of vllm and tensorrt" in capsys.readouterr().out
    assert engine_check("tensorrt") == 2
    assert "tensorrt_llm is not in this image" in capsys.readouterr().out
