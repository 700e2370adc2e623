from __future__ import annotations

import warnings
from typing import Any

import pytest

from llem_airflow.study.config.base import lookup, with_values, without
from llem_airflow.study.config.engines import known_keys
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.schema import values
from llem_airflow.study.file.document import Document
from llem_airflow.study.file.yaml import Source
from llem_airflow.study.names import ENGINES
from llem_airflow.study.plan.expand import Batch
from llem_airflow.study.plan.rules import Condition, Rule, relevant, rules_of
from tests.study.texts import HEAD, report, study

RULES = [
    (engine, rule)
    for engine in ENGINES
    for rule in rules_of(engine)
    if not any(p[0] in ENGINES and p[0] != engine for c in rule.conditions for p in c.paths())
]
TOP_K = "sweep:\n  transformers.sampling_params.top_k: [10, 50]\n"
EVERY_RULE = pytest.mark.parametrize(("engine", "rule"), RULES, ids=[f"{e}-{r.id}" for e, r in RULES])


def _meeting(condition: Condition) -> list[tuple[tuple[str, ...], Any]]:
    """Keys set such that the condition holds."""
    value, paths = condition.value, condition.paths()
    if isinstance(value, dict):
        return [(paths[1], 4), (paths[0], 5 if condition.operator.startswith(">") else 3)]
    found: dict[str, Any] = {"set": "x", "is a": "none-of-them", "is not a": "text", "begins": f"{value}8x8"}
    if condition.operator in found:
        return [(condition.path, found[condition.operator])]
    if condition.operator == "unset":
        return []
    near = {"<": -1, ">": 1, "<=": 0, ">=": 0}
    if condition.operator in near:
        return [(condition.path, value + near[condition.operator])]
    if condition.operator == "in":
        return [(condition.path, value[0])]
    if condition.operator == "is not":
        return [
            (condition.path, not value if isinstance(value, bool) else "trt" if value == "pytorch" else 1)
        ]
    return [(condition.path, value if condition.operator == "is" else "none-of-them")]


def _plain(fixed: dict[str, Any], engine: str) -> dict[str, Any]:
    """The configuration of an experiment of which this is written."""
    batch = Batch(Document(Source("s.yaml", "a: 1")), (), fixed | {"engine": engine}, set())
    point = batch.point(())
    assert point is not None, batch.problems
    return point.config


def _point(engine: str, rule: Rule) -> dict[str, Any]:
    deltas = [delta for condition in rule.conditions for delta in _meeting(condition)]
    mode = "server" if any(path[0] == "server" for path, _ in deltas) else "offline"
    fixed: dict[str, Any] = {"serving_mode": mode, "task": {"model": "m"}, "measurement": {"meter": "auto"}}
    fixed |= {"server": {"traffic": {"rate": 1}}} if mode == "server" else {}
    return with_values(_plain(fixed, engine), deltas)


@EVERY_RULE
def test_a_rule_applies_to_a_point_made_for_it(engine: str, rule: Rule) -> None:
    assert rule.applies(_point(engine, rule))


@EVERY_RULE
def test_no_rule_excludes_a_plain_experiment(engine: str, rule: Rule) -> None:
    plain = _plain({"serving_mode": "offline", "task": {"model": "m"}}, engine)
    assert not (rule.invalid and rule.applies(plain))


@EVERY_RULE
def test_a_rule_speaks_of_keys_that_exist_and_says_where_it_was_read(engine: str, rule: Rule) -> None:
    ours = {path for path, _, _ in values(Experiment)}
    for path in [*rule.ignores, *(path for condition in rule.conditions for path in condition.paths())]:
        known = path in ours or (path[0] in ENGINES and path[2] in known_keys(path[0], path[1]))
        assert known, path
    assert rule.reason
    assert rule.version
    assert rule.source
    assert rule.invalid != bool(rule.ignores)


