"""What an engine is to the harness: load, encode, generate with a time per token, describe, close."""

from __future__ import annotations

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
