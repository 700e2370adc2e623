"""What plan, validate, init and schema print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from llem_airflow.cli import main
from tests.study.texts import HEAD

SWEEP = "sweep:\n  vllm.sampling_params.temperature: [0, 0.5, -1]\n  vllm.sampling_params.top_p: [0.5, 0.9]\n"


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": "160"})


def _write(folder: Path, text: str) -> str:
    path = folder / "s.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_plan_shows_the_funnel_and_why_points_are_left_out(tmp_path: Path) -> None:
    result = _run("plan", _write(tmp_path, HEAD + SWEEP + "study_execution: {n_cycles: 2}\n"))
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert (
        "6 declared -> 2 invalid -> 4 valid -> 3 after deduplication x 2 cycles = 6 cycles to measure"
        in words
    )
    assert "at most 60 min one after the other" in words
    assert "GPUs: none" in words
    assert "vllm-temperature" in words
    assert "vllm.sampling_params.top_p" in words


def test_plan_shows_order_and_pauses_when_asked(tmp_path: Path) -> None:
    body = HEAD + "study_execution: {n_cycles: 2, cycle_gap_seconds: 240}\n"
    result = _run("plan", "--order", _write(tmp_path, body))
    assert "4 min" in result.output
    assert "Order" in result.output


def test_plan_as_json_is_the_plan(tmp_path: Path) -> None:
    plan = json.loads(_run("plan", "--json", _write(tmp_path, HEAD + SWEEP)).stdout)
    assert plan["cycles"] == 3
    assert (plan["format"], plan["declared"], plan["valid"], plan["unique"], plan["runs"]) == (1, 6, 4, 3, 9)
    assert [skip["rule"] for skip in plan["skipped"]] == ["vllm-temperature"] * 2


def test_a_bad_file_ends_with_two_and_its_mistakes_on_standard_error(tmp_path: Path) -> None:
    for verb in ("plan", "validate"):
        result = _run(verb, _write(tmp_path, HEAD + "engine: vlm\n"))
        assert result.exit_code == 2
        assert "s.yaml:4:9: engine: found 'vlm' (text)" in result.stderr
        assert result.stdout == ""


def test_validate_takes_many_files_and_tells_of_every_bad_one(tmp_path: Path) -> None:
    good = _write(tmp_path, HEAD + "study_execution: {skip_preflight: true}\n")
    result = _run("validate", good, str(tmp_path / "none.yaml"))
    assert result.exit_code == 2
    assert "s.yaml: 1 experiment, 3 cycles" in result.stdout
    assert "s.yaml: note: line 4: study_execution.skip_preflight has no effect here" in result.stdout
    assert "none.yaml:1:1: the file does not exist" in result.stderr


def test_validate_as_json_has_places(tmp_path: Path) -> None:
    result = _run("validate", "--json", _write(tmp_path, HEAD + "engine: vlm\n"))
    (file,) = json.loads(result.stdout)["files"]
    assert result.exit_code == 2
    assert file["ok"] is False
    assert (file["mistakes"][0]["line"], file["mistakes"][0]["column"]) == (4, 9)
    assert file["mistakes"][0]["suggestion"] == "vllm"


def test_init_writes_a_study_that_loads_and_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "my question.yaml"
    assert _run("init", str(path)).exit_code == 0
    assert _run("validate", str(path)).exit_code == 0
    assert "study_name: my-question" in path.read_text("utf-8")
    again = _run("init", str(path))
    assert again.exit_code == 2
    assert "exists already; name another file, or replace it with --force" in again.stderr
    assert _run("init", "--force", str(path)).exit_code == 0


def test_schema_prints_a_schema() -> None:
    Draft202012Validator.check_schema(json.loads(_run("schema").stdout))


def test_plan_says_which_layer_names_runner_and_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("AIRFLOW__LLEM__RUNNERS", '{"vllm": "docker:of/installation"}')
    file = _write(tmp_path, HEAD + "engine: [pytorch, vllm]\nrunners: {pytorch: local}\n")
    said = _run("plan", file).output
    assert "runner of transformers: process (the study)\n" in said
    assert "runner of vllm: container ([llem] runners), image of/installation ([llem] runners)\n" in said
    monkeypatch.setenv("LLEM_RUNNER_PYTORCH", "docker:of/variable")
    monkeypatch.setenv("LLEM_RUNNER_VLLM", "docker:of/variable")
    plan = json.loads(_run("plan", "--json", file).stdout)["runners"]
    assert (plan["transformers"]["runner"], plan["transformers"]["by"]) == ("process", "the study")
    assert (plan["vllm"]["runner"], plan["vllm"]["by"]) == ("container", "LLEM_RUNNER_VLLM")
    assert plan["vllm"]["images"][0] == ["of/variable", "LLEM_RUNNER_VLLM"]
    monkeypatch.delenv("AIRFLOW__LLEM__RUNNERS")
    monkeypatch.delenv("LLEM_RUNNER_VLLM")
    assert (
        "nowhere/docker.sock: No such file or directory: a run fails until it answers"
        in _run("plan", file).output
    )


def test_plan_ends_with_two_where_a_layer_names_no_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLEM_RUNNER_VLLM", "dokcer")
    result = _run("plan", _write(tmp_path, HEAD))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "LLEM_RUNNER_VLLM: found 'dokcer'; allowed: process, container" in result.stderr
