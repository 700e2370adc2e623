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
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.cli import main
from llem_airflow.report.page import report_html
from llem_airflow.results import ResultReadError, ResultsRoot
from llem_airflow.results.llenergymeasure import import_folder

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
    summary = aggregate_run(run, page=report_html)
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
    aggregate_run(run)
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
    aggregate_run(run)
    (row,) = cycle_rows(run)
    assert (row["gpus"], row["energy_j"]) == (["all-gpus"], 4000.0)
    curve = [mw for mw in run.cycles()[0].power().column("power_average_mw").to_pylist() if mw is not None]
    assert curve == [200_000] * 20


def test_a_bundle_without_a_meter_has_no_energy(tmp_path: Path) -> None:
    run, _ = import_folder(_study(tmp_path, {"total_energy_j": 0.0}), ResultsRoot(tmp_path / "results"))
    aggregate_run(run)
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


WRONG: tuple[tuple[str, Any], ...] = (
    ("total_energy_j", float("nan")),
    ("total_energy_j", 1e308),
    ("total_energy_j", float("inf")),
    ("total_energy_j", -1.0),
    ("total_energy_j", "4000"),
    ("total_energy_j", True),
    ("energy_per_device_j", [float("nan")]),
    ("energy_per_device_j", {"0": 1.0}),
    ("total_inference_time_sec", 0),
    ("total_inference_time_sec", 1e300),
    ("total_inference_time_sec", None),
    ("output_tokens", 1.5),
    ("output_tokens", float("inf")),
    ("output_tokens", None),
    ("input_tokens", "many"),
    ("start_time", 5),
    ("end_time", "yesterday"),
    ("model_name", 7),
    ("engine", []),
    ("warmup_result", 1),
    ("runner_provenance", "x"),
    ("declared_config_hash", 12),
)


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_field_that_cannot_be_is_named_with_its_file_and_the_rest_is_imported(
    field: str, value: object, tmp_path: Path
) -> None:
    study = _study(tmp_path, {}, {field: value})
    done = CliRunner().invoke(main, ["results", "import", str(study), "--results-root", str(tmp_path / "r")])
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith("not imported: ")]
    assert f"_c2_{BUNDLE.name.partition('_c1_')[2]}/result.json: {field}: found " in line
    assert "; allowed: " in line
    (run,) = ResultsRoot(tmp_path / "r").runs()
    assert [row["energy_j"] for row in cycle_rows(run)] == [4000.0]


def test_samples_that_cannot_be_are_named_and_left_out(tmp_path: Path) -> None:
    study = _study(tmp_path, {})
    file = next(study.glob("*/timeseries.parquet"))
    rows = pq.read_table(file).to_pylist()
    rows[3]["power_w"] = float("nan")
    rows[4]["power_w"] = 1e308
    pq.write_table(pa.Table.from_pylist(rows), file)
    run, problems = import_folder(study, ResultsRoot(tmp_path / "r"))
    assert problems == [f"{file}: power_w: 2 of 20 samples left out, as impossible"]
    curve = [mw for mw in run.cycles()[0].power().column("power_average_mw").to_pylist() if mw is not None]
    assert curve == [200_000] * 18
