from __future__ import annotations

import json
from pathlib import Path

import pytest

from llem_airflow.measurement.engines.model_size import weight_counts


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

    from llem_airflow.measurement.engines.model_size import model_counts  # noqa: PLC0415  # as above

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    assert weight_counts(tiny_model) == model_counts(model)
