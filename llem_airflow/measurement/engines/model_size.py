"""Sizes of a model that decide how much arithmetic a token costs: by its loaded weights, or by file headers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def model_counts(model: Any) -> dict[str, int | None]:
    """Parameters and floating-point operations per token of a torch causal language model.

    ``flops_per_token`` is two operations for every weight that a token is multiplied with: all matrices,
    gated MLPs with their three, the output head (also when it shares the embedding's storage), of experts
    only the share that a token visits; embeddings are looked up, not multiplied. Attention over the context
    comes on top: ``attention_flops_per_token_per_context_token`` times the context's length.

    Args:
        model: A ``PreTrainedModel``.

    Returns:
        ``n_parameters`` (shared ones once), ``flops_per_token`` and
        ``attention_flops_per_token_per_context_token``; null where the architecture does not tell, as for
        packed quantised weights.
    """
    parameters = list(model.parameters())
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    quantised = getattr(model, "hf_quantizer", None) is not None
    return {
        "n_parameters": int(model.num_parameters()) if quantised else sum(p.numel() for p in parameters),
        "flops_per_token": None if quantised else 2 * _multiplied_weights(model, config),
        "attention_flops_per_token_per_context_token": attention_flops(config),
    }


def _multiplied_weights(model: Any, config: Any) -> int:
    share = expert_share(config)
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if type(module).__name__.endswith("Embedding") and getattr(module, "weight", None) is not None
    }
    total = 0.0
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in embeddings or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        total += parameter.numel() * (share if ".experts." in f".{name}." else 1.0)
    head = model.get_output_embeddings()
    if head is not None and id(head.weight) in embeddings:
        total += head.weight.numel()
    return int(total)


def expert_share(config: Any) -> float:
    """Share of the experts that a token visits; 1 without experts."""
    experts = next(
        (
            getattr(config, key)
            for key in ("num_local_experts", "num_experts", "n_routed_experts")
            if getattr(config, key, None)
        ),
        None,
    )
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen else 1.0


def attention_flops(config: Any) -> int | None:
    """Operations of attention per token and token of context; None where the configuration does not tell."""
    # Scores and weighted values: two matrix products of two operations each, per layer and head dimension.
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    hidden = getattr(config, "hidden_size", None)
    if not (heads and layers and hidden):
        return None
    head_size = getattr(config, "head_dim", None) or hidden // heads
    return int(4 * layers * heads * head_size)


_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def weight_counts(folder: Path) -> dict[str, int | None]:
    """The counts of ``model_counts``, without loading a weight.

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
