from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from llem_airflow.measurement.engines.contract import Vocabulary
from llem_airflow.measurement.engines.model_size import weight_counts
from llem_airflow.measurement.engines.model_source import (
    encode_texts,
    source_facts,
    source_of,
    vocabulary_of,
    weights_folder,
)
from llem_airflow.measurement.failure import MeasurementError
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


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    spec = spec_of("vllm", {}, model_path=str(tmp_path))
    with pytest.raises(MeasurementError, match="holds no config") as refused:
        source_of(spec)
    assert refused.value.category == "model_missing"
    (tmp_path / "config.json").touch()
    assert source_of(spec) == str(tmp_path)
    assert source_of(replace(spec, model=ModelSource("org/m"))) == "org/m"


class Tokenizer:
    """What is asked of a Hugging Face tokenizer: here a character is a token."""

    chat_template: str | None = "{}"
    all_special_ids: tuple[int, ...] = (0, 1)

    def __len__(self) -> int:
        return 300

    def apply_chat_template(self, turns: list[dict[str, str]], **said: Any) -> str:
        assert said == {"tokenize": False, "add_generation_prompt": True}
        (turn,) = turns
        return f"<{turn['role']}>{turn['content']}"

    def __call__(
        self, texts: list[str], *, add_special_tokens: bool, truncation: bool, max_length: int | None
    ) -> Any:
        assert truncation is (max_length is not None)
        ids = [[0] * add_special_tokens + [ord(letter) for letter in text] for text in texts]
        return {"input_ids": [one[:max_length] for one in ids]}


def test_texts_become_tokens_with_the_tokenizer_s_special_ones_unless_a_template_writes_them() -> None:
    tokenizer = Tokenizer()
    assert encode_texts(tokenizer, ("ab", "c"), None, chat_template=False) == [(0, 97, 98), (0, 99)]
    assert encode_texts(tokenizer, ("ab",), 2, chat_template=False) == [(0, 97)]
    assert encode_texts(tokenizer, ("c",), None, chat_template=True) == [tuple(map(ord, "<user>c"))]
    tokenizer.chat_template = None
    with pytest.raises(MeasurementError, match="has no chat template") as refused:
        encode_texts(tokenizer, ("c",), None, chat_template=True)
    assert refused.value.category == "bad_parameter"
    assert vocabulary_of(tokenizer) == Vocabulary(300, frozenset({0, 1}))
