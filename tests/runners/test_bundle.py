"""The bundle holds what runs inside, and the same sources give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import llem_airflow
from llem_airflow.runners.bundle import build_bundle


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = build_bundle(tmp_path / "a"), build_bundle(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert first.parent.name == second.parent.name


def test_a_bundle_is_built_once(tmp_path: Path) -> None:
    first = build_bundle(tmp_path)
    before = first.stat().st_mtime_ns
    assert build_bundle(tmp_path) == first
    assert first.stat().st_mtime_ns == before


def test_a_broken_bundle_in_the_cache_is_replaced(tmp_path: Path) -> None:
    path = build_bundle(tmp_path)
    path.write_bytes(b"half")
    assert zipfile.is_zipfile(build_bundle(tmp_path))


def test_it_holds_protocol_measurement_and_the_driver_binding_only(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_bundle(tmp_path)) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[1] for name in names if name.startswith("llem_airflow/")}
    assert tops == {"__init__.py", "protocol", "measurement"}
    assert {"__main__.py", "pynvml.py"} <= names
    assert {name.rpartition(".")[2] for name in names if name.startswith("llem_airflow/")} == {"py"}


def test_it_starts_with_nothing_installed(tmp_path: Path) -> None:
    """No site-packages, no configuration: it gets as far as asking for its spec."""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(build_bundle(tmp_path))],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "LLEM_CONFIG_PATH" in ended.stdout + ended.stderr
    assert "ModuleNotFoundError" not in ended.stdout + ended.stderr


def test_an_engine_package_without_a_list_of_its_files_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "bare_engine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bare-engine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[llem_airflow.engines]\nbare = bare_engine:Engine\n")
    (tmp_path / "bare_engine.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"bare-engine brings an engine but has no list of its files"):
        build_bundle(tmp_path / "cache")


def test_the_bundle_names_the_code_that_runs_from_it(tmp_path: Path) -> None:
    """The same for the same code, however it was packed; another one for edited code; none outside a bundle."""
    ask = "from llem_airflow.measurement.environment import bundle_sha256; print(bundle_sha256())"

    def said(path: Path) -> str:
        told = {"PYTHONPATH": str(path), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [sys.executable, "-c", ask], env=told, cwd=tmp_path, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    bundle = build_bundle(tmp_path / "cache")
    stored, edited = tmp_path / "stored.pyz", tmp_path / "edited.pyz"
    with (
        zipfile.ZipFile(bundle) as source,
        zipfile.ZipFile(stored, "w") as plain,
        zipfile.ZipFile(edited, "w") as other,
    ):
        for name in source.namelist():
            plain.writestr(name, source.read(name))
            other.writestr(name, source.read(name) + (b"\n" if name.endswith("attempt.py") else b""))
    assert len(said(bundle)) == 64
    assert said(stored) == said(bundle) != said(edited)
    assert said(Path(llem_airflow.__file__).parents[1]) == "None"
