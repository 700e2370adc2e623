"""Modules that answer for engines which cannot run here: they take and have what is recorded, and nothing else.

They show that our calls fit the record. They do not show that the engine works.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llem_airflow.runners.engine_api.recorded import Record, RecordedClass


@dataclasses.dataclass
class Stage:
    """An engine by its record, and what our calls did with it.

    Attributes:
        record: The recorded API.
        built: Every ``LLM`` that was made, and a word for each that was ended.
        used: What was called, given or read: class, name, and of a method's arguments the argument's name.
    """

    record: Record
    built: list[Any] = dataclasses.field(default_factory=list)
    used: set[tuple[str, ...]] = dataclasses.field(default_factory=set)

    def __getitem__(self, name: str) -> RecordedClass:
        return self.record.classes[name]


def without(record: Record, cls: str, *names: str) -> Record:
    """The record of a version that lost a field, attribute or method, or (two names) renamed a method's argument."""
    recorded = record.classes[cls]
    methods = dict(recorded.methods)
    if len(names) == 2:
        method, argument = names
        methods[method] = inspect.Signature(
            [
                one.replace(name="renamed") if one.name == argument else one
                for one in methods[method].parameters.values()
            ]
        )
        return _with(record, dataclasses.replace(recorded, methods=methods))
    methods.pop(names[0], None)
    fields, attributes = (
        tuple(name for name in listed if name not in names)
        for listed in (recorded.fields, recorded.attributes)
    )
    lost = dataclasses.replace(recorded, methods=methods, fields=fields, attributes=attributes)
    return _with(record, dataclasses.replace(lost, keywords=recorded.keywords - set(names)))


def _with(record: Record, recorded: RecordedClass) -> Record:
    return dataclasses.replace(record, classes={**record.classes, recorded.name: recorded})


class Thing:
    """An object of a recorded class: it has what the record says, as far as the test gives it a value or an answer."""

    def __init__(self, stage: Stage, cls: str, **members: Any) -> None:
        self.__dict__["thing"] = (stage, stage[cls], members)

    def __getattr__(self, name: str) -> Any:
        stage, recorded, members = self.__dict__["thing"]
        stage.used.add((recorded.name, name))
        known = (*recorded.fields, *recorded.attributes, *recorded.methods)
        if name not in known or name not in members:
            raise AttributeError(f"{recorded.name} has no {name!r} in the record")
        if name not in recorded.methods:
            return members[name]
        return _checked(stage, recorded, name, members[name])


