"""Prompts of a dataset on the hub: the real client, against a hub of this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.protocol.spec import Prompts
from llem_airflow.study.names import names_dataset
from llem_airflow.study.problems import PromptsError
from llem_airflow.study.prompts import load_prompts
from tests.standins.hub import COMMIT, TOKEN, Hub, point_to, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client talks to, and an empty cache."""
    with serve() as served:
        point_to(served.endpoint, tmp_path / "cache", monkeypatch)
        yield served


def published(hub: Hub, folder: Path, **files: list[str]) -> None:
    """Put ``org/data`` with these files of prompts on the hub."""
    folder.mkdir()
    for name, prompts in files.items():
        if name.endswith("parquet"):
            pq.write_table(pa.table({"prompt": prompts}), folder / "test.parquet")
        else:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    (folder / "README.md").write_text("a card")
    hub.repositories["datasets/org/data"] = folder


def load(source: str, n: int = 2) -> Prompts:
    return load_prompts({"source": source, "n_prompts": n, "order": "interleaved"}, seed=1, folder=None)


def refusal(source: str) -> str:
    with pytest.raises(PromptsError) as caught:
        load(source)
    return str(caught.value)


def test_the_only_file_of_a_dataset_is_read_and_its_commit_is_recorded(hub: Hub, tmp_path: Path) -> None:
    published(hub, tmp_path / "data", test=["a", "b", "c"])
    prompts = load("org/data")
    assert prompts.items == ("a", "b")
    assert prompts.source == f"org/data@{COMMIT}:test.jsonl"
    assert load(prompts.source) == prompts  # the recorded name is one to write into a study


def test_a_file_of_several_and_its_revision_are_named(hub: Hub, tmp_path: Path) -> None:
    published(hub, tmp_path / "data", train=["a", "b"], parquet=["x", "y"])
    assert (
        "'org/data': has several files; name one, as in owner/name:file; it has test.parquet, train.jsonl"
        in refusal("org/data")
    )
    assert load("org/data@main:test.parquet").items == ("x", "y")
    assert load(f"org/data@{COMMIT}:train.jsonl").items == ("a", "b")
    assert "'org/data:none.jsonl': has no such file to read; it has test.parquet" in refusal(
        "org/data:none.jsonl"
    )


def test_too_few_prompts_are_an_error_with_a_dataset_too(hub: Hub, tmp_path: Path) -> None:
    published(hub, tmp_path / "data", test=["a"])
    assert "'org/data' has 1 usable prompt but n_prompts is 2" in refusal("org/data")


def test_what_the_hub_does_not_have_is_told_apart(hub: Hub, tmp_path: Path) -> None:
    published(hub, tmp_path / "data", test=["a", "b"])
    assert f"'org/none': is not on the hub {hub.endpoint}; check the name" in refusal("org/none")
    assert "'org/data@v9': has no revision 'v9'; name a branch, a tag or a commit" in refusal("org/data@v9")
    (tmp_path / "data" / "test.jsonl").unlink()
    assert "has no .jsonl or .parquet file; save its prompts as a .jsonl file" in refusal("org/data")


def test_a_gated_dataset_needs_a_token_and_says_so(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(hub, tmp_path / "data", test=["a", "b"])
    hub.gated.add("datasets/org/data")
    assert "is gated; accept its terms on the hub and give the worker a token (HF_TOKEN)" in refusal(
        "org/data"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load("org/data").items == ("a", "b")


@pytest.mark.parametrize("offline", [True, False], ids=["offline mode", "no hub there"])
def test_without_a_hub_the_cache_is_used_or_the_error_says_what_else_works(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, offline: bool
) -> None:
    published(hub, tmp_path / "data", test=["a", "b"])
    assert load("org/data:test.jsonl").items == ("a", "b")
    if offline:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        point_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert load("org/data:test.jsonl").items == ("a", "b")
    said = refusal("org/other:test.jsonl")
    assert "cannot be asked" in said
    assert "save the prompts as a .jsonl file beside the study, or fetch them once" in said


def test_without_the_hub_s_client_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "not installed here; pip install 'llem-airflow[hub]'" in refusal("org/data")


@pytest.mark.parametrize("source", ["a/b", "a-1/b.c_d@v1", "a/b:x/y.jsonl", "a/b@main:y.parquet"])
def test_owner_and_name_are_a_dataset(source: str) -> None:
    assert names_dataset(source)


@pytest.mark.parametrize(
    "source", ["builtin", "x.jsonl", "data/x.jsonl", "./data/x.parquet", "/a/b/c", "a/b/c"]
)
def test_files_and_words_are_not(source: str) -> None:
    assert not names_dataset(source)
