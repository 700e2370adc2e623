"""Whatever is wrong with a file, the rest of it is checked all the same, and everything is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.study import StudyFileError, load_study
from llem_airflow.study.names import ENGINE_ALIASES
from tests.study.texts import report, study

BESIDE = "nonesuch: 1\n{wrong}study_execution: {{n_cycles: 0}}\n"
WRONG_TEXTS = {
    "twice": ("airflow: {retries: 1, retries: 2}\n", 23, "the key 'retries' is written twice"),
    "tag": ("study_name: !secret x\n", 13, "found the YAML tag !secret"),
    "merge": ("offline: {<<: 3}\n", 15, "<< merges mappings"),
    "key": ("? [a, b]\n: 1\n", 3, "as a key; keys are plain words"),
    "character": ('study_name: "a\\0b"\n', 13, "found the character U+0000"),
    "character-of-a-key": ('"a\\0b": 1\n', 1, "found the character U+0000"),
}


@pytest.mark.parametrize(("wrong", "column", "found"), WRONG_TEXTS.values(), ids=WRONG_TEXTS)
def test_what_is_wrong_with_the_text_hides_nothing_else(wrong: str, column: int, found: str) -> None:
    first, middle, last = report(BESIDE.format(wrong=wrong)).splitlines()
    assert first.startswith("study.yaml:4:1: nonesuch: unknown key 'nonesuch'")
    assert middle.startswith(f"study.yaml:5:{column}: ")
    assert found in middle
    assert last.startswith(f"study.yaml:{5 + wrong.count(chr(10))}:29: study_execution.n_cycles: found 0")


def test_the_text_of_a_base_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("task: {model: m, model: n}\nmeasurement: {power_hz: -1}\n")
    path = tmp_path / "study.yaml"
    path.write_text("base: base.yaml\nserving_mode: offline\nnonesuch: 1\n")
    with pytest.raises(StudyFileError) as caught:
        load_study(path)
    places = [(Path(one.file).name, one.line) for one in caught.value.problems]
    assert places == [("base.yaml", 1), ("base.yaml", 2), ("study.yaml", 3)]


def test_what_was_wrong_before_a_text_breaks_off_is_told_beside_it() -> None:
    text = report("airflow: {retries: 1, retries: 2}\noffline: [1, 2\n")
    assert text.startswith("study.yaml:4:23: the key 'retries' is written twice")
    assert "not YAML" in text.splitlines()[-1]


def test_too_many_points_hide_nothing_else() -> None:
    axes = "".join(
        f"  task.{name}: {{min: 1, max: 600, num: 600}}\n" for name in ("random_seed", "max_input_tokens")
    )
    text = report(f"airflow: {{retries: -1}}\nsweep:\n{axes}", head="serving_mode: offline\n")
    assert [line.split(": ")[1] for line in text.splitlines()] == ["task", "airflow.retries", "sweep"]
    assert "the sweep has 360,000 points" in text


def test_what_is_wrong_with_a_search_is_told_together() -> None:
    head = "serving_mode: server\nengine: vllm\ntask: {model: m}\n"
    search = "{server.traffic.find_rate: {from: 1, to: 8, slo: {ttft_ms: 5}}}"
    sweep = f"sweep: {{load: [{search}, {{server.traffic.rate: 1}}]}}\n"
    text = report(sweep + "study_execution: {experiment_order: shuffle}\n", head=head)
    assert "a rate of find_rate is the same measurement as another experiment" in text
    assert "shuffle is no order for find_rate" in text


ALIASES = pytest.mark.parametrize(("older", "engine"), ENGINE_ALIASES.items())
TWICE = "is an older name of {engine!r}, which is there as well"


@ALIASES
@pytest.mark.parametrize(
    "body",
    [
        "{older}: null\n{engine}: {{engine_params: {{seed: 1}}}}\n",
        "{older}: {{engine_params: {{seed: 1}}}}\n{engine}: null\n",
        "runners: {{{older}: null, {engine}: container}}\n",
        "images: {{{older}: my/image, {engine}: null}}\n",
        "experiments: [{{{older}: null, {engine}: {{engine_params: {{seed: 1}}}}}}]\n",
        "sweep: {{{older}.engine_params.seed: null, {engine}.engine_params.seed: [1, 2]}}\n",
        "sweep: {{g: [{{{older}.engine_params.seed: null, {engine}.engine_params.seed: [1, 2]}}]}}\n",
        "sweep: {{engine: null, {engine}.engine_params.seed: [1, 2]}}\n",
        "sweep: {{engine: [null], {engine}.engine_params.seed: [1, 2]}}\n",
    ],
)
def test_null_under_an_older_name_is_as_if_it_were_not_there(older: str, engine: str, body: str) -> None:
    assert study(f"engine: {engine}\n" + body.format(older=older, engine=engine)).experiments


@ALIASES
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("{older}: {{}}\n{engine}: {{}}\n", "{older}"),
        ("runners: {{{older}: process, {engine}: container}}\n", "runners.{older}"),
        ("images: {{{older}: a, {engine}: b}}\n", "images.{older}"),
        ("experiments: [{{{older}: {{}}, {engine}: {{}}}}]\n", "experiments[0].{older}"),
    ],
)
def test_an_engine_under_two_names_is_told_wherever_it_is_written(
    older: str, engine: str, body: str, path: str
) -> None:
    text = report(f"engine: {engine}\n" + body.format(older=older, engine=engine))
    assert f": {path.format(older=older)}: {TWICE.format(engine=engine)}" in text


def test_an_engine_under_two_names_in_a_base_is_told_there(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("pytorch: {}\ntransformers: {}\n")
    text = report("base: base.yaml\n", folder=tmp_path)
    assert f"base.yaml:1:1: pytorch: {TWICE.format(engine='transformers')}" in text


def test_a_key_under_two_names_in_a_group_is_told() -> None:
    text = report("sweep: {g: [{pytorch.engine_params.seed: 1, transformers.engine_params.seed: 2}]}\n")
    assert text.startswith(
        "study.yaml:4:45: sweep.g[0].transformers.engine_params.seed: is the same key as 'pytorch."
    )


SWEPT = "sweep:\n  measurement.cpu_idle_watts: [5, 80]\n  {wrong}\n"
NOT_BELOW = "sweep.measurement.cpu_idle_watts[1]: cpu_idle_watts 80 is not below cpu_max_watts 65"


@pytest.mark.parametrize(
    "wrong",
    [
        "measurement.power_hz: [-1]",
        "measurement.baseline.strategy: [x]",
        "task.random_seed: [1, x]",
        "nonesuch: [1]",
        "g: [{task.random_seed: x}]",
        "g: [{measurement: {power_hz: -1}}, {}]",
    ],
)
def test_a_contradiction_in_a_sweep_is_told_beside_a_wrong_value_of_another_axis(wrong: str) -> None:
    text = report(SWEPT.format(wrong=wrong))
    assert f"study.yaml:5:35: {NOT_BELOW}" in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        "measurement.cpu_max_watts: [x]",
        "measurement.cpu_max_wats: [90]",
        "g: [{measurement.cpu_max_watts: x}]",
        "g: [{measurement: {cpu_max_watts: x}}]",
        "measurement: [3]",
    ],
)
def test_nothing_contradicts_a_key_of_which_the_sweep_has_a_wrong_value(wrong: str) -> None:
    text = report(SWEPT.format(wrong=wrong))
    assert NOT_BELOW not in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("wrong", ["power_hz: [-1]", "baseline.strategy: [x]", "powr_hz: [1]"])
def test_a_wrong_sweep_hides_neither_a_missing_key_nor_an_entry(wrong: str) -> None:
    head = "serving_mode: offline\ntask: {random_seed: 1}\n"
    entry = "experiments: [{measurement: {cpu_idle_watts: 80}}]\n"
    text = report(f"sweep: {{measurement.{wrong}}}\n{entry}", head=head)
    assert "study.yaml:2:1: task: the key 'task.model' is missing" in text
    assert (
        "study.yaml:4:46: experiments[0].measurement.cpu_idle_watts: cpu_idle_watts 80 is not below" in text
    )


WARMUP = "offline: {warmup: {min_prompts: 9, max_prompts: 6%s}}\n"
METER = "measurement: {meter: none, require_energy: true%s}\n"
EXCLUDED = [
    pytest.param(WARMUP, ", cv_threshold: 7", "warmup-bounds", id="warmup"),
    pytest.param(WARMUP, ", nonesuch: 7", "warmup-bounds", id="warmup-unknown"),
    pytest.param(METER, ", power_hz: -1", "energy-needs-a-meter", id="meter"),
    pytest.param(METER, ", baseline: {strategy: x}", "energy-needs-a-meter", id="meter-below"),
]


@pytest.mark.parametrize(("section", "wrong", "rule"), EXCLUDED)
def test_a_rule_that_excludes_everything_is_told_beside_a_wrong_key_of_its_section(
    section: str, wrong: str, rule: str
) -> None:
    head = "serving_mode: offline\ntask: {model: m}\n"
    assert len(report(section % "", head=head).splitlines()) == 1
    text = report(section % wrong, head=head)
    assert f"[{rule}]" in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize("wrong", ["min_prompts: 90, max_prompts: x", "min_prompts: x, max_prompts: 5"])
def test_a_key_that_is_itself_wrong_breaks_no_rule(wrong: str) -> None:
    assert len(report(f"offline: {{warmup: {{{wrong}}}}}\n").splitlines()) == 1
