"""The sweep grammar, sentence by sentence."""

from __future__ import annotations

import pytest

from tests.study.texts import HEAD, report, study, values

BATCH = ("transformers", "llem_execution", "batch_size")
OUT = ("task", "max_output_tokens")
FOUR_BIT = "transformers.engine_params.load_in_4bit"
DTYPE = ("transformers", "engine_params", "dtype")


def test_axes_multiply_and_the_last_one_is_fastest() -> None:
    body = "sweep:\n  task.max_output_tokens: [8, 16]\n  task.random_seed: [1, 2, 3]\n"
    assert values(body, *OUT) == [8, 8, 8, 16, 16, 16]
    assert values(body, "task", "random_seed") == [1, 2, 3, 1, 2, 3]


def test_a_scalar_is_an_axis_of_one() -> None:
    assert values("sweep:\n  task.max_output_tokens: 8\n", *OUT) == [8]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("{min: 1, max: 5, num: 3}", [1, 3, 5]),
        ("{log: {min: 1, max: 100, num: 3}}", [1, 10, 100]),
        ("{pow2: {min: 3, max: 40}}", [4, 8, 16, 32]),
    ],
)
def test_ranges_stand_for_lists(axis: str, expected: list[int]) -> None:
    assert values(f"sweep:\n  task.max_output_tokens: {axis}\n", *OUT) == expected


def test_a_bad_range_names_its_axis() -> None:
    text = report("sweep:\n  task.max_output_tokens: {min: 9, max: 1, num: 3}\n")
    assert text.startswith(
        "study.yaml:5:27: sweep.task.max_output_tokens: sweep axis 'task.max_output_tokens': min 9"
    )


def test_a_group_is_the_union_of_its_variants_crossed_with_axes() -> None:
    body = (
        "sweep:\n  task.random_seed: [1, 2]\n  g:\n  - {task.max_output_tokens: 8}\n"
        "  - {task.max_output_tokens: 16, transformers.engine_params.dtype: float16}\n"
    )
    assert values(body, *OUT) == [8, 8, 16, 16]
    assert values(body, *DTYPE) == [None, None, "float16", "float16"]
    assert values(body, "task", "random_seed") == [1, 2, 1, 2]


def test_groups_are_crossed_with_each_other() -> None:
    first = "  a: [{task.random_seed: 1}, {task.random_seed: 2}]\n"
    body = f"sweep:\n{first}  b: [{{task.max_output_tokens: 8}}, {{}}]\n"
    assert values(body, *OUT) == [8, 256, 8, 256]


def test_the_empty_variant_changes_nothing() -> None:
    assert values("sweep:\n  g: [{}, {task.max_output_tokens: 8}]\n", *OUT) == [256, 8]


def test_a_list_in_a_variant_is_a_small_grid() -> None:
    body = "sweep:\n  g:\n  - {task.max_output_tokens: [8, 16], task.random_seed: [1, 2]}\n  - {}\n"
    assert values(body, *OUT) == [8, 8, 16, 16, 256]


def test_a_list_in_a_list_is_that_list() -> None:
    body = "sweep:\n  g:\n  - {vllm.engine_params.cudagraph_capture_sizes: [[0, 1]]}\n"
    assert values(body, "vllm", "engine_params", "cudagraph_capture_sizes") == [[0, 1]]
    axis = "sweep:\n  vllm.engine_params.cudagraph_capture_sizes: [[0, 1], [2]]\n"
    assert values(axis, "vllm", "engine_params", "cudagraph_capture_sizes") == [[0, 1], [2]]


def test_groups_win_over_axes() -> None:
    body = "sweep:\n  task.max_output_tokens: [8]\n  g: [{task.max_output_tokens: 16}]\n"
    assert values(body, *OUT) == [16]


def test_a_variant_may_be_nested() -> None:
    body = "sweep:\n  g: [{transformers: {engine_params: {dtype: float16}}}, {}]\nengine: transformers\n"
    assert values(body, *DTYPE) == ["float16", None]


def test_a_list_of_mappings_and_scalars_is_refused() -> None:
    assert "'g' mixes mappings and plain values" in report("sweep:\n  g: [{}, 3]\n")