def test_rule_ids_are_unique() -> None:
    ids = [
        rule.id
        for engine in ENGINES
        for rule in rules_of(engine)
        if rule not in rules_of("vllm") or engine == "vllm"
    ]
    assert len(ids) == len(set(ids))


def test_known_bad_points_are_skipped_with_their_rule_and_the_study_still_runs() -> None:
    found = study(
        "sweep:\n  transformers.engine_params.attn_implementation: [sdpa, flash_attention_2]\n"
        "  transformers.engine_params.dtype: [float32, bfloat16]\n"
    )
    plan = found.plan.to_json()
    assert (plan["declared"], plan["valid"], plan["unique"]) == (4, 3, 3)
    assert plan["skipped"] == [
        {
            "rule": "transformers-flash-attention-float32",
            "reason": "FlashAttention computes in float16 or bfloat16, not in float32",
            "point": {
                "transformers.engine_params.attn_implementation": "flash_attention_2",
                "transformers.engine_params.dtype": "float32",
                "engine": "transformers",
            },
        }
    ]


def test_nothing_left_to_run_is_a_problem_that_names_the_rules() -> None:
    text = report("sweep:\n  vllm.sampling_params.temperature: [-1, -2]\n")
    assert "study.yaml:4:1: sweep: nothing is left to run: each of the 2 points is known not to work" in text
    assert "[vllm-temperature] temperature must be 0 or more" in text
    text = report("engine: vllm\nvllm: {sampling_params: {top_p: 0}}\n")
    assert "study.yaml:5:26: vllm.sampling_params.top_p: nothing is left to run: the experiment is" in text


@pytest.mark.parametrize("no_meter", ["meter: none", "energy_sampler: null"])
def test_energy_that_is_required_needs_a_meter_and_the_place_is_named(no_meter: str) -> None:
    head = f"serving_mode: offline\ntask: {{model: org/model}}\nmeasurement:\n  {no_meter}\n  require_energy: true\n"
    text = report(head=head)
    assert "study.yaml:5:3: measurement.require_energy: nothing is left to run" in text
    assert "meter none reads no power: choose another measurement.meter, or drop require_energy" in text


def test_only_the_points_of_a_sweep_without_a_meter_are_left_out_where_energy_is_required() -> None:
    head = "serving_mode: offline\ntask: {model: org/model}\nmeasurement: {require_energy: true}\n"
    found = study("sweep:\n  measurement.meter: [none, cpu-estimate]\n", head=head)
    assert [one.config["measurement"]["meter"] for one in found.experiments] == ["cpu-estimate"]
    assert [skip.rule for skip in found.plan.skipped] == ["energy-needs-a-meter"]


def test_points_that_differ_only_in_what_the_engine_ignores_run_once_and_are_recorded() -> None:
    body = TOP_K + "  transformers.sampling_params.temperature: [0, 0.5]\n"
    plan = study(body).plan
    assert (plan.declared, plan.valid, len(plan.experiments)) == (4, 4, 3)
    (group,) = plan.duplicates
    assert group.ignored == ("transformers.sampling_params.top_k",)
    assert len(group.members) == 2
    assert group.members[0] == plan.experiments[0].hash


def test_without_deduplication_every_point_runs_and_the_groups_are_recorded_all_the_same() -> None:
    body = TOP_K + "study_execution: {deduplicate_equivalent: false}\n"
    plan = study(body).plan
    assert len(plan.experiments) == 2
    assert [group.ignored for group in plan.duplicates] == [("transformers.sampling_params.top_k",)]


def test_identical_points_are_one_experiment_even_without_deduplication() -> None:
    one = "{task: {random_seed: 1}}"
    body = f"experiments: [{one}, {one}]\nstudy_execution: {{deduplicate_equivalent: false}}\n"
    assert len(study(body).experiments) == 1


def test_a_sweep_point_and_an_equal_entry_are_one_experiment() -> None:
    body = "sweep:\n  task.random_seed: [1, 2]\nexperiments: [{task: {random_seed: 2}}]\n"
    plan = study(body).plan
    assert (plan.declared, len(plan.experiments)) == (3, 2)


