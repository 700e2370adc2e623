from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llem_airflow.measurement.engines.model_size import (
    attention_flops,
    expert_share,
    model_counts,
    weight_counts,
)


def write(folder: Path, tensors: dict[str, tuple[str, list[int]]], **config: object) -> Path:
    header = json.dumps(
        {name: {"dtype": kind, "shape": shape} for name, (kind, shape) in tensors.items()}
    ).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps({**sizes, **config}))
    return folder


GATED = {
    "model.embed_tokens.weight": ("BF16", [100, 8]),
    "model.layers.0.mlp.gate_proj.weight": ("BF16", [16, 8]),
    "model.layers.0.mlp.up_proj.weight": ("BF16", [16, 8]),
    "model.layers.0.mlp.down_proj.weight": ("BF16", [8, 16]),
    "model.norm.weight": ("BF16", [8]),
}


def test_a_gated_mlp_counts_three_matrices_and_a_tied_head_once(tmp_path: Path) -> None:
    counts = weight_counts(write(tmp_path, GATED))
    assert counts["n_parameters"] == 800 + 3 * 128 + 8
    assert counts["flops_per_token"] == 2 * (3 * 128 + 800)
    assert counts["attention_flops_per_token_per_context_token"] == 4 * 3 * 2 * 4


def test_a_head_of_its_own_is_multiplied_and_the_embedding_is_not(tmp_path: Path) -> None:
    counts = weight_counts(write(tmp_path, {**GATED, "lm_head.weight": ("BF16", [100, 8])}))
    assert counts["n_parameters"] == 1600 + 3 * 128 + 8
    assert counts["flops_per_token"] == 2 * (3 * 128 + 800)


def test_of_the_experts_a_token_visits_only_its_share_counts(tmp_path: Path) -> None:
    expert = {f"model.layers.0.mlp.experts.{k}.up_proj.weight": ("BF16", [16, 8]) for k in range(4)}
    counts = weight_counts(write(tmp_path, {**GATED, **expert}, num_local_experts=4, num_experts_per_tok=1))
    assert counts["flops_per_token"] == 2 * (3 * 128 + 800 + 128)


def test_packed_weights_are_unknown_and_not_a_wrong_number(tmp_path: Path) -> None:
    packed = {**GATED, "model.layers.0.mlp.up_proj.qweight": ("I32", [2, 8])}
    assert weight_counts(write(tmp_path, packed))["n_parameters"] is None


def test_a_folder_without_safetensors_is_unknown(tmp_path: Path) -> None:
    assert set(weight_counts(tmp_path).values()) == {None}


@pytest.mark.engine
def test_headers_and_the_loaded_model_agree(tiny_model: Path) -> None:
    import transformers  # noqa: PLC0415  # heavy, and only here

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    assert weight_counts(tiny_model) == model_counts(model)


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({}, 1.0),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 0.25),
        ({"num_experts": 64, "num_experts_per_tok": 8}, 0.125),
        ({"n_routed_experts": 4, "num_experts_per_tok": 1}, 0.25),
        ({"num_local_experts": 8}, 1.0),
        ({"num_local_experts": None, "num_experts": 4, "num_experts_per_tok": 2}, 0.5),
        ({"num_experts_per_tok": 2}, 1.0),
    ],
)
def test_the_share_of_experts_that_a_token_visits(config: dict[str, int], share: float) -> None:
    assert expert_share(SimpleNamespace(**config)) == share


def test_attention_costs_four_operations_a_head_dimension_layer_and_token_of_context() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    assert attention_flops(SimpleNamespace(**sizes)) == 4 * 3 * 4 * 16
    assert attention_flops(SimpleNamespace(**sizes, head_dim=32)) == 4 * 3 * 4 * 32
    for missing in sizes:
        assert attention_flops(SimpleNamespace(**{**sizes, missing: None})) is None


@pytest.mark.parametrize(
    "name", ["model.embed_tokens", "transformer.wte", "transformer.wpe", "bert.word_embeddings"]
)
def test_an_embedding_is_looked_up_and_not_multiplied(tmp_path: Path, name: str) -> None:
    tensors = {f"{name}.weight": ("F16", [100, 8]), "lm_head.weight": ("F16", [100, 8])}
    assert weight_counts(write(tmp_path, tensors))["flops_per_token"] == 2 * 800


def test_the_sizes_of_a_language_model_inside_another_one_are_its_own(tmp_path: Path) -> None:
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 5}
    counts = weight_counts(write(tmp_path, GATED, text_config=text))
    assert counts["attention_flops_per_token_per_context_token"] == 4 * 5 * 2 * 8


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_weights_of_any_float_are_counted(tmp_path: Path, dtype: str) -> None:
    assert weight_counts(write(tmp_path, {"lm_head.weight": (dtype, [10, 8])}))["n_parameters"] == 80


class Tensor:
    """What is asked of a torch parameter."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape

    def dim(self) -> int:
        return len(self._shape)

    def numel(self) -> int:
        return math.prod(self._shape)


class Embedding:
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


class Linear(Embedding):
    pass


class Model:
    """What is asked of a transformers model; torch itself need not be here."""

    def __init__(self, parameters: dict[str, Tensor], *modules: Any, head: Any, **config: Any) -> None:
        self._parameters, self._modules, self._head = parameters, modules, head
        self.config = SimpleNamespace(hidden_size=8, num_attention_heads=2, num_hidden_layers=3, **config)

    def parameters(self) -> list[Tensor]:
        return list({id(one): one for one in self._parameters.values()}.values())

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return list(self._parameters.items())

    def modules(self) -> tuple[Any, ...]:
        return self._modules

    def num_parameters(self) -> int:
        return 12345

    def get_output_embeddings(self) -> Any:
        return self._head


def test_the_operations_of_a_loaded_model() -> None:
    table, head, up, norm = Tensor(100, 8), Tensor(100, 8), Tensor(16, 8), Tensor(8)
    weights = {"embed": table, "up": up, "norm": norm}
    tied = model_counts(Model(weights, Embedding(table), Linear(up), Embedding(None), head=Linear(table)))  # type: ignore[arg-type]  # a module without weights
    assert tied == {
        "n_parameters": 800 + 128 + 8,
        "flops_per_token": 2 * (128 + 800),
        "attention_flops_per_token_per_context_token": 4 * 3 * 2 * 4,
    }
    own = model_counts(Model({**weights, "head": head}, Embedding(table), head=Linear(head)))
    assert (own["n_parameters"], own["flops_per_token"]) == (1736, 2 * (128 + 800))
    headless = model_counts(Model(weights, Embedding(table), head=None))
    assert headless["flops_per_token"] == 2 * 128
    shared = model_counts(Model({**weights, "again": up}, Embedding(table), head=None))
    assert shared["flops_per_token"] == 2 * 128


def test_of_a_loaded_model_s_experts_a_token_visits_a_share() -> None:
    weights = {"layers.0.experts.0.up": Tensor(16, 8), "experts.1.up": Tensor(16, 8), "up": Tensor(16, 8)}
    counts = model_counts(Model(weights, head=None, num_local_experts=2, num_experts_per_tok=1))
    assert counts["flops_per_token"] == 2 * (64 + 64 + 128)


def test_of_a_quantised_model_the_operations_are_not_known() -> None:
    model = Model({"up": Tensor(16, 8)}, head=None)
    model.hf_quantizer = object()  # type: ignore[attr-defined]  # as transformers marks it
    counts = model_counts(model)
    assert (counts["n_parameters"], counts["flops_per_token"]) == (12345, None)
