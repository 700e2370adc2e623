"""What is wrong with a file of prompts is told before anything starts, with file and row; no bytes make a traceback."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llem_airflow.cli import main
from llem_airflow.study import load_study
from llem_airflow.study.problems import PromptsError
from llem_airflow.study.prompts import load_prompts, prompt_problems


def _dataset(source: str, n: int) -> dict[str, Any]:
    return {"source": source, "n_prompts": n, "order": "interleaved"}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
GOOD = b'{"prompt": "a"}\n{"prompt": "b"}\n'


def parquet(**columns: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


WHOLE = parquet(prompt=[f"question {n}" for n in range(3000)])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.parquet", LFS, r"'p.parquet': is a Git LFS pointer, not the file; fetch it: git lfs pull"),
        ("p.jsonl", LFS, r"'p.jsonl': is a Git LFS pointer"),
        ("p.parquet", WHOLE[:-100], r"'p.parquet': is a broken or cut-off Parquet file: .*; copy or make it again"),
        ("p.parquet", WHOLE[:2000] + bytes(500) + WHOLE[2500:], r"is a broken or cut-off Parquet file"),
        ("p.parquet", b"", r"'p.parquet': is empty"),
        ("p.jsonl", b"", r"'p.jsonl': is empty"),
        ("p.jsonl", b"\n\n", r"'p.jsonl' has no prompts"),
        ("p.parquet", parquet(messages=["x"], id=[1]), r"none of its columns \(messages, id\) is one of prompt, text,"),
        ("p.parquet", parquet(prompt=[None, None, "x"]), r"has 1 usable prompt \(2 empty, the first in row 1\)"),
        ("p.parquet", parquet(prompt=[1, 2]), r"has no prompts: .*\(2 of another type than text, the first in row 1\)"),
        ("p.parquet", parquet(prompt=["a", "b\0c"]), r"p.parquet:2: prompt has the character U\+0000; delete it"),
        ("p.parquet", GOOD, r"'p.parquet': is no Parquet file; rename it"),
        ("p.jsonl", WHOLE, r"'p.jsonl': is Parquet; rename it"),
        ("p.jsonl", GOOD + b'{"text": "a\\ud83d b"}\n', r"source: p.jsonl:3: text has U\+D83D, half of a character"),
        ("p.jsonl", GOOD + b'{"prompt": "a\\u0000"}\n', r"source: p.jsonl:3: prompt has the character U\+0000"),
        ("p.jsonl", GOOD + b'{"prompt": "\xe9"}\n', r"source: p.jsonl:3: cannot be read: byte 0xe9 is not UTF-8; save"),
        ("p.jsonl", GOOD + b'{"prompt": \n', r"source: p.jsonl:3: not JSON: .*; each line is one JSON object"),
        ("p.jsonl", b'[{"prompt": "a"}]', r"source: p.jsonl:1: not an object; each line is one JSON object"),
        ("p.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}\n", r"source: p.jsonl:1: not JSON"),
        ("p.jsonl", gzip.compress(GOOD, mtime=0), r"'p.jsonl': is compressed with gzip; unpack it"),
        ("p.jsonl", b"\x28\xb5\x2f\xfd" + GOOD, r"'p.jsonl': is compressed with zstd; unpack it"),
        ("p.jsonl", GOOD.decode().encode("utf-16"), r"'p.jsonl': is UTF-16; save it as UTF-8"),
        ("p.jsonl", b'{"prompt": "' + b"x" * (17 * 1024**2) + b'"}', r"p.jsonl:1: the line is longer than 16 MiB"),
        ("p.jsonl", b'{"prompt": "a"}\n', r"'p.jsonl' has 1 usable prompt but n_prompts is 2; set"),
    ],
)  # fmt: skip
def test_each_fault_is_one_problem_with_file_and_row(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptsError, match=rf"^task.dataset\..*{expected}"):
        load_prompts(_dataset(name, 2), seed=1, folder=tmp_path)
    study = tmp_path / "s.yaml"
    study.write_text(
        "serving_mode: offline\nmeasurement: {meter: none}\n"
        f"task:\n  model: m\n  dataset: {{source: {name}, n_prompts: 2}}\n"
    )
    result = CliRunner().invoke(main, ["validate", str(study)])
    assert result.exit_code == 2
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"{study}:5:")
    assert "cannot run: task.dataset" in CliRunner().invoke(main, ["plan", str(study)]).output


def test_a_folder_and_a_pipe_are_told_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()
    os.mkfifo(tmp_path / "p.jsonl")
    for name, what in (
        ("d.jsonl", "is a folder"),
        ("p.jsonl", "is no regular file"),
        ("none.jsonl", "no such file"),
    ):
        with pytest.raises(PromptsError, match=what):
            load_prompts(_dataset(name, 2), seed=1, folder=tmp_path)


def test_a_file_is_read_once_for_the_largest_number_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(GOOD)
    (tmp_path / "s.yaml").write_text(
        "serving_mode: offline\nmeasurement: {meter: none}\ntask: {model: m, dataset: {source: p.jsonl}}\n"
        "sweep: {task.dataset.n_prompts: [1, 2, 7]}\n"
    )
    (problem,) = prompt_problems(load_study(tmp_path / "s.yaml"))
    assert "'p.jsonl' has 2 usable prompts but n_prompts is 7" in problem.found


def test_prompts_of_the_hub_and_of_another_machine_are_left_to_the_worker(tmp_path: Path) -> None:
    for source in ("owner/name", "/nowhere/on/this/machine.jsonl", "synthetic:5x5", "builtin"):
        (tmp_path / "s.yaml").write_text(
            "serving_mode: offline\nmeasurement: {meter: none}\n"
            f"task: {{model: m, dataset: {{source: '{source}'}}}}\n"
        )
        assert prompt_problems(load_study(tmp_path / "s.yaml")) == []


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "text", "_x"]), inner)
    ),
    max_leaves=6,
)
CONTENTS = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=200).map(lambda data: b"PAR1" + data + b"PAR1"),
    st.lists(JSONISH, max_size=4).map(
        lambda rows: "\n".join(map(repr, rows)).encode("utf-8", "surrogatepass")
    ),
    st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=40)).map(
        lambda cut: WHOLE[: cut[0]] + cut[1] + WHOLE[cut[0] + len(cut[1]) :]
    ),
    st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end]),
)


@settings(max_examples=400, deadline=None)
@given(CONTENTS, st.sampled_from(["parquet", "jsonl", "json", "csv", "txt"]))
def test_no_bytes_raise_anything_but_a_problem(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"p.{suffix}").write_bytes(content)
        try:
            prompts = load_prompts(
                _dataset(f"p.{suffix}", 1) | {"order": "grouped"}, seed=1, folder=Path(folder)
            )
        except PromptsError as error:
            refused = f"{error}"
        else:
            "".join(prompts.items).encode()
            return
        assert refused.startswith("task.dataset.")
        refused.encode()
