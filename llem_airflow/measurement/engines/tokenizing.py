"""Texts to token ids with a Hugging Face tokenizer, the same for every engine that has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llem_airflow.measurement.engines.contract import Vocabulary
from llem_airflow.measurement.failure import MeasurementError


def encode_texts(
    tokenizer: Any, texts: Sequence[str], max_tokens: int | None, *, chat_template: bool
) -> list[tuple[int, ...]]:
    """Token ids of texts, each cut to ``max_tokens`` from its begin.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: The prompts.
        max_tokens: Longest prompt, in tokens; None for no limit.
        chat_template: Whether each text is put into the tokenizer's chat template, as one user message.

    Raises:
        MeasurementError: A chat template is asked for and the tokenizer has none.
    """
    if chat_template:
        if not tokenizer.chat_template:
            raise MeasurementError(
                "llem_execution.chat_template: this tokenizer has no chat template; remove the setting",
                category="bad_parameter",
            )
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in texts
        ]
    # A template writes the special tokens itself.
    encoded = tokenizer(
        list(texts),
        add_special_tokens=not chat_template,
        truncation=max_tokens is not None,
        max_length=max_tokens,
    )
    return [tuple(ids) for ids in encoded["input_ids"]]


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Every id of the tokenizer, and which of them are special."""
    return Vocabulary(size=len(tokenizer), special_ids=frozenset(tokenizer.all_special_ids))
