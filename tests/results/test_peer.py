"""Bundles as llenergymeasure 0.7.0 itself wrote them (``llenergymeasure/``, by its ``BundleWriter``)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.integrity import check_run
from llem_airflow.analysis.run_rows import cycle_rows
from llem_airflow.cli import main
from llem_airflow.results import ResultReadError, ResultsRoot
from llem_airflow.results.peer import import_folder

BUNDLE = next((Path(__file__).parent / "llenergymeasure").iterdir())


def _study(folder: Path, *changes: dict[str, Any], gpus: int = 1) -> Path:
    """A results folder of one experiment with a cycle for each set of changes."""
    study = folder / "my-study"
    for cycle, change in enumerate(changes, start=1):
        target = study / BUNDLE.name.replace("_c1_", f"_c{cycle}_")
        shutil.copytree(BUNDLE, target)
        result = json.loads((target / "result.json").read_text())
        (target / "result.json").write_text(json.dumps(result | change))
        rows = [
            {"timestamp_s": float(second), "gpu_index": gpu, "power_w": 200.0 / gpus, "temperature_c": 60.0}
            for second in range(20)
            for gpu in range(gpus)
        ]
        pq.write_table(pa.Table.from_pylist(rows), target / "timeseries.parquet")
    return study


def test_a_peers_study_becomes_a_run_with_its_joules_as_reported(tmp_path: Path) -> None:
    study = _study(tmp_path, {}, {"total_energy_j": 4400.0, "energy_per_device_j": [4400.0]})
    run, problems = import_folder(study, ResultsRoot(tmp_path / "results"))
    summary = aggregate_run(run)
    assert (problems, summary.valid, summary.planned) == ([], 2, 2)
    one, two = cycle_rows(run)
    assert (one["energy_j"], two["energy_j"]) == (4000.0, 4400.0)
    assert (one["energy_source"], one["energy_kind"]) == ("reported", "measured")
    assert one["energy_per_output_token_j"] == pytest.approx(2.5)
    assert one["output_tokens_per_s"] == pytest.approx(80.0)
    assert (one["model"], one["engine_version"], one["runner"]) == (
        "Qwen/Qwen2.5-0.5B",
        "4.57.0",
        "container",
    )
    assert "reported" in one["flags"]
    assert summary.power_rows == 2 * (20 + 2)
    assert [problem for problem in check_run(run) if "fingerprint" not in problem.what] == []


def test_what_a_bundle_cannot_tell_is_absent(tmp_path: Path) -> None:
    study = _study(tmp_path, {"input_tokens": None, "serving_mode": "server"})
    run, _ = import_folder(study, ResultsRoot(tmp_path / "results"))
    aggregate_run(run, report=False)
    (row,) = cycle_rows(run)
    for name in (
        "requests",
        "requests_per_s",
        "ttft_mean_s",
        "e2el_p95_s",
        "energy_active_j",
        "load_s",
        "input_tokens",
        "energy_per_total_token_j",
        "energy_per_request_j",
    ):
        assert row[name] is None, name


def test_devices_that_were_not_told_apart_are_one(tmp_path: Path) -> None:
    run, _ = import_folder(
        _study(tmp_path, {"energy_per_device_j": None}, gpus=2), ResultsRoot(tmp_path / "r")
    )
    aggregate_run(run, report=False)
    (row,) = cycle_rows(run)
    assert (row["gpus"], row["energy_j"]) == (["all-gpus"], 4000.0)
    curve = [mw for mw in run.cycles()[0].power().column("power_average_mw").to_pylist() if mw is not None]
    assert curve == [200_000] * 20


def test_a_bundle_without_a_meter_has_no_energy(tmp_path: Path) -> None:
    run, _ = import_folder(_study(tmp_path, {"total_energy_j": 0.0}), ResultsRoot(tmp_path / "results"))
    aggregate_run(run, report=False)
    (row,) = cycle_rows(run)
    assert (row["status"], row["energy_kind"], row["energy_j"]) == ("valid", "none", None)


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    study, root = _study(tmp_path, {}), ResultsRoot(tmp_path / "results")
    import_folder(study, root)
    run, _ = import_folder(study, root)
    assert len(run.cycles(repeats=True)) == 1


def test_a_bundle_of_another_version_is_named_and_the_others_are_imported(tmp_path: Path) -> None:
    study = _study(tmp_path, {}, {"bundle_version": "1.0"})
    done = CliRunner().invoke(main, ["results", "import", str(study), "--results-root", str(tmp_path / "r")])
    assert done.exit_code == 1
    assert "not imported: " in done.output
    assert "bundle_version '1.0'; this release reads 2.0" in done.output
    shown = CliRunner().invoke(
        main, ["results", "show", "my-study", "--table", "reliability", "--results-root", str(tmp_path / "r")]
    )
    assert "not known" in shown.output
    assert "transformers" in shown.output


def test_a_folder_without_bundles_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(
        ResultReadError, match=r"nothing to import: no folder in it has a result\.json; give a results"
    ):
        import_folder(tmp_path, ResultsRoot(tmp_path / "results"))
