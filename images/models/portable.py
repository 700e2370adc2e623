"""Write a model folder whole, and so that transformers 4.57 and 5.x, vLLM and TensorRT-LLM all read it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT_TOKENS_UNLIMITED = 10**9

logger = logging.getLogger("models")


def write_once(folder: Path, write: Callable[[Path], None]) -> bool:
    """Let `write` fill a folder beside the wanted one, then rename it; do nothing where it is there already.

    Several processes may ask for the same folder at once: the first to be ready gives it, the others drop theirs.

    Args:
        folder: The model's folder; its presence means that it is whole.
        write: Fills the (existing, empty) folder it is given.

    Returns:
        Whether the folder is the one that this call has written.
    """
    if (folder / "config.json").is_file():
        logger.info("%s: already there", folder)
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        aside.chmod(0o755)
        write(aside)
        for path in aside.iterdir():
            path.chmod(0o644)  # containers read it as another user
        try:
            aside.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
            logger.info("%s: another process was first", folder)
            return False
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    logger.info("%s: written, %.0f MB", folder, size_bytes / 1e6)
    return True


def make_portable(folder: Path) -> None:
    """Put back the keys that transformers 4.57 (the TensorRT-LLM images) needs and 5.x no longer writes.

    Args:
        folder: A folder written by `save_pretrained` of transformers 5.x.
    """
    with _edited_json(folder / "config.json") as config:
        config["torch_dtype"] = config["dtype"]
        config.pop("_model_name_or_path", None)
        rope = config.get("rope_parameters")
        if rope is not None:
            config["rope_theta"] = rope["rope_theta"]
    with _edited_json(folder / "tokenizer_config.json") as tokenizer:
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        if tokenizer.get("model_max_length", _CONTEXT_TOKENS_UNLIMITED + 1) > _CONTEXT_TOKENS_UNLIMITED:
            tokenizer["model_max_length"] = config["max_position_embeddings"]
        for key in ("backend", "is_local", "local_files_only"):
            tokenizer.pop(key, None)
        template = folder / "chat_template.jinja"
        if template.is_file():
            tokenizer["chat_template"] = template.read_text(encoding="utf-8")


class _edited_json:  # noqa: N801 - reads as the statement it is used in: with _edited_json(path) as value
    """A JSON object that is written back, keys sorted as they were, when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def __enter__(self) -> dict[str, Any]:
        return self._value

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._path.write_text(json.dumps(self._value, indent=2) + "\n", encoding="utf-8")