def test_a_group_named_like_an_axis_is_refused() -> None:
    text = report("sweep:\n  task.max_output_tokens: [{task.random_seed: 1}]\n")
    assert "the group 'task.max_output_tokens' is named like a key that can be an axis" in text


def test_the_same_axis_by_its_older_name_is_refused() -> None:
    body = "sweep:\n  pytorch.engine_params.dtype: [float16]\n  transformers.engine_params.dtype: [float32]\n"
    assert "is the same key as 'pytorch.engine_params.dtype'; keep one of them" in report(body)


def test_empty_axes_and_lists_are_refused() -> None:
    assert "the axis 'task.random_seed' is empty" in report("sweep:\n  task.random_seed: []\n")
    assert "the list of 'task.random_seed' is empty" in report("sweep:\n  g: [{task.random_seed: []}]\n")
    assert "is empty" in report("sweep:\n  engine: []\n")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("task.max_output_token", "Did you mean 'task.max_output_tokens'?"),
        ("tsk.model", "Did you mean 'task.model'?"),
        ("max_output_tokens", "it is task.max_output_tokens"),
        ("cv_threshold", "Did you mean 'offline.warmup.cv_threshold'?"),
        ("study_execution.n_cycles", "belongs to the whole study and cannot be swept"),
        ("task.model.name", "'task.model' holds a value, it has no key 'name'"),
        ("transformers.dtype", "it is transformers.engine_params.dtype"),
        ("task", "found 1 (whole number) for the section 'task'; sweep one of its keys"),
        ("transformers.engine_params.", "it has no key ''"),
    ],
)
def test_a_wrong_axis_is_told_once_with_what_was_meant(key: str, expected: str) -> None:
    lines = report(f"sweep:\n  {key}: [1]\n").splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


def test_each_value_of_an_axis_is_checked_where_it_stands() -> None:
    text = report("sweep:\n  task.max_output_tokens: [8, many, 0]\n")
    assert "study.yaml:5:31: sweep.task.max_output_tokens[1]: found 'many' (text)" in text
    assert "study.yaml:5:37: sweep.task.max_output_tokens[2]: found 0" in text


def test_keys_of_an_engine_apply_to_that_engine_only() -> None:
    body = (
        "engine: [transformers, vllm]\nsweep:\n  task.random_seed: [1, 2]\n"
        "  vllm.engine_params.max_num_seqs: [8, 16, 32]\n"
    )
    engines = [e.engine for e in study(body).experiments]
    assert engines == ["transformers"] * 2 + ["vllm"] * 6
    assert all("vllm" not in e.config for e in study(body).experiments if e.engine == "transformers")


def test_an_engine_without_scoped_axes_gets_its_one_point() -> None:
    body = "engine: [vllm, transformers]\nsweep:\n  vllm.engine_params.max_num_seqs: [8, 16]\n"
    assert [e.engine for e in study(body).experiments] == ["vllm", "vllm", "transformers"]


def test_engines_are_those_of_the_scopes_plus_one_written_explicitly() -> None:
    scoped = "sweep:\n  vllm.engine_params.max_num_seqs: [8]\n  tensorrt.engine_params.max_batch_size: [8]\n"
    assert [e.engine for e in study(scoped).experiments] == ["tensorrt", "vllm"]
    explicit = "engine: transformers\n" + scoped
    assert [e.engine for e in study(explicit).experiments] == ["tensorrt", "transformers", "vllm"]


def test_the_default_engine_is_not_one_written_explicitly() -> None:
    assert [e.engine for e in study("sweep:\n  vllm.engine_params.max_num_seqs: [8]\n").experiments] == [
        "vllm"
    ]


def test_an_engine_axis_is_a_list_of_engines() -> None:
    assert [e.engine for e in study("sweep:\n  engine: [vllm, pytorch]\n").experiments] == [
        "vllm",
        "transformers",
    ]


