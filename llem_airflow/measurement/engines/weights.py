"""Parameter counts from the headers of safetensors files, for engines that do not hand out their model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from llem_airflow.measurement.engines.flops import attention_flops, expert_share

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def weight_counts(folder: Path) -> dict[str, int | None]:
    """The counts of ``flops.model_counts``, without loading a weight.

    Args:
        folder: The model's folder.

    Returns:
        All null without safetensors files; counts null for packed quantised weights, whose shapes are not
        those of the matrices.
    """
    shapes, packed = _shapes(folder)
    if not shapes:
        return {
            "n_parameters": None,
            "flops_per_token": None,
            "attention_flops_per_token_per_context_token": None,
        }
    config = _config(folder)
    return {
        "n_parameters": None if packed else sum(math.prod(shape) for shape in shapes.values()),
        "flops_per_token": None if packed else 2 * _multiplied(shapes, expert_share(config)),
        "attention_flops_per_token_per_context_token": attention_flops(config),
    }


def _multiplied(shapes: dict[str, tuple[int, ...]], share: float) -> int:
    total = 0.0
    embedding = 0
    head = False
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        if _is_embedding(name):
            embedding = max(embedding, math.prod(shape))
            continue
        head = head or "lm_head" in name or name.endswith("output.weight")
        total += math.prod(shape) * (share if ".experts." in name else 1.0)
    return int(total if head else total + embedding)


def _is_embedding(name: str) -> bool:
    return any(part in ("embed_tokens", "wte", "wpe", "word_embeddings") for part in name.split("."))


def _shapes(folder: Path) -> tuple[dict[str, tuple[int, ...]], bool]:
    shapes: dict[str, tuple[int, ...]] = {}
    packed = False
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                shapes[name] = tuple(entry["shape"])
                packed = packed or entry["dtype"] not in _FLOATS
    return shapes, packed


class _Config:
    """config.json read by attribute, as transformers' configurations are."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def _config(folder: Path) -> _Config:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _Config(values.get("text_config") or values)
