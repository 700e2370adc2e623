"""Modules that answer for engines which cannot run here: every call is checked against the recorded API.

They show that our calls fit the record. They do not show that the engine works.
"""

from __future__ import annotations

import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from llem_airflow.measurement.engines.record import Record, RecordedClass


class Tokenizer:
    """Letters are tokens."""

    all_special_ids = (0, 1)
    chat_template = None

    def __len__(self) -> int:
        return 256

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def recorded_class(recorded: RecordedClass, **members: Any) -> type:
    """A class whose constructor and methods refuse what the record refuses.

    Args:
        recorded: What is recorded of it.
        **members: What its methods and attributes answer, by name; ``self`` comes first.
    """

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        recorded.check_call("__init__", *args, **kwargs)
        self.given = kwargs

    def checked(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            recorded.check_call(name, *args, **kwargs)
            return answer(self, *args, **kwargs)

        return call

    body: dict[str, Any] = {"__init__": construct}
    for name, answer in members.items():
        body[name] = checked(name, answer) if name in recorded.methods else answer
    return type(recorded.name.rpartition(".")[2], (), body)


def install(monkeypatch: pytest.MonkeyPatch, classes: dict[str, type], **attributes: Any) -> None:
    """Put modules with these classes where an import finds them.

    Args:
        monkeypatch: Takes them away again.
        classes: By import path.
        **attributes: Set on the top module.
    """
    for path, cls in classes.items():
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
        setattr(sys.modules[name], attribute, cls)
    top = sys.modules[next(iter(classes)).partition(".")[0]]
    for key, value in attributes.items():
        setattr(top, key, value)


def tensorrt_classes(record: Record, built: list[Any]) -> dict[str, type]:
    """TensorRT-LLM by its record: streams as many tokens as asked for.

    Args:
        record: The recorded API.
        built: Every ``LLM`` that is made is appended.
    """

    def stream(self: Any, inputs: list[int], sampling_params: Any, streaming: bool) -> AsyncIterator[Any]:
        async def tokens() -> AsyncIterator[Any]:
            n = sampling_params.given["max_tokens"]
            for index in range(n):
                answer = types.SimpleNamespace(
                    token_ids_diff=[index], finish_reason="length" if index == n - 1 else None
                )
                yield types.SimpleNamespace(outputs=[answer])

        assert streaming
        return tokens()

    classes = {name: recorded_class(one) for name, one in record.classes.items()}
    for name in ("tensorrt_llm.LLM", "tensorrt_llm._tensorrt_engine.LLM"):
        cls = recorded_class(
            record.classes[name],
            generate_async=stream,
            shutdown=lambda self: built.append("shutdown"),
            tokenizer=types.SimpleNamespace(tokenizer=Tokenizer()),
        )
        first = cls.__init__  # type: ignore[misc]  # a class made a line above

        def construct(self: Any, *args: Any, _first: Any = first, **kwargs: Any) -> None:
            _first(self, *args, **kwargs)
            built.append(self)

        cls.__init__ = construct  # type: ignore[misc]  # as above
        classes[name] = cls
    return classes


def vllm_classes(record: Record, built: list[Any]) -> dict[str, type]:
    """vLLM by its record: steps until every request has its tokens.

    Args:
        record: The recorded API.
        built: Every ``LLM`` that is made is appended.
    """
    arguments = record.classes["vllm.engine.arg_utils.EngineArgs"]
    llm = record.classes["vllm.LLM"]

    class LLM(recorded_class(llm, get_tokenizer=lambda self: Tokenizer())):  # type: ignore[misc]  # made at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            named = set(llm.methods["__init__"].parameters)
            arguments.check_call("__init__", **{k: v for k, v in kwargs.items() if k not in named})
            self.llm_engine = Steps()
            built.append(self)

    classes: dict[str, type] = {name: recorded_class(one) for name, one in record.classes.items()}
    classes["vllm.LLM"] = LLM
    classes["vllm.sampling_params.RequestOutputKind"] = type("RequestOutputKind", (), {"DELTA": "delta"})
    classes["vllm.platforms.current_platform"] = type(
        "Platform", (), {"is_cpu": staticmethod(lambda: False), "device_type": "cuda"}
    )
    return classes


class Steps:
    """The part of ``llm_engine`` that the record does not hold; seen in runs of 0.32."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int]] = {}
        self.prompts: list[dict[str, list[int]]] = []

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: Any) -> None:
        self.prompts.append(prompt)
        self._open[request_id] = (0, params.given["max_tokens"])

    def has_unfinished_requests(self) -> bool:
        return bool(self._open)

    def step(self) -> Iterator[Any]:
        outputs = []
        for name, (done, n) in list(self._open.items()):
            last = done + 1 == n
            answer = types.SimpleNamespace(token_ids=[done], finish_reason="length" if last else None)
            outputs.append(types.SimpleNamespace(request_id=name, outputs=[answer]))
            if last:
                del self._open[name]
            else:
                self._open[name] = (done + 1, n)
        return iter(outputs)