def test_a_temperature_that_is_written_is_applied() -> None:
    body = "sweep:\n  transformers.sampling_params.temperature: [0, 0.7]\n"
    assert [e.config["transformers"]["sampling_params"]["do_sample"] for e in study(body).experiments] == [
        False,
        True,
    ]


def test_a_temperature_of_zero_is_greedy_whatever_do_sample_says() -> None:
    body = "transformers: {sampling_params: {temperature: 0.0}}\n"
    found = study(body + "sweep:\n  transformers.sampling_params.do_sample: [true, false]\n")
    assert (found.plan.valid, len(found.experiments)) == (2, 1)
    assert found.experiments[0].config["transformers"]["sampling_params"]["do_sample"] is False


def test_keys_without_effect_are_told_with_their_line() -> None:
    head = HEAD.replace("cpu-estimate", "cpu-estimate, latency_profiling: true")
    assert [str(n) for n in study(head=head).warnings] == [
        "line 3: measurement.latency_profiling has no effect here: the time of every token is always recorded"
    ]


def test_transformers_in_server_mode_is_known_not_to_work() -> None:
    text = report(head="serving_mode: server\ntask: {model: m}\nserver: {traffic: {rate: 1}}\n")
    assert "[server-needs-serving-engine]" in text
    assert "(found 'transformers'; allowed: vllm, tensorrt)" in text


def test_an_engine_of_a_third_party_has_no_server_that_is_known_here() -> None:
    (rule,) = (rule for rule in rules_of("scripted") if rule.id == "server-needs-serving-engine")
    served = {"serving_mode": "server", "engine": "scripted"}
    assert rule.invalid
    assert rule.applies(served)
    assert "found 'scripted'; allowed: vllm, tensorrt" in rule.told(served)
    assert not rule.applies(served | {"engine": "vllm"})
    assert not rule.applies(served | {"serving_mode": "offline"})


def test_relevant_rules_are_those_that_some_point_can_meet() -> None:
    base = _plain({"serving_mode": "offline", "task": {"model": "m"}}, "vllm")
    ids = {rule.id for rule in relevant(rules_of("vllm"), base, {("vllm", "sampling_params", "top_p")})}
    assert {"vllm-top-p", "vllm-top-p-above-one"} <= ids
    assert "vllm-dtype" not in ids


def test_comparisons_with_the_wrong_type_do_not_hold_and_do_not_raise() -> None:
    condition = Condition(("a",), "<", 3, None)
    assert not condition.holds({"a": "text"})
    assert not condition.holds({"a": True})
    assert not condition.holds({})
    assert Condition(("a",), "is", 1, None).holds({"a": 1.0})
    assert not Condition(("a",), "is", 1, None).holds({"a": True})


def test_taking_a_key_out_leaves_the_original_alone() -> None:
    config = {"a": {"b": 1, "c": 2}, "d": 3}
    assert without(config, ("a", "b")) == {"a": {"c": 2}, "d": 3}
    assert without(config, ("x", "y")) is config
    assert config["a"] == {"b": 1, "c": 2}
    assert lookup(config, ("a", "b", "z")) is None


@pytest.mark.engine
def test_transformers_itself_refuses_what_the_rules_of_its_generation_config_exclude() -> None:
    from transformers import GenerationConfig  # noqa: PLC0415  # seconds of import for one test

    checked = [r for r in rules_of("transformers") if r.invalid and "GenerationConfig.validate" in r.source]
    assert len(checked) >= 6
    for rule in checked:
        params = {
            path[2]: value
            for condition in rule.conditions
            for path, value in _meeting(condition)
            if path[1] == "sampling_params"
        }
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r".+"):  # noqa: PT012  # both refuse
            warnings.simplefilter("ignore")
            GenerationConfig(**params).validate(strict=True)
