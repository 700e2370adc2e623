"""How an installation is configured, and where a model's directory is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.operators.settings import Settings, local_model, relative_root, settings


def where(models: Path | None, host: str | None = None) -> Settings:
    return Settings(
        results_root="results",
        models_dir=models,
        host_models_dir=host or (str(models) if models else None),
        hub_cache="cache",
        engine_cache="compiled",
        python="python3",
        plan_cache=Path("plans"),
        unstored=Path("unstored"),
    )


def model_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_model_below_the_models_folder_is_mounted_alone(tmp_path: Path) -> None:
    model_at(tmp_path / "org" / "tiny")
    found = local_model("org/tiny", where(tmp_path))
    assert found is not None
    assert found.host_source == str(tmp_path / "org" / "tiny")
    assert found.container_path == found.mount_target == "/models/org/tiny"


def test_a_volume_of_models_is_mounted_whole(tmp_path: Path) -> None:
    model_at(tmp_path / "tiny")
    found = local_model("tiny", where(tmp_path, host="llem-models"))
    assert found is not None
    assert (found.host_source, found.mount_target, found.container_path) == (
        "llem-models",
        "/models",
        "/models/tiny",
    )


def test_the_engine_s_own_path_of_the_models_folder_is_what_it_mounts(tmp_path: Path) -> None:
    model_at(tmp_path / "tiny")
    found = local_model("tiny", where(tmp_path, host="/srv/models"))
    assert found is not None
    assert found.host_source == "/srv/models/tiny"


@pytest.mark.parametrize("name", ["../outside", "..", "/etc", "missing"])
def test_a_name_cannot_leave_the_models_folder(tmp_path: Path, name: str) -> None:
    model_at(tmp_path / "outside")
    models = tmp_path / "models"
    models.mkdir()
    assert local_model(name, where(models)) is None


def test_a_path_is_taken_from_the_study_file_s_folder(tmp_path: Path) -> None:
    model_at(tmp_path / "models" / "mine")
    found = local_model("./models/mine", where(None), study_folder=tmp_path)
    assert found is not None
    assert found.worker_path == tmp_path / "models" / "mine"
    assert found.container_path == "/models/mine"


def test_a_hub_id_is_left_to_the_hub(tmp_path: Path) -> None:
    assert local_model("org/model", where(tmp_path)) is None


def test_variables_fill_what_the_configuration_leaves_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path))
    monkeypatch.setenv("LLEM_MODELS_DIR", str(tmp_path))
    monkeypatch.delenv("LLEM_HOST_MODELS_DIR", raising=False)
    found = settings()
    assert found.results_root == str(tmp_path)
    assert found.host_models_dir == str(tmp_path)


def test_airflow_s_configuration_wins_over_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__LLEM__RESULTS_ROOT", "s3://bucket/results")
    assert settings().results_root == "s3://bucket/results"


@pytest.mark.parametrize("root", ["results", "~/results", ""])
def test_a_relative_results_root_is_told_with_the_folder_that_it_means_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str
) -> None:
    monkeypatch.delenv("AIRFLOW__LLEM__RESULTS_ROOT", raising=False)
    monkeypatch.setenv("LLEM_RESULTS_ROOT", root)
    monkeypatch.chdir(tmp_path)
    said = relative_root()
    assert said.startswith(
        f"the results root {root or 'results'!r} is a relative path: here it means {tmp_path}/"
    )
    assert said.endswith("Name an absolute path or a URL: [llem] results_root")
    for whole in ("/srv/results", "s3://lab@bucket/results"):
        monkeypatch.setenv("LLEM_RESULTS_ROOT", whole)
        assert relative_root() == ""
