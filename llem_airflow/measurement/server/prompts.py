"""What a server is asked: the prompts, or the turns of conversations, as tokens; made while the server loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from llem_airflow.measurement.engines.contract import Encoder, Prompt
from llem_airflow.measurement.engines.model_source import TokenizerEncoder, encode_chats, source_of
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.generation import engine_params, llem_execution
from llem_airflow.measurement.prompts import prompt_set
from llem_airflow.protocol.spec import ExperimentSpec

Messages = list[dict[str, str]]


class ChatEncoder(Encoder, Protocol):
    """What conversations are made with."""

    def encode_chats(self, chats: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Token ids of conversations, each up to a message of the user."""


def turns_of(spec: ExperimentSpec) -> tuple[int, ...]:
    """How many turns of the user each conversation of a pass has; empty where the prompts are none."""
    return tuple(sum(one["role"] == "user" for one in messages) for messages in _conversations(spec))


def requests_of(spec: ExperimentSpec, encoder: ChatEncoder) -> tuple[Prompt, ...]:
    """The requests of one pass: its prompts, or the turns of its conversations, one conversation after the other.

    The answers in the context are the file's and not the model's, as in AIPerf where its data has answers
    (``deltas_with_responses``): every experiment does the same work. (vLLM's ``benchmark_serving_multi_turn.py`` puts
    the model's there.)

    Raises:
        MeasurementError: A turn is longer than ``task.max_input_tokens``: cut, it would be another conversation.
    """
    conversations = _conversations(spec)
    if not conversations:
        return prompt_set(spec, encoder)
    task = spec.config["task"]
    most, output_tokens = task.get("max_input_tokens"), int(task.get("max_output_tokens") or 256)
    turns = [
        (number, messages[:end])
        for number, messages in enumerate(conversations, 1)
        for end, one in enumerate(messages, 1)
        if one["role"] == "user"
    ]
    encoded = encoder.encode_chats([messages for _, messages in turns])
    for (number, messages), ids in zip(turns, encoded, strict=True):
        if most is not None and len(ids) > most:
            turn = sum(one["role"] == "user" for one in messages)
            raise MeasurementError(
                f"prompts {spec.prompts.source!r}: turn {turn} of conversation {number} is {len(ids)} tokens with what "
                f"comes before it, and task.max_input_tokens is {most}: raise it, set it to null, or leave the "
                "conversation out",
                category="bad_parameter",
            )
    return tuple(Prompt(index, ids, output_tokens) for index, ids in enumerate(encoded))


def _conversations(spec: ExperimentSpec) -> list[Messages]:
    if not ((spec.config.get("task") or {}).get("dataset") or {}).get("multi_turn"):
        return []
    return [json.loads(text) for text in spec.prompts.items[: spec.prompts.n_prompts]]


class Tokenizer(TokenizerEncoder):
    """A Hugging Face tokenizer, as the servers themselves load it."""

    def __init__(self, spec: ExperimentSpec) -> None:
        """Load it.

        Raises:
            MeasurementError: transformers is not in this image.
        """
        try:
            import transformers  # noqa: PLC0415  # seconds, and only here
        except ModuleNotFoundError as error:
            raise MeasurementError(
                f"the prompts of a server are made with transformers, and {error.name!r} is not in this image",
                category="engine_missing",
            ) from error
        asked = engine_params(spec)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            asked.get("tokenizer") or source_of(spec),
            revision=asked.get("tokenizer_revision") or spec.model.hub_revision,
            trust_remote_code=bool(asked.get("trust_remote_code")),
        )
        self._chat_template = bool(llem_execution(spec).get("chat_template"))

    def encode_chats(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[tuple[int, ...]]:
        """Token ids of conversations, each up to a message of the user."""
        return encode_chats(self._tokenizer, chats)
