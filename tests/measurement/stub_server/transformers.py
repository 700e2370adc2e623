"""A tokenizer of one token a word."""

from __future__ import annotations

from typing import Any


class AutoTokenizer:
    all_special_ids = (0,)
    chat_template = "its own"

    @classmethod
    def from_pretrained(cls, _name: str, **_how: Any) -> AutoTokenizer:
        return cls()

    def __len__(self) -> int:
        return 100

    def apply_chat_template(self, chat: list[dict[str, str]], **_how: Any) -> str:
        return " ".join(f"<{one['role']}> {one['content']}" for one in chat) + " <assistant>"

    def __call__(self, texts: list[str], *, max_length: int | None = None, **_how: Any) -> dict[str, Any]:
        return {"input_ids": [[1 + len(word) for word in text.split()][:max_length] for text in texts]}
