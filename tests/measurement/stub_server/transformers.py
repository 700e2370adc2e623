"""A tokenizer of one token a word."""

from __future__ import annotations

from typing import Any


class AutoTokenizer:
    all_special_ids = (0,)
    chat_template = None

    @classmethod
    def from_pretrained(cls, _name: str, **_how: Any) -> AutoTokenizer:
        return cls()

    def __len__(self) -> int:
        return 100

    def __call__(self, texts: list[str], *, max_length: int | None = None, **_how: Any) -> dict[str, Any]:
        return {"input_ids": [[1 + len(word) for word in text.split()][:max_length] for text in texts]}
