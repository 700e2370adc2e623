from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.study.config.experiment import BUILTIN_FILE
from llem_airflow.study.problems import PromptsError
from llem_airflow.study.prompts import load_prompts


def _dataset(source: str, n: int = 2, order: str = "interleaved", **more: Any) -> dict[str, Any]:
    return {"source": source, "n_prompts": n, "order": order, **more}


def _load(source: str, n: int = 2, order: str = "interleaved", folder: Path | None = None) -> tuple[str, ...]:
    return load_prompts(_dataset(source, n, order), seed=1, folder=folder).items


def _file(folder: Path, *records: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_the_builtin_set_has_many_different_prompts_under_a_free_licence() -> None:
    records = [json.loads(line) for line in BUILTIN_FILE.read_text("utf-8").splitlines()]
    prompts = [record["prompt"] for record in records[1:]]
    assert records[0]["_license"] == "CC0-1.0"
    assert len(set(prompts)) == len(prompts) >= 120
    assert len({record["source"] for record in records[1:]}) >= 8
    assert max(map(len, prompts)) > 10 * min(map(len, prompts))


def test_prompts_and_their_hash_depend_on_nothing_but_the_arguments() -> None:
    one, two = (load_prompts(_dataset("builtin", 100, "shuffled"), seed=7, folder=None) for _ in range(2))
    assert one == two
    assert one.sha256 != load_prompts(_dataset("builtin", 100, "shuffled"), seed=8, folder=None).sha256
    assert len(one.items) == one.n_prompts == 100


def test_too_few_prompts_are_an_error_that_says_how_many_there_are() -> None:
    with pytest.raises(
        PromptsError, match=r"'builtin' has 132 usable prompts but n_prompts is 5000; set n_prompts to 132"
    ):
        _load("builtin", 5000)


def test_a_jsonl_file_is_relative_to_the_study(tmp_path: Path) -> None:
    _file(tmp_path, {"prompt": "a"}, {"text": "b"}, {"instruction": "c"}, {"input": "d"}, {"question": "e"})
    assert _load("prompts.jsonl", 5, folder=tmp_path) == ("a", "b", "c", "d", "e")
    assert _load(str(tmp_path / "prompts.jsonl"), 2) == ("a", "b")


def test_headers_and_records_without_a_prompt_are_left_out(tmp_path: Path) -> None:
    _file(
        tmp_path,
        {"_about": "x", "prompt": "no"},
        {"prompt": "  "},
        {"prompt": 3},
        {"prompt": " a "},
        {"other": "x"},
    )
    assert _load("prompts.jsonl", 1, folder=tmp_path) == ("a",)


def test_the_orders_are_those_of_the_grammar(tmp_path: Path) -> None:
    rows = [{"prompt": f"{source}{n}", "source": source} for n in range(3) for source in "ba"]
    _file(tmp_path, *rows)
    assert _load("prompts.jsonl", 6, folder=tmp_path) == ("b0", "a0", "b1", "a1", "b2", "a2")
    assert _load("prompts.jsonl", 6, "grouped", tmp_path) == ("a0", "a1", "a2", "b0", "b1", "b2")
    shuffled = _load("prompts.jsonl", 6, "shuffled", tmp_path)
    assert sorted(shuffled) == sorted(row["prompt"] for row in rows)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"not json\n", r"prompts.jsonl:1: not JSON"),
        (b'{"prompt": "a"}\n[1]\n', r"prompts.jsonl:2: not an object"),
        (b'{"prompt": "\xff"}\n', "cannot be read"),
        (b"[" * 100_000 + b"\n", r"prompts.jsonl:1: not JSON"),
    ],
)
def test_a_broken_jsonl_file_is_told_with_its_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(PromptsError, match=expected):
        _load("prompts.jsonl", folder=tmp_path)


def test_a_missing_file_says_what_its_path_is_relative_to(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"no such file: .*; paths are relative to the study file"):
        _load("none.jsonl", folder=tmp_path)


def test_a_parquet_file_is_read_like_a_jsonl_file(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": [1, 2, 3], "source": ["b", "a", "b"], "question": ["x", None, "z"]}),
        tmp_path / "p.parquet",
    )
    assert _load("p.parquet", 2, "grouped", tmp_path) == ("x", "z")


def test_a_file_without_a_column_of_prompts_says_which_are_looked_for(tmp_path: Path) -> None:
    _file(tmp_path, {"messages": []})
    with pytest.raises(PromptsError, match=r"has no prompts: no record has one of the columns prompt, text,"):
        _load("prompts.jsonl", folder=tmp_path)


def test_synthetic_prompts_are_described_not_written() -> None:
    prompts = load_prompts(_dataset("synthetic:512x128", 4), seed=1, folder=None)
    assert prompts.items == ()
    assert prompts.synthetic is not None
    assert (prompts.synthetic.input_tokens, prompts.synthetic.output_tokens, prompts.n_prompts) == (
        512,
        128,
        4,
    )
