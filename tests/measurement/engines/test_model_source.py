from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from llem_airflow.measurement.engines.model_size import weight_counts
from llem_airflow.measurement.engines.model_source import source_facts, weights_folder
from llem_airflow.protocol.spec import ModelSource
from tests.measurement.running import spec_of
from tests.standins.hub import COMMIT, point_to, serve


def test_a_model_of_the_hub_is_counted_in_the_cache_and_its_commit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"
    published.mkdir()
    header = b'{"model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": [4, 2]}}'
    (published / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (published / "config.json").write_text("{}")
    spec = replace(spec_of("vllm", {}), model=ModelSource("org/m", None, "main"))
    assert source_facts(spec)["commit"] is None
    assert weight_counts(weights_folder(spec))["n_parameters"] is None
    with serve() as hub:
        hub.repositories["models/org/m"] = published
        point_to(hub.endpoint, tmp_path / "cache", monkeypatch)
        for name in ("model.safetensors", "config.json"):
            huggingface_hub.HfApi().hf_hub_download("org/m", name)
    assert source_facts(spec) == {"name": "org/m", "path": None, "revision": "main", "commit": COMMIT}
    assert weight_counts(weights_folder(spec))["n_parameters"] == 8


def test_a_folder_has_no_commit(tmp_path: Path) -> None:
    spec = spec_of("vllm", {}, model_path=str(tmp_path))
    assert weights_folder(spec) == tmp_path
    assert source_facts(spec)["commit"] is None
