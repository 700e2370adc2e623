"""The model's tokenizer without its engine: prompts are made while the server loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llem_airflow.measurement.engines.contract import Vocabulary
from llem_airflow.measurement.engines.model_source import encode_chats, encode_texts, source_of, vocabulary_of
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.generation import engine_params, llem_execution
from llem_airflow.protocol.spec import ExperimentSpec


class Tokenizer:
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
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            asked.get("tokenizer") or source_of(spec),
            revision=asked.get("tokenizer_revision") or spec.model.hub_revision,
            trust_remote_code=bool(asked.get("trust_remote_code")),
        )
        self._chat_template = bool(llem_execution(spec).get("chat_template"))

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[tuple[int, ...]]:
        """Token ids of texts, each cut to ``max_tokens`` tokens from its begin."""
        return encode_texts(self._tokenizer, texts, max_tokens, chat_template=self._chat_template)

    def encode_chats(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[tuple[int, ...]]:
        """Token ids of conversations, each up to a message of the user."""
        return encode_chats(self._tokenizer, chats)

    def vocabulary(self) -> Vocabulary:
        """Every id of the tokenizer but the special ones."""
        return vocabulary_of(self._tokenizer)
