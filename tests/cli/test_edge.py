"""Whatever a person names, every verb ends with a message and a stated exit code, never with a traceback."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.cli import main
from llem_airflow.results import ResultsRoot, StoredRun
from tests.analysis.conftest import MakeRun, make_run, run_maker
from tests.results.recorded import Recording

__all__ = ["make_run"]

OF_A_ROOT = (
    ("report",),
    ("report", "nightly"),
    ("compare", "nightly/r1", "nightly/r2"),
    ("compare", "previous", "nightly/r1"),
    ("history", "nightly"),
    ("results", "list"),
    ("results", "show"),
    ("results", "show", "--table", "cycles"),
    ("results", "check"),
    ("results", "export"),
    ("results", "export", "--table", "power", "--format", "json"),
    ("results", "prune", "--keep-runs", "1"),
)
"""Verbs that read a results root."""

OF_A_RUN = (
    ("report", "nightly/r1"),
    ("report", "nightly/r1", "--format", "markdown"),
    ("compare", "nightly/r1", "nightly/r2"),
    ("history", "nightly"),
    ("results", "show", "nightly/r1", "--table", "cycles"),
    ("results", "check", "nightly/r1"),
    ("results", "export", "nightly/r1", "--table", "power"),
    ("results", "prune", "--keep-runs", "1"),
    ("report", "nightly/r1", "--again"),
)
"""Verbs that read the run that is damaged; the last one writes it anew."""

OF_A_STUDY = (("plan",), ("validate",), ("run",), ("run", "--dry-run"), ("backfill",))
"""Verbs that read a study file."""


OF_RESULTS = {verb[0] for verb in OF_A_ROOT}


def llem(*arguments: str, root: str = "results") -> Result:
    """A verb's result; what it did not catch fails the test."""
    where = ["--results-root", root] if arguments[0] in OF_RESULTS else []
    done = CliRunner().invoke(main, [*arguments, *where], env={"COLUMNS": "120"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done


def bad_path(kind: str, folder: Path) -> str:
    """A path that cannot be used, each in another way."""
    (folder / "file").write_text("x")
    return {
        "missing": str(folder / "no" / "such"),
        "file": str(folder / "file"),
        "below a file": str(folder / "file" / "below"),
        "empty folder": str(folder),
        "device": "/dev/null",
        "too long": str(folder / ("x" * 300)),
        "no scheme that is known": "nope://bucket/x",
        "an address where nobody listens": "http://127.0.0.1:9/results",
        "zero byte": "a\0b",
        "root": "/proc/1/root/nope",
        "text": "☃ \n",
    }[kind]


KINDS = (
    "missing", "file", "below a file", "empty folder", "device", "too long", "no scheme that is known",
    "an address where nobody listens", "zero byte", "root", "text",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", OF_A_ROOT, ids=" ".join)
def test_a_root_that_cannot_be_read_is_a_message_and_exit_code_2(
    verb: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    done = llem(*verb, root=bad_path(kind, tmp_path))
    assert done.exit_code == 2, done.output
    assert done.stderr.strip()
    assert "LLEM_TRACEBACK" not in done.stderr


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", OF_A_STUDY, ids=" ".join)
def test_a_study_that_cannot_be_read_is_a_message_and_exit_code_2(
    verb: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    done = llem(*verb, bad_path(kind, tmp_path))
    assert done.exit_code == 2, done.output
    assert done.stderr.strip()
    assert "LLEM_TRACEBACK" not in done.stderr


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "empty folder"])
def test_an_output_that_cannot_be_written_is_a_message_and_exit_code_2(
    kind: str, make_run: MakeRun, tmp_path: Path
) -> None:
    run = a_run(make_run)
    aside = tmp_path / "aside"
    aside.mkdir()
    target = "/dev/full" if kind == "device" else bad_path(kind, aside)
    if kind == "file":
        target = str(aside)  # a folder where a file is wanted
    if kind == "text":
        return
    for verb in (("results", "export", run.url, "-o", target), ("init", "--force", target)):
        done = llem(*verb)
        assert done.exit_code == 2, (verb, done.output)
        assert "LLEM_TRACEBACK" not in done.stderr
        assert done.stderr.count(str(aside / "no" / "such")) == (kind == "missing")


def a_run(make_run: MakeRun, run_id: str = "r1") -> StoredRun:
    run = make_run({(0, 1): Recording(window_s=12.0), (0, 2): Recording(window_s=12.0)}, run_id=run_id)
    aggregate_run(run)
    return run


def as_json(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    """Change each object of a JSON file, or of JSON lines."""

    def changed(data: bytes) -> bytes:
        try:
            return json.dumps(change(json.loads(data))).encode()
        except ValueError:
            lines = [line for line in data.splitlines() if line[:1] == b"{"]
            return b"\n".join(json.dumps(change(json.loads(line))).encode() for line in lines)

    return changed


def parquet(columns: dict[str, list[int]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda _: None,
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "noise": lambda _: bytes(range(256)),
    "list": lambda _: b"[1, 2]",
    "null": lambda _: b"null",
    "number": lambda _: b"7",
    "deep": lambda _: b"[" * 100_000,
    "another object": lambda _: b'{"a": {"b": []}}',
    "numbers for values": as_json(lambda found: dict.fromkeys(found, 7)),
    "texts for values": as_json(lambda found: dict.fromkeys(found, "x")),
    "lists for values": as_json(lambda found: {key: [3] for key in found}),
    "nulls for values": as_json(dict.fromkeys),
    "a newer schema": as_json(lambda found: {**found, "schema_version": 99, "new": 1}),
    "another table": lambda _: parquet({"a": [1]}),
}
FILES = (
    "run.json", "plan.json", "summary.json", "cycles.parquet", "experiments.parquet", "power.parquet", "study.yaml",
    "result.json", "config.json", "environment.json", "provenance.json", "power.parquet@cycle", "requests.parquet",
    "events.jsonl",
)  # fmt: skip


def damaged(run: StoredRun, file: str, damage: str) -> None:
    """Damage a file of the run, or of its first cycle."""
    assert run.path is not None
    name, _, of_cycle = file.partition("@")
    found = run.path / name
    if of_cycle or not found.exists():
        found = Path(run.cycles()[0].folder.path) / name
    content = DAMAGE[damage](found.read_bytes())
    found.unlink()
    if content is not None:
        found.write_bytes(content)


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make = run_maker(ResultsRoot(folder / "results"), folder)
    for run_id in ("r1", "r2"):
        a_run(make, run_id)
    return folder / "results"


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(file=st.sampled_from(FILES), damage=st.sampled_from(sorted(DAMAGE)), verb=st.sampled_from(OF_A_RUN))
@example(
    file="power.parquet", damage="another table", verb=("results", "export", "nightly/r1", "--table", "power")
)
@example(file="environment.json", damage="numbers for values", verb=("report", "nightly/r1", "--again"))
@example(file="cycles.parquet", damage="another table", verb=("history", "nightly"))
def test_a_damaged_run_is_told_and_takes_no_other_down(
    file: str, damage: str, verb: tuple[str, ...], whole_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("damaged") / "results"
    shutil.copytree(whole_root, root)
    damaged(ResultsRoot(root).run("nightly", "r1"), file, damage)
    done = llem(*verb, root=str(root))
    assert done.exit_code in {0, 1, 2}, (verb, done.output)
    assert "LLEM_TRACEBACK" not in done.stderr, (verb, done.stderr)
    for other in (("results", "list"), ("results", "show", "nightly/r2")):
        assert llem(*other, root=str(root)).exit_code == 0, other


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    verb=st.sampled_from((*OF_A_ROOT, *OF_A_STUDY, ("init",), ("engine-check",), ("results", "import"))),
    words=st.lists(
        st.text(max_size=20) | st.sampled_from(["--json", "--metric", "-o", "latest", "#", "@*"]), max_size=3
    ),
)
def test_any_words_at_any_verb(
    verb: tuple[str, ...], words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("words")
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = llem(*verb, *words, root=str(folder / "results"))
    finally:
        os.chdir(before)
    assert done.exit_code in {0, 1, 2}
    assert "LLEM_TRACEBACK" not in done.stderr


def test_ctrl_c_in_any_verb_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llem_airflow.report.console.list_runs", interrupt)
    assert llem("results", "list").exit_code == 130


def test_the_help_states_the_exit_codes() -> None:
    words = " ".join(llem("--help").output.split())
    for said in ("0 done", "1 the run failed", "2 it could not be done as asked", "130 ended with Ctrl-C"):
        assert said in words


@pytest.mark.parametrize(
    ("redirect", "codes", "said"),
    [("| head -n 1", {0, 1}, ""), ("> /dev/full", {2}, "No space left on device")],
)
def test_a_reader_that_goes_and_a_full_device_leave_no_traceback(
    redirect: str, codes: set[int], said: str
) -> None:
    command = (
        f"set -o pipefail; {sys.executable} -c 'from llem_airflow.cli import main; main()' schema {redirect}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in codes
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert said in done.stderr


def test_an_export_that_fails_leaves_what_was_there(make_run: MakeRun, tmp_path: Path) -> None:
    run = a_run(make_run)
    mine, new, link = tmp_path / "mine.csv", tmp_path / "new.csv", tmp_path / "link.csv"
    mine.write_text("precious")
    link.symlink_to(mine)
    assert run.path is not None
    (run.path / "power.parquet").write_bytes(b"damaged")
    for target in (mine, new, link):
        done = llem("results", "export", run.url, "--table", "power", "-o", str(target))
        assert (done.exit_code, mine.read_text(), new.exists()) == (2, "precious", False), done.output
    assert llem("results", "export", run.url, "-o", str(link)).exit_code == 0
    assert (link.is_symlink(), mine.read_text().count("\n")) == (True, 5)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "verb", [("gc", "--older-than"), ("results", "recover", "--older-than"), ("gpu-check", "--minutes")]
)
def test_what_is_no_number_is_none_of_hours_or_minutes(verb: tuple[str, ...]) -> None:
    done = llem(*verb, "nan", root="") if verb[0] == "results" else CliRunner().invoke(main, [*verb, "nan"])
    assert (done.exit_code, "'nan' is no number." in done.stderr) == (2, True)


def test_a_folder_of_results_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = llem("results", "recover", "--folder", str(tmp_path / "file"), root="")
    assert (done.exit_code, done.output.strip().endswith("a part of it is a file: name a folder")) == (
        2,
        True,
    )


def test_a_folder_of_results_that_is_not_there_is_told_where_a_person_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLEM_UNSTORED", str(tmp_path / "of the worker"))
    named = llem("results", "recover", "--folder", str(tmp_path / "typo"), root="")
    assert (named.exit_code, named.stderr.strip()) == (
        2,
        f"{tmp_path / 'typo'}: No such file or directory; name one that exists, or make its folder first",
    )
    # A worker makes its own when the first result has to wait.
    assert llem("results", "recover", root="").output.startswith("Nothing waits to be stored here")


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
def test_every_sign_is_written_whatever_the_terminal_s_character_set(
    charset: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, buffer = a_run(make_run, "r\N{SNOWMAN}"), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, charset))
    assert main(["report", run.url, "--format", "markdown"], standalone_mode=False) == 0
    sys.stdout.flush()
    text = buffer.getvalue().decode(charset)
    assert ("r\N{SNOWMAN}" if charset == "utf-8" else "r\\u2603") in text
    assert ("\N{EN DASH}" in text) == (charset == "utf-8")


@pytest.mark.parametrize(
    "verb", [("results", "list"), ("results", "export"), ("schema",), ("--help",)], ids=" ".join
)
def test_a_closed_output_is_no_fault(
    verb: tuple[str, ...], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(make_run)
    monkeypatch.setattr(sys, "stdout", None)
    where = ["--results-root", run.url.rsplit("/", 2)[0]] if verb[0] == "results" else []
    with pytest.raises(SystemExit) as ended:
        main([*verb, *where])
    assert sys.stdout is not None
    sys.stdout.close()
    assert ended.value.code == 0


RETYPED: tuple[tuple[str, str, Any, bool], ...] = (
    ("power.parquet", "gpu", pa.string(), True),
    ("power.parquet", "power_instant_mw", pa.float64(), True),
    ("power.parquet", "t_after_mono_ns", pa.list_(pa.int64()), False),
    ("power.parquet", "energy_mj", pa.string(), True),
    ("requests.parquet", "phase", pa.large_string(), True),
    ("requests.parquet", "output_tokens", pa.float64(), True),
    ("requests.parquet", "token_mono_ns", pa.string(), False),
)
"""File, column, another type of it, and whether that has the same values."""


@pytest.mark.parametrize(("name", "column", "kind", "same"), RETYPED)
def test_a_file_that_other_software_wrote_again_is_read_or_told(
    name: str, column: str, kind: Any, same: bool, make_run: MakeRun
) -> None:
    run = a_run(make_run)
    before = pq.read_table(f"{run.url}/cycles.parquet")
    file = Path(run.cycles()[0].folder.path) / name
    table = pq.read_table(file)
    values = table.column(column).to_pylist()
    if pa.types.is_list(kind):
        values = [[value] for value in values]
    elif pa.types.is_string(kind) and not same:
        values = [json.dumps(value) for value in values]
    elif pa.types.is_string(kind):
        values = [str(value) for value in values]
    retyped = pa.array(values, kind)
    pq.write_table(table.set_column(table.column_names.index(column), column, retyped), file)
    done = llem("report", run.url, "--again")
    assert (done.exit_code, "unexpected" in done.output) == (0, False), done.output
    after = pq.read_table(f"{run.url}/cycles.parquet")
    if same:
        numbers = ("energy_j", "ttft_mean_s", "output_tokens_per_s")
        assert after.select(numbers) == before.select(numbers)
    else:
        assert f"column {column} is of" in done.output
