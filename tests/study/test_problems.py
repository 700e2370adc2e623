from __future__ import annotations

import re
from pathlib import Path

import pytest

from llem_airflow.study import StudyFileError, load_study_text
from llem_airflow.study.problems import SHOWN_PROBLEMS, Problem, closest
from tests.study.texts import HEAD, report


def _cases() -> list[tuple[str, str]]:
    text = (Path(__file__).parent / "problems.txt").read_text("utf-8")
    cases = re.findall(r"^((?:(?!=> |#).+\n)+)=> (.+)$", text, re.MULTILINE)
    assert len(cases) == text.count("\n=> ")
    return cases


@pytest.mark.parametrize(("body", "expected"), _cases())
def test_a_problem_is_told_with_place_found_allowed_and_what_was_meant(body: str, expected: str) -> None:
    assert expected in report(body)


def test_a_typo_of_a_top_level_key_is_one_message() -> None:
    text = "serving_mode: offline\ntsk: {model: m, dataset: {n_prompts: 4}}\n"
    assert report(head=text) == "study.yaml:2:1: tsk: unknown key 'tsk'; no such key. Did you mean 'task'?"


def test_all_problems_of_a_file_come_at_once_in_its_order() -> None:
    lines = report("study_execution: {n_cycles: 0}\nengine: vlm\nairflow: {retries: -1}\n").splitlines()
    assert [line.split(":")[1] for line in lines] == ["4", "5", "6"]


def test_measurement_warmup_tells_its_new_place() -> None:
    text = report(head="serving_mode: offline\ntask: {model: m}\nmeasurement: {warmup: {n_prompts: 3}}\n")
    assert (
        text
        == "study.yaml:3:15: measurement.warmup: 'warmup' is not a key here; it has moved to offline.warmup."
    )


def test_what_is_missing_is_told_with_what_to_add() -> None:
    text = report(head="task: {max_output_tokens: 3}\n")
    assert (
        "serving_mode: the key 'serving_mode' is missing; add serving_mode: offline (a fixed prompt set)"
        in text
    )
    assert "study.yaml:1:1: task: the key 'task.model' is missing; add task: {model: ...}" in text


def test_each_written_out_experiment_needs_a_model() -> None:
    text = report("experiments: [{task: {model: m}}, {}]\n", head="serving_mode: offline\n")
    assert text == "study.yaml:2:35: experiments[1]: the key 'task.model' is missing; add task: {model: ...}."


def test_mixed_serving_modes_are_refused() -> None:
    text = report("experiments: [{}, {serving_mode: server, engine: vllm, server: {traffic: {rate: 1}}}]\n")
    assert "the study mixes serving_mode offline and server; make one study for each mode" in text


def test_server_mode_needs_a_rate() -> None:
    text = report(head="serving_mode: server\nengine: vllm\ntask: {model: m}\n")
    assert (
        "the key 'server.traffic.rate' is missing; add server: {traffic: {rate: <requests per second>}}"
        in text
    )


def test_a_window_of_requests_is_refused_with_what_to_use() -> None:
    text = report(
        "server: {traffic: {rate: 1, window_requests: 9}}\n",
        head="serving_mode: server\nengine: vllm\ntask: {model: m}\n",
    )
    assert "not supported: a window is a duration; use window_seconds" in text


def test_a_section_of_another_engine_in_an_entry_is_refused() -> None:
    text = report("experiments: [{engine: transformers, vllm: {engine_params: {dtype: auto}}}]\n")
    assert (
        "experiments[0].vllm: keys of vllm in an experiment of transformers; set engine: vllm or drop vllm:"
        in text
    )


def test_windowed_needs_a_window() -> None:
    text = report(
        head="serving_mode: offline\ntask: {model: m}\nmeasurement: {measurement_methodology: windowed}\n"
    )
    assert "add measurement_window: [begin_s, end_s]" in text


@pytest.mark.parametrize("window", ["[5, 1]", "[-1, 3]", "[1]", "[1, 2, 3]"])
def test_a_window_begins_before_it_ends(window: str) -> None:
    text = report(
        head=f"serving_mode: offline\ntask: {{model: m}}\nmeasurement: {{measurement_window: {window}}}\n"
    )
    assert "allowed: [begin_s, end_s] with 0 <= begin < end" in text


def test_meter_and_energy_sampler_must_not_contradict() -> None:
    text = report(
        head="serving_mode: offline\ntask: {model: m}\nmeasurement: {meter: rapl, energy_sampler: nvml}\n"
    )
    assert "meter 'rapl' contradicts energy_sampler 'nvml'; keep one of them" in text


def test_wattages_must_be_in_order() -> None:
    text = report(head="serving_mode: offline\ntask: {model: m}\nmeasurement: {cpu_idle_watts: 70}\n")
    assert "cpu_idle_watts 70 is not below cpu_max_watts 65" in text


def test_a_flood_of_problems_is_counted() -> None:
    body = "experiments: [" + ", ".join(["{x: 1}"] * 200) + "]\n"
    with pytest.raises(StudyFileError) as caught:
        load_study_text(HEAD + body)
    assert len(caught.value.problems) == 200
    assert str(caught.value).splitlines()[-1] == f"... and {200 - SHOWN_PROBLEMS} more problems"


def test_an_absurd_integer_is_a_problem_and_not_a_traceback() -> None:
    assert "task.random_seed: found 1" in report(
        head="serving_mode: offline\ntask: {model: m, random_seed: 1" + "0" * 300 + "}\n"
    )


def test_a_problem_is_plain_json() -> None:
    problem = Problem("f.yaml", 1, 2, "a.b", "found x", "allowed: y", "z")
    assert problem.to_json() == {
        "file": "f.yaml",
        "line": 1,
        "column": 2,
        "path": "a.b",
        "found": "found x",
        "allowed": "allowed: y",
        "suggestion": "z",
    }


@pytest.mark.parametrize(
    ("word", "meant"),
    [("Study-Name", "study_name"), ("n cycles", "n_cycles"), ("zzz", None), ("x" * 500, None)],
)
def test_the_closest_name_ignores_case_and_dashes(word: str, meant: str | None) -> None:
    assert closest(word, ["study_name", "n_cycles"]) == meant