def _checked(stage: Stage, recorded: RecordedClass, method: str, answer: Callable[..., Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        check(stage, recorded, method, *args, **kwargs)
        return answer(*args, **kwargs)

    return call


def check(stage: Stage, recorded: RecordedClass, method: str, *args: Any, **kwargs: Any) -> None:
    """Note what a call uses, and refuse what the record refuses."""
    named = list(recorded.methods[method].parameters) if method in recorded.methods else []
    for argument in (*named[: len(args)], *kwargs):
        if argument in named:
            stage.used.add((recorded.name, method, argument))
        elif argument in recorded.fields or argument in recorded.keywords:
            stage.used.add((recorded.name, argument))
    recorded.check_call(method, *args, **kwargs)


def value_class(stage: Stage, cls: str) -> type:
    """A class whose constructor refuses what the record refuses, and keeps what it was given."""

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        check(stage, stage[cls], "__init__", *args, **kwargs)
        self.given = kwargs

    return type(cls.rpartition(".")[2], (), {"__init__": construct})


def llm_class(stage: Stage, cls: str, *more: str, **members: Any) -> type:
    """A recorded ``LLM``.

    Args:
        stage: Where it is noted.
        cls: Its import path.
        *more: Classes that take what its ``**kwargs`` let through.
        **members: What its methods answer, its attributes.
    """

    class LLM(Thing):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(stage, cls, **members)
            check(stage, stage[cls], "__init__", *args, **kwargs)
            named = set(stage[cls].methods["__init__"].parameters)
            for other in more:
                check(stage, stage[other], "__init__", **{k: v for k, v in kwargs.items() if k not in named})
            self.__dict__["given"] = kwargs
            stage.built.append(self)

    return LLM


def install(monkeypatch: pytest.MonkeyPatch, members: dict[str, Any], **attributes: Any) -> None:
    """Put modules with these members where an import finds them.

    Args:
        monkeypatch: Takes them away again.
        members: By import path.
        **attributes: Set on the top module.
    """
    for path, member in members.items():
        name, _, attribute = path.rpartition(".")
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            if prefix not in sys.modules or not hasattr(sys.modules[prefix], "__recorded__"):
                module = types.ModuleType(prefix)
                module.__recorded__ = True  # type: ignore[attr-defined]  # marks it as ours
                monkeypatch.setitem(sys.modules, prefix, module)
                if end > 1:
                    setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
        setattr(sys.modules[name], attribute, member)
    top = sys.modules[next(iter(members)).partition(".")[0]]
    for key, value in attributes.items():
        setattr(top, key, value)


class Tokenizer:
    """Letters are tokens."""

    all_special_ids = (0, 1)
    chat_template = None

    def __len__(self) -> int:
        return 256

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def tensorrt(stage: Stage) -> dict[str, Any]:
    """TensorRT-LLM by its record: streams as many tokens as asked for."""
    api = "tensorrt_llm.llmapi"

    def stream(inputs: list[int], sampling_params: Any, streaming: bool) -> AsyncIterator[Any]:
        async def tokens() -> AsyncIterator[Any]:
            n = sampling_params.given["max_tokens"]
            for index in range(n):
                reason = "length" if index == n - 1 else None
                answer = Thing(
                    stage, f"{api}.CompletionOutput", index=0, token_ids_diff=[index], finish_reason=reason
                )
                yield Thing(stage, f"{api}.RequestOutput", outputs=[answer])

        assert streaming
        return tokens()

    members: dict[str, Any] = {
        name: llm_class(
            stage,
            name,
            generate_async=stream,
            shutdown=lambda: stage.built.append("shutdown"),
            tokenizer=types.SimpleNamespace(tokenizer=Tokenizer()),
        )
        for name in ("tensorrt_llm.LLM", "tensorrt_llm._tensorrt_engine.LLM")
    }
    plain = ("KvCacheConfig", "QuantConfig", "CalibConfig", "BuildCacheConfig")
    names = ("tensorrt_llm.SamplingParams", *(f"{api}.{name}" for name in plain))
    return members | {name: value_class(stage, name) for name in names}


def vllm(stage: Stage) -> dict[str, Any]:
    """vLLM by its record: steps until every request has its tokens."""
    core = Thing(
        stage, "vllm.v1.engine.core_client.EngineCoreClient", shutdown=lambda: stage.built.append("shutdown")
    )
    model = Thing(
        stage,
        "vllm.config.ModelConfig",
        hf_config=types.SimpleNamespace(architectures=["L"]),
        dtype="torch.bfloat16",
        max_model_len=512,
        enforce_eager=False,
    )
    cache = Thing(
        stage,
        "vllm.config.CacheConfig",
        num_gpu_blocks=100,
        block_size=16,
        cache_dtype="auto",
        enable_prefix_caching=False,
    )
    scheduler = Thing(stage, "vllm.config.SchedulerConfig", max_num_seqs=8)
    config = Thing(
        stage, "vllm.config.VllmConfig", model_config=model, cache_config=cache, scheduler_config=scheduler
    )
    steps = Steps(stage)
    engine = Thing(
        stage,
        "vllm.v1.engine.llm_engine.LLMEngine",
        add_request=steps.add,
        has_unfinished_requests=lambda: bool(steps.open),
        step=steps.step,
        engine_core=core,
        vllm_config=config,
    )
    llm = llm_class(
        stage,
        "vllm.LLM",
        "vllm.engine.arg_utils.EngineArgs",
        get_tokenizer=Tokenizer,
        get_metrics=lambda: [
            Thing(stage, "vllm.v1.metrics.reader.Gauge", name="vllm:kv_cache_usage_perc", value=0.25)
        ],
        reset_prefix_cache=lambda: not steps.open,
        llm_engine=engine,
    )
    platform = Thing(stage, "vllm.platforms.interface.Platform", is_cpu=lambda: False, device_type="cuda")
    return {
        "vllm.LLM": llm,
        "vllm.SamplingParams": value_class(stage, "vllm.SamplingParams"),
        "vllm.sampling_params.RequestOutputKind": Thing(
            stage, "vllm.sampling_params.RequestOutputKind", DELTA="delta"
        ),
        "vllm.platforms.current_platform": platform,
    }


class Steps:
    """What vLLM's step loop does: a token for each request a step, in deltas."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.open: dict[str, tuple[int, int]] = {}

    def add(self, request_id: str, prompt: dict[str, list[int]], params: Any) -> None:
        self.open[request_id] = (0, params.given["max_tokens"])

    def step(self) -> list[Any]:
        outputs = []
        for name, (done, n) in list(self.open.items()):
            last = done + 1 == n
            answer = Thing(
                self._stage,
                "vllm.outputs.CompletionOutput",
                index=0,
                token_ids=[done],
                finish_reason="length" if last else None,
            )
            outputs.append(
                Thing(self._stage, "vllm.outputs.RequestOutput", request_id=name, outputs=[answer])
            )
            if last:
                del self.open[name]
            else:
                self.open[name] = (done + 1, n)
        return outputs
