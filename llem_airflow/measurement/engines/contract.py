"""What an engine is to the harness, and which one a name means.

A name is ours, or a third party's through the entry-point group ``llem_airflow.engines``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.protocol.spec import ExperimentSpec


@dataclass(frozen=True)
class Prompt:
    """One prompt, already turned into token ids, so that every engine is given the same.

    Attributes:
        index: Its place in the prompt set, from 0.
        token_ids: The tokens.
        output_tokens: How many tokens to generate.
    """

    index: int
    token_ids: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class Completion:
    """What one prompt got: one sequence, with a time per token.

    Several tokens may share one time: a step of speculative decoding brings more than one. None at all is an
    answer, too.

    Attributes:
        prompt_index: The prompt it answers.
        token_ids: The generated tokens.
        t_submit_mono_ns: When the prompt was handed to the engine, in nanoseconds of the monotonic clock.
        token_mono_ns: When each generated token was there on the host, in nanoseconds of the monotonic clock.
        finish_reason: ``length``, ``stop``, or the engine's word.
    """

    prompt_index: int
    token_ids: tuple[int, ...]
    t_submit_mono_ns: int
    token_mono_ns: tuple[int, ...]
    finish_reason: str


def only_answer(engine: str, output: Any) -> Any:
    """The one sequence of a streamed output of vLLM or TensorRT-LLM.

    Raises:
        MeasurementError: There are several: their tokens would be counted as one answer's.
    """
    answers = output.outputs
    if len(answers) != 1 or answers[0].index != 0:
        raise MeasurementError(
            f"{engine}.sampling_params: the engine made several sequences of one prompt; one answer a prompt is "
            "measured here: leave n and best_of at 1, and beam search off",
            category="bad_parameter",
        )
    return answers[0]


def plain(value: Any) -> Any:
    """A setting as it goes into JSON."""
    return value if isinstance(value, (bool, int, float, str, type(None), dict, list)) else str(value)


@dataclass(frozen=True)
class Vocabulary:
    """What synthetic prompts are made from.

    Attributes:
        size: Number of token ids.
        special_ids: Ids that stand for no text, such as the end of a sequence.
    """

    size: int
    special_ids: frozenset[int]


@dataclass(frozen=True)
class EngineFacts:
    """What is known of a loaded engine.

    Attributes:
        version: Version of the engine.
        model: Facts about the model: n_parameters, dtype, path, revision, flops_per_token and more.
        libraries: Names of distributions whose versions decide how it runs.
        settings: What the engine was really loaded with, as plain JSON.
    """

    version: str
    model: dict[str, Any]
    libraries: tuple[str, ...]
    settings: dict[str, Any]


class Encoder(Protocol):
    """What prompts are made with: an engine, or a tokenizer alone."""

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[tuple[int, ...]]:
        """Token ids of texts, each cut to ``max_tokens`` tokens from its begin."""

    def vocabulary(self) -> Vocabulary:
        """What synthetic prompts may be made from."""


class Engine(Encoder, Protocol):
    """One inference engine. The module that holds it does the heavy import; the constructor takes nothing."""

    def open_context(self) -> bool:
        """Make the device ready without a model, for its idle phase; False if that is not possible."""

    def load(self, spec: ExperimentSpec) -> None:
        """Load the model and everything that generation needs."""

    def reset(self, spec: ExperimentSpec) -> None:
        """Be as after ``load`` for the next experiment, which loads alike.

        Its sampling, batch size and seed hold; what the ones before left is forgotten. Needed only where an engine
        lives on over experiments (``isolation: engine``).
        """

    def batch_size(self) -> int | None:
        """Prompts of one ``generate``, or None for the whole prompt set at once."""

    def generate(self, batch: Sequence[Prompt], on_step: Callable[[int], None]) -> list[Completion]:
        """Answer a batch and return when the last token is there.

        Args:
            batch: The prompts.
            on_step: Called now and then with the number of tokens that came, to show that it lives.
        """

    def sync(self) -> None:
        """Return when the device has nothing left to do."""

    def reset_peaks(self) -> None:
        """Forget the memory peaks up to now."""

    def describe(self) -> EngineFacts:
        """What is known of it, after ``load``."""

    def memory(self) -> dict[str, int | None]:
        """Peaks of device memory since ``reset_peaks``, in bytes, by name; null where unknown."""

    def close(self) -> None:
        """Give back what it holds. Called at most once, also after a failed ``load``."""


ENGINES = {
    "transformers": "llem_airflow.measurement.engines.transformers:TransformersEngine",
    "vllm": "llem_airflow.measurement.engines.vllm:VllmEngine",
    "tensorrt": "llem_airflow.measurement.engines.tensorrt:TensorRTEngine",
}

ENTRY_POINT_GROUP = "llem_airflow.engines"

# Set before an engine is imported, and only where the user has not: they are read at import time.
QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
}


def engine_names() -> tuple[str, ...]:
    """Names of the engines that this image could be asked for, ours first."""
    installed = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return (*ENGINES, *sorted({entry.name for entry in installed} - set(ENGINES)))


def open_engine(name: str, *, offline: bool) -> Engine:
    """Import the engine's module and make the engine, without loading a model.

    Args:
        name: The engine's name as the study gives it.
        offline: The weights are at hand: no look at the hub.

    Raises:
        MeasurementError: There is no such engine, or its library is not in this image.
    """
    for variable, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    target = _target(name)
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MeasurementError(
            f"engine {name!r}: the module {error.name!r} is not in this image; "
            f"choose an image that holds the engine (images: {{{name}: …}} in the study) or install it",
            category="engine_missing",
        ) from error
    engine: Engine = getattr(module, class_name)()
    return engine


def _target(name: str) -> str:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return entry.value
    if name in ENGINES:
        return ENGINES[name]
    raise MeasurementError(
        f"engine {name!r} is not known; engines here: {', '.join(engine_names())}",
        category="engine_missing",
    )
