"""What an engine is told to load, and the tokenizer that came with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llem_airflow.measurement.engines.contract import Vocabulary
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.protocol.spec import ExperimentSpec


def source_of(spec: ExperimentSpec) -> str:
    """The folder of the weights, or the name on the hub.

    Raises:
        MeasurementError: The folder of the weights is not there.
    """
    if spec.model.path is None:
        return spec.model.name
    if not (Path(spec.model.path) / "config.json").is_file():
        raise MeasurementError(
            f"model {spec.model.name!r}: {spec.model.path} holds no config.json here; "
            "check that the folder of the models is mounted and that the name is right",
            category="model_missing",
        )
    return spec.model.path


def weights_folder(spec: ExperimentSpec) -> Path:
    """The folder of the loaded weights: the given one, or the snapshot in the cache; if unknown, one of nothing."""
    if spec.model.path is not None:
        return Path(spec.model.path)
    try:
        import huggingface_hub  # noqa: PLC0415  # every engine that takes a model from the hub brings it
    except ModuleNotFoundError:
        return Path(spec.model.name)
    found = huggingface_hub.try_to_load_from_cache(
        spec.model.name, "config.json", revision=spec.model.revision
    )
    return Path(found).parent if isinstance(found, str) else Path(spec.model.name)


def source_facts(spec: ExperimentSpec) -> dict[str, Any]:
    """Name, path, revision, and of a model of the hub the commit that was loaded."""
    folder = weights_folder(spec)
    return {
        "name": spec.model.name,
        "path": spec.model.path,
        "revision": spec.model.revision,
        "commit": folder.name if spec.model.path is None and folder.parent.name == "snapshots" else None,
    }


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


def encode_chats(tokenizer: Any, chats: Sequence[Sequence[dict[str, str]]]) -> list[tuple[int, ...]]:
    """Token ids of conversations up to a message of the user, in the tokenizer's chat template.

    Args:
        tokenizer: A Hugging Face tokenizer.
        chats: Messages of each, with role and content.

    Raises:
        MeasurementError: The tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise MeasurementError(
            "task.dataset.multi_turn: this tokenizer has no chat template, which tells the turns apart: use a model "
            "that was trained for conversations",
            category="bad_parameter",
        )
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]
    return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Every id of the tokenizer, and which of them are special."""
    return Vocabulary(size=len(tokenizer), special_ids=frozenset(tokenizer.all_special_ids))


class TokenizerEncoder:
    """Makes prompts with a Hugging Face tokenizer, which a subclass loads, with its chat template or without."""

    _tokenizer: Any = None
    _chat_template = False

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[tuple[int, ...]]:
        """Token ids of texts, each cut to ``max_tokens`` tokens from its begin."""
        return encode_texts(self._tokenizer, texts, max_tokens, chat_template=self._chat_template)

    def vocabulary(self) -> Vocabulary:
        """Every id of the tokenizer, and which of them are special."""
        return vocabulary_of(self._tokenizer)
