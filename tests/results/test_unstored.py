"""A result that cannot be stored stays on its worker and is stored by the next try, or by `results recover`, once."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from airflow.sdk.exceptions import AirflowException
from click.testing import CliRunner

from llem_airflow.cli.results import results_group
from llem_airflow.operators.evidence import store_kept, store_or_keep
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.results.unstored import kept_results, places
from tests import parts
from tests.results.recorded import Recording, provenance
from tests.results.roots import s3_at

EXPERIMENT = "tiny-batch-1-01234567"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return Recording().write(tmp_path / "out")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLEM_UNSTORED", str(tmp_path / "unstored"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "unstored"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, str]]:
    """A port for an S3 server that is not there yet, and the root of a bucket."""
    port = parts.free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    name = f"results-{uuid.uuid4().hex}"
    yield port, f"s3://{name}/energy"
    fsspec.filesystem("s3").clear_instance_cache()


def make_bucket(root: str) -> None:
    fs = fsspec.filesystem("s3")
    fs.clear_instance_cache()
    fsspec.filesystem("s3").mkdir(root.split("/")[2])


def attempted(run: StoredRun, files: Path, try_number: int = 1) -> str:
    return store_or_keep(run, EXPERIMENT, 1, files, provenance() | {"try_number": try_number})


def recover(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(results_group, ["recover", *arguments], standalone_mode=False)
    assert done.exception is None, done.exception
    return done.return_value, " ".join(done.output.split())


def test_a_store_that_is_away_at_the_commit_loses_nothing_and_recover_stores_it_once(
    bucket: tuple[int, str], files: Path, home: Path
) -> None:
    port, root = bucket
    run = ResultsRoot(root).run("nightly", "r1")
    with pytest.raises(AirflowException) as caught:
        attempted(run, files)
    (kept,) = kept_results(home)
    text = str(caught.value)
    assert "cycle 1 was measured and could not be stored: " in text
    assert "the object store does not answer; check its address (AWS_ENDPOINT_URL) and the network" in text
    assert f"Nothing is lost: it is kept on {os.uname().nodename} in {kept.folder}" in text
    with pytest.raises(AirflowException):
        attempted(run, files, 2)  # the same result, adopted by the next try
    assert len(kept_results(home)) == 1
    code, said = recover("--dry-run")
    assert (code, len(kept_results(home))) == (0, 1)
    assert f"nightly/r1 {EXPERIMENT} cycle 1: lies in {kept.folder}, belongs to {root}" in said.replace(
        " / ", "/"
    )
    code, said = recover()
    assert (code, len(kept_results(home))) == (1, 1)
    assert "does not answer" in said
    assert "0 results stored, 1 left." in said
    with s3_at(port):
        make_bucket(root)
        code, said = recover()
        assert code == 0, said
        assert "1 result stored, 0 left." in said
        (cycle,) = ResultsRoot(root).run("nightly", "r1").cycles(repeats=True)
        assert cycle.provenance()["try_number"] == 1
        assert recover()[1].startswith("Nothing waits to be stored here")
    assert kept_results(home) == []
    assert list(home.iterdir()) == []


def test_the_next_try_stores_what_an_earlier_one_could_not_unless_its_task_was_cleared(
    tmp_path: Path, files: Path, home: Path
) -> None:
    root = tmp_path / "results"
    root.write_text("in the way")
    run = ResultsRoot(root).run("nightly", "r1")
    with pytest.raises(AirflowException, match="could not be stored"):
        attempted(run, files)
    with pytest.raises(
        AirflowException, match=r"by an earlier try and still cannot be stored: .* It stays on "
    ):
        store_kept(run, EXPERIMENT, 1, after_try=0)
    root.unlink()
    assert store_kept(run, EXPERIMENT, 1, after_try=1) is None
    assert store_kept(run, EXPERIMENT, 2, after_try=0) is None
    assert store_kept(run, EXPERIMENT, 1, after_try=0) == run.cycles()[0].folder.url
    assert store_kept(run, EXPERIMENT, 1, after_try=0) is None
    assert kept_results(home) == []


def test_recover_stores_under_another_root(tmp_path: Path, files: Path, home: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(AirflowException):
        attempted(ResultsRoot(tmp_path / "results").run("nightly", "r1"), files)
    assert recover("--to", str(tmp_path / "second"))[0] == 0
    assert len(ResultsRoot(tmp_path / "second").run("nightly", "r1").cycles()) == 1
    assert kept_results(home) == []


def test_a_result_that_another_process_is_storing_is_left_to_it(
    tmp_path: Path, files: Path, home: Path
) -> None:
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(AirflowException):
        attempted(ResultsRoot(tmp_path / "results").run("nightly", "r1"), files)
    (kept,) = kept_results(home)
    holder = subprocess.Popen(["flock", str(kept.folder), "cat"], stdin=subprocess.PIPE)
    try:
        while subprocess.run(["flock", "-n", str(kept.folder), "true"], check=False).returncode == 0:
            pass
        assert kept.store(ResultsRoot(tmp_path / "second")) is None
    finally:
        holder.communicate()
    assert kept.store(ResultsRoot(tmp_path / "second")) is not None
    assert kept.store(ResultsRoot(tmp_path / "second")) is None


def test_where_the_workers_folder_takes_nothing_the_temporary_one_does(
    tmp_path: Path, files: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("in the way")
    (tmp_path / "results").write_text("in the way")
    run = ResultsRoot(tmp_path / "results").run("nightly", "r1")
    with pytest.raises(AirflowException, match="Nothing is lost"):
        attempted(run, files)
    (kept,) = kept_results(home)
    assert kept.folder.parent == places(home)[1]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "results"))
    with pytest.raises(
        AirflowException, match=r"Nor could it be kept on .*A container stays with its volume until"
    ):
        attempted(run, files)


def test_each_fault_of_an_object_store_is_told_with_what_to_do(
    bucket: tuple[int, str], files: Path, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, root = bucket
    with s3_at(port):
        with pytest.raises(AirflowException, match="there is no such bucket; make it, or correct"):
            attempted(ResultsRoot(root).run("nightly", "r1"), files)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(
            AirflowException, match="wants credentials, and this worker has none; set AWS_ACCESS_KEY"
        ):
            attempted(ResultsRoot(root).run("nightly", "r2"), files)
    assert len(kept_results(home)) == 2
