from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.protocol.spec import ExperimentSpec, Limits, MeterSpec
from llem_airflow.study import Study, experiment_spec
from llem_airflow.study.problems import PromptsError
from tests.study.texts import HEAD, study


def _spec(found: Study, **options: str) -> ExperimentSpec:
    return experiment_spec(found, found.experiments[0], 2, model_path=options.get("model_path"))


def test_a_spec_crosses_the_boundary_unchanged() -> None:
    spec = _spec(study(), model_path="/models/m")
    assert ExperimentSpec.loads(spec.dumps()) == spec
    assert (spec.cycle, spec.engine, spec.model.name, spec.model.path) == (
        2,
        "transformers",
        "org/model",
        "/models/m",
    )
    assert spec.experiment_hash == study().experiments[0].hash
    assert len(spec.prompts.items) == 100


def test_meter_and_limits_come_from_the_study() -> None:
    head = HEAD.replace(
        "cpu-estimate",
        "cpu-estimate, power_hz: 20, min_window_seconds: 5, cpu_idle_watts: 1, cpu_max_watts: 8",
    )
    body = "study_execution: {experiment_timeout_seconds: 90, stdout_silence_timeout_seconds: 0}\n"
    spec = _spec(study(body, head=head))
    assert spec.meter == MeterSpec("cpu-estimate", 20.0, (), 1.0, 8.0, 5.0)
    assert spec.limits == Limits(wall_clock_s=90.0, silence_s=None)


@pytest.mark.parametrize(
    ("sampler", "meter"),
    [("auto", "auto"), ("nvml", "nvml"), ("zeus", "nvml"), ("codecarbon", "cpu-estimate"), ("null", "none")],
)
def test_every_energy_sampler_of_older_files_becomes_a_meter(sampler: str, meter: str) -> None:
    head = HEAD.replace("meter: cpu-estimate", f"energy_sampler: {sampler}")
    assert _spec(study(head=head)).meter.kind == meter


def test_the_revision_of_the_model_is_in_the_spec() -> None:
    assert _spec(study("transformers: {engine_params: {revision: abc}}\n")).model.revision == "abc"


def test_a_version_replaces_model_and_revision_and_changes_the_hash_but_not_the_id() -> None:
    found = study("versions: [{name: v1, model: org/new, revision: r1}, {name: v2, revision: r2}]\n")
    one, two = (
        experiment_spec(found, found.experiments[0].at_version(version), 1) for version in found.versions
    )
    assert (one.model.name, one.model.revision, two.model.name, two.model.revision) == (
        "org/new",
        "r1",
        "org/model",
        "r2",
    )
    assert len({one.experiment_hash, two.experiment_hash, found.experiments[0].hash}) == 3
    assert one.slug == found.experiments[0].slug
    assert found.experiments[0].config["task"]["model"] == "org/model"


def test_a_server_is_told_its_traffic_and_given_the_time_that_its_phases_take() -> None:
    head = "serving_mode: server\nengine: vllm\ntask: {model: m}\n"
    found = study("server: {traffic: {rate: 2}}\n", head=head)
    assert len(found.plan.planned_cycles) == 3
    told = _spec(found)
    assert told.config["server"]["traffic"]["rate"] == 2
    assert told.config["server"]["traffic"]["window_seconds"] == 240
    # Start and warm-up of 900 s at most, ramp and window, and what is around them.
    assert told.limits.wall_clock_s == 900 + 900 + 30 + 240 + 300
    written = study(
        "server: {traffic: {rate: 2}}\nstudy_execution: {experiment_timeout_seconds: 700}\n", head=head
    )
    assert _spec(written).limits.wall_clock_s == 700


def test_keys_of_a_batch_are_told_to_have_no_effect_on_a_server() -> None:
    found = study(
        "server: {traffic: {rate: 2}}\nmeasurement: {min_window_seconds: 9}\nvllm: {engine_params: {host: x}}\n",
        head="serving_mode: server\nengine: vllm\ntask: {model: m}\n",
    )
    told = [one.message for one in found.plan.warnings if one.code == "no-effect"]
    assert any("measurement.min_window_seconds has no effect here" in text for text in told)
    assert any("vllm.engine_params.host has no effect here" in text for text in told)
    batch = HEAD.replace("cpu-estimate", "cpu-estimate, min_window_seconds: 9")
    offline = study(head=batch)
    assert not any("min_window_seconds" in one.message for one in offline.plan.warnings)


def test_a_dataset_that_is_not_shipped_is_stood_in_for_and_that_is_told() -> None:
    found = study(head=HEAD.replace("org/model", "org/model, dataset: {source: aienergyscore}"))
    assert [notice.code for notice in found.warnings] == ["stand-in"]
    assert len(_spec(found).prompts.items) == 100


def test_prompts_are_found_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n')
    head = HEAD.replace("org/model", "org/model, dataset: {source: p.jsonl, n_prompts: 1}")
    assert _spec(study(head=head, folder=tmp_path)).prompts.items == ("hello",)
    with pytest.raises(PromptsError, match="no such file"):
        _spec(study(head=head, folder=tmp_path / "other"))