def test_a_variant_of_another_engine_is_not_for_this_one() -> None:
    body = (
        "engine: [transformers, vllm]\nsweep:\n  quant:\n"
        f"  - {{vllm.engine_params.quantization: awq}}\n  - {{{FOUR_BIT}: true}}\n  - {{}}\n"
    )
    assert [e.engine for e in study(body).experiments] == ["transformers"] * 2 + ["vllm"] * 2


def test_a_variant_may_choose_the_engine() -> None:
    one = "{engine: vllm, vllm.engine_params.max_num_seqs: 8}"
    body = f"sweep:\n  setup:\n  - {one}\n  - {{engine: transformers}}\n"
    assert [e.engine for e in study(body).experiments] == ["transformers", "vllm"]


def test_experiments_come_after_the_sweep_and_merge_deeply() -> None:
    body = (
        "offline: {warmup: {n_prompts: 3, enabled: true}}\nsweep:\n  task.random_seed: [1]\n"
        "experiments:\n- {offline: {warmup: {n_prompts: 4}}}\n"
    )
    found = study(body).experiments
    assert [e.config["offline"]["warmup"]["n_prompts"] for e in found] == [3, 4]
    assert found[1].config["task"]["model"] == "org/model"


def test_without_a_sweep_there_is_no_phantom_baseline() -> None:
    assert len(study("experiments: [{task: {random_seed: 1}}]\n").experiments) == 1
    assert len(study("sweep: {}\nexperiments: [{task: {random_seed: 1}}]\n").experiments) == 1
    assert len(study("sweep: null\nexperiments: null\n").experiments) == 1


def test_a_file_without_sweep_and_experiments_is_one_experiment_per_engine() -> None:
    assert len(study().experiments) == 1
    assert [e.engine for e in study("engine: [vllm, transformers]\n").experiments] == ["vllm", "transformers"]


def test_runners_images_and_output_are_allowed_in_a_single_experiment() -> None:
    found = study(
        "runners: {transformers: docker}\nimages: {transformers: my/img}\noutput: {save_timeseries: true}\n"
    )
    assert (found.experiments[0].runner, found.experiments[0].image) == ("container", "my/img")


def test_a_swept_model_needs_no_fixed_one() -> None:
    head = "serving_mode: offline\n"
    assert values("sweep:\n  task.model: [a, b]\n", "task", "model", head=head) == ["a", "b"]


def test_an_absurd_sweep_is_refused_before_it_is_built() -> None:
    axes = "".join(
        f"  task.{key}: {{min: 1, max: 90000, num: 90000}}\n" for key in ("random_seed", "max_output_tokens")
    )
    assert "the sweep has 8,100,000,000 points; at most 200,000; drop an axis" in report("sweep:\n" + axes)


def test_an_absurd_variant_is_refused_before_it_is_built() -> None:
    keys = ", ".join(f"transformers.engine_params.k{n}: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]" for n in range(8))
    assert "this variant is a grid of 100,000,000 points" in report(f"sweep:\n  g: [{{{keys}}}]\n")


def test_an_axis_of_an_engine_that_is_not_listed_is_told() -> None:
    found = study("engine: [transformers, tensorrt]\nsweep:\n  vllm.engine_params.max_num_seqs: [8]\n")
    assert "line 6: vllm.engine_params.max_num_seqs is not used: vllm is not in engine:" in map(
        str, found.warnings
    )


def test_a_sweep_of_parts_of_an_optional_section_works() -> None:
    head = HEAD.replace("offline", "server") + "engine: vllm\n"
    body = "server: {traffic: {rate: 1}}\nsweep:\n  server.traffic.rate: [2, 10]\n"
    assert values(body, "server", "traffic", "rate", head=head) == [2, 10]


def test_short_ranges_do_not_stand_for_more_values_than_the_memory_has() -> None:
    axes = "".join(
        f"  vllm.engine_params.k{each}: {{min: 1, max: 100000, num: 100000}}\n" for each in range(2000)
    )
    assert "the sweep has too many values; at most 200,000 in all" in report("sweep:\n" + axes)
    grid = f"{{task.random_seed: {list(range(400))}, task.max_output_tokens: {list(range(1, 401))}}}"
    assert "the sweep has too many values" in report(f"sweep:\n  seeds: [{grid}, {grid}, {grid}]\n")
