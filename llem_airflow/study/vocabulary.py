"""Known keys of the engines: to tell a slip from a new argument, and to place flat keys of older files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent / "data" / "engine-keys.json"

PARTS = ("engine_params", "sampling_params")


@cache
def known_keys(engine: str, part: str) -> tuple[str, ...]:
    """Keys that the engine is known to have, sorted."""
    return tuple(json.loads(_FILE.read_text("utf-8")).get(engine, {}).get(part, ()))


class FlatKeys(Mapping[str, str]):
    """Where the flat keys of older files are now: ``vllm.dtype`` is ``vllm.engine_params.dtype``.

    Reads the vocabulary only when a file has such a key.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def __getitem__(self, key: str) -> str:
        for part in PARTS:
            if key in known_keys(self.engine, part):
                return f"it is {self.engine}.{part}.{key}"
        if self.engine == "transformers" and key in {
            "batch_size",
            "torch_compile",
            "allow_tf32",
            "autocast_enabled",
        }:
            return f"it is transformers.llem_execution.{key}"
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (key for part in PARTS for key in known_keys(self.engine, part))

    def __len__(self) -> int:
        return sum(len(known_keys(self.engine, part)) for part in PARTS)
