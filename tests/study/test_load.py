"""What a study file comes to: names, sections, runners, GPUs, inheritance, the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.study import GpuRequest, StudyFileError, load_study, load_study_text
from llem_airflow.study.config.study import PrecisionTarget
from tests.study.texts import HEAD, report, study

SEEDS = "sweep:\n  task.random_seed: [1, 2]\n"


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_study_is_named_by_its_key_else_by_its_file(tmp_path: Path) -> None:
    assert load_study(_write(tmp_path, "night ly.yaml", HEAD)).name == "night-ly"
    assert load_study(_write(tmp_path, "a.yaml", HEAD + "study_name: other\n")).name == "other"
    assert load_study_text(HEAD).name == "text"


def test_a_study_keeps_its_text_path_and_folder(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.yaml", HEAD)
    found = load_study(path)
    assert (found.path, found.folder, found.text) == (path, tmp_path, HEAD)
    assert study().path is None


def test_the_plan_counts_the_funnel() -> None:
    plan = study(SEEDS + "study_execution: {n_cycles: 3}\n").plan
    assert (plan.declared, plan.valid, len(plan.experiments), plan.cycles, len(plan.planned_cycles)) == (
        2,
        2,
        2,
        3,
        6,
    )
    assert [run.position for run in plan.planned_cycles] == list(range(6))
    assert {run.experiment_id for run in plan.planned_cycles} == {e.id for e in plan.experiments}


def test_the_json_of_a_plan_has_its_documented_keys() -> None:
    plan = study(SEEDS + "study_execution: {n_cycles: 1}\n").plan.to_json()
    assert list(plan) == [
        "format", "declared", "skipped", "valid", "unique", "cycles", "runs", "experiments", "order", "gaps",
        "duplicates", "wall_clock_s", "gpus", "notices",
    ]  # fmt: skip
    assert list(plan["experiments"][0]) == ["id", "slug", "hash", "engine", "config", "runner", "image"]
    assert plan["runs"] == len(plan["order"]) == len(plan["gaps"]) == 2


def test_the_wall_time_bound_holds_pauses_and_the_longest_life_of_every_attempt() -> None:
    body = (
        SEEDS + "study_execution: {n_cycles: 1, experiment_timeout_seconds: 100, experiment_gap_seconds: 7}\n"
    )
    assert study(body).plan.wall_clock_s == 207
    limited = body.replace("experiment_gap", "wall_clock_timeout_hours: 0.01, experiment_gap")
    assert study(limited).plan.wall_clock_s == pytest.approx(36)


def test_execution_has_the_defaults_of_the_grammar() -> None:
    found = study().execution
    assert (found.n_cycles, found.experiment_order, found.experiment_timeout_s, found.silence_s) == (
        3,
        "sequential",
        600,
        300,
    )
    assert (found.precision_target, found.allow_missing_cycles, found.deduplicate_equivalent) == (
        None,
        False,
        True,
    )


def test_silence_of_zero_is_no_limit() -> None:
    body = "study_execution: {stdout_silence_timeout_seconds: 0}\n"
    assert study(body).experiments[0].silence_s is None


def test_a_precision_target_plans_the_most_cycles_and_tells_so() -> None:
    found = study("study_execution: {precision_target: {max_cycles: 8, min_cycles: 3}}\n")
    assert found.execution.precision_target == PrecisionTarget(
        relative_half_width=0.02, min_cycles=3, max_cycles=8
    )
    assert found.cycles == 8
    assert "3 to 8 cycles: the plan shows the most" in str(found.warnings[0])


def test_the_airflow_section_has_defaults_and_reads_durations() -> None:
    plain = study().airflow
    assert (plain.dag_id, plain.schedule, plain.retries, plain.retry_delay_s, plain.max_active_cycles) == (
        None,
        None,
        2,
        60,
        1,
    )
    body = (
        "airflow: {dag_id: d, schedule: '0 2 * * *', start_date: 2026-01-01, tags: [a], owner: me, "
        "retries: 0, retry_delay: 1.5h, pool: p, priority: 3, catchup: true}\n"
    )
    found = study(body).airflow
    assert (found.retry_delay_s, found.tags, found.start_date, found.priority) == (
        5400,
        ["a"],
        "2026-01-01",
        3,
    )


def test_versions_are_read_in_order() -> None:
    found = study(
        "versions:\n- {name: v1, model: m, revision: a, released: 2026-03-01}\n- {name: v2}\n"
    ).versions
    assert [(v.name, v.model, v.revision, v.released) for v in found] == [
        ("v1", "m", "a", "2026-03-01"),
        ("v2", None, None, None),
    ]


def test_versions_of_the_same_name_are_a_problem() -> None:
    assert "study.yaml:4:31: versions[1].name: 'v1' is there twice; give each its own" in report(
        "versions: [{name: v1}, {name: v1}]\n"
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", ("auto", None)),
        ("runners: {transformers: process}\n", ("process", None)),
        ("runners: {pytorch: local}\n", ("process", None)),
        ("runners: {transformers: docker}\n", ("container", None)),
        ("runners: {transformers: 'container:my/img:1'}\n", ("container", "my/img:1")),
        ("runners: {transformers: 'docker:my/img:1'}\n", ("container", "my/img:1")),
        ("runners: {transformers: 'container:a'}\nimages: {transformers: b}\n", ("container", "b")),
        ("images: {transformers: b}\n", ("auto", "b")),
        ("runners: {vllm: docker}\n", ("auto", None)),
    ],
)
def test_runner_and_image_are_per_engine_with_the_older_names(
    body: str, expected: tuple[str, str | None]
) -> None:
    experiment = study(body).experiments[0]
    assert (experiment.runner, experiment.image) == expected


def test_mixed_runners_are_told() -> None:
    found = study("engine: [vllm, transformers]\nrunners: {vllm: container, transformers: process}\n")
    assert [notice.code for notice in found.warnings] == ["mixed-runners"]


@pytest.mark.parametrize(
    ("meter", "count"), [("auto", None), ("nvml", None), ("rapl", 0), ("cpu-estimate", 0), ("none", 0)]
)
def test_gpus_follow_from_the_meter_when_nothing_is_said(meter: str, count: int | None) -> None:
    found = study(head=HEAD.replace("cpu-estimate", meter))
    assert found.experiments[0].gpus == GpuRequest(count=count)
    assert found.plan.gpus == count


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("gpus: {}\n", GpuRequest(1)),
        (
            "gpus: {count: 2, kind: mig, memory_gb: 10, exclusive: host}\n",
            GpuRequest(2, "mig", (), 10, "host"),
        ),
        ("gpus: {ids: ['0', GPU-1]}\n", GpuRequest(2, "any", ("0", "GPU-1"))),
        ("study_execution: {gpu_indices: [0, 2]}\n", GpuRequest(2, "any", ("0", "2"))),
        (
            "engine: vllm\nvllm: {engine_params: {tensor_parallel_size: 2, pipeline_parallel_size: 2}}\n",
            GpuRequest(4),
        ),
    ],
)
def test_gpus_are_what_the_study_asks_for(body: str, expected: GpuRequest) -> None:
    assert study(body).experiments[0].gpus == expected


def test_gpus_can_be_swept() -> None:
    found = study("gpus: {kind: full}\nsweep:\n  gpus.count: [1, 2]\n")
    assert [e.gpus.count for e in found.experiments] == [1, 2]
    assert {e.gpus.kind for e in found.experiments} == {"full"}


def test_a_preset_fills_what_is_not_written() -> None:
    body = "sampling_preset: creative\ntransformers: {sampling_params: {top_p: 0.5}}\n"
    assert study(body).experiments[0].config["transformers"]["sampling_params"] == {
        "temperature": 0.8, "top_p": 0.5, "repetition_penalty": 1.1, "do_sample": True,
    }  # fmt: skip


def test_presets_can_be_swept() -> None:
    found = study("sweep:\n  sampling_preset: [deterministic, standard]\n").experiments
    assert [e.config["transformers"]["sampling_params"]["do_sample"] for e in found] == [False, True]


@pytest.mark.parametrize(
    ("warmup", "convergence"),
    [("{}", True), ("{n_prompts: 3}", False), ("{n_prompts: 3, convergence_detection: true}", True)],
)
def test_a_warmup_is_of_fixed_length_only_when_its_length_is_written(warmup: str, convergence: bool) -> None:
    found = study(f"offline: {{warmup: {warmup}}}\n").experiments[0].config["offline"]["warmup"]
    assert found["convergence_detection"] is convergence


def test_a_config_has_the_sections_that_others_read() -> None:
    config = study().experiments[0].config
    assert {"engine", "serving_mode", "task", "measurement", "offline", "transformers"} <= set(config)
    assert "server" not in config
    assert "vllm" not in config


def test_base_is_inherited_and_its_study_keys_are_ignored(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "base.yaml",
        HEAD + "study_name: no\nstudy_execution: {n_cycles: 9}\nsweep: {nonsense: 1}\nengine: vllm\n",
    )
    found = load_study(_write(tmp_path, "s.yaml", "base: base.yaml\ntask: {max_output_tokens: 5}\n"))
    assert (found.name, found.cycles, found.experiments[0].engine) == ("s", 3, "vllm")
    assert found.experiments[0].config["task"]["max_output_tokens"] == 5
    assert found.experiments[0].model == "org/model"
    assert "line 2: task.model come from the base file 'base.yaml'" in [str(n) for n in found.warnings]


def test_a_missing_base_is_a_problem_at_its_key(tmp_path: Path) -> None:
    path = _write(tmp_path, "s.yaml", "base: none.yaml\n" + HEAD)
    with pytest.raises(
        StudyFileError, match=r"s.yaml:1:7: base: the base file 'none.yaml' does not exist; paths are"
    ):
        load_study(path)


def test_problems_of_the_base_are_told_with_its_own_lines(tmp_path: Path) -> None:
    _write(tmp_path, "base.yaml", "task:\n  modle: m\n")
    with pytest.raises(StudyFileError, match=r"base.yaml:2:3: task.modle: unknown key 'modle'; .*'model'"):
        load_study(_write(tmp_path, "s.yaml", "base: base.yaml\nserving_mode: offline\n"))


def test_a_text_has_no_folder_for_a_relative_base() -> None:
    assert "a study that is not a file needs an absolute path" in report("base: b.yaml\n")


def test_a_base_that_is_its_own_base_does_no_harm(tmp_path: Path) -> None:
    assert len(load_study(_write(tmp_path, "s.yaml", HEAD + "base: s.yaml\n")).experiments) == 1


@pytest.mark.parametrize(("count", "word"), [(101, "large"), (501, "very large"), (2001, "extremely large")])
def test_large_studies_are_told(count: int, word: str) -> None:
    found = study(f"sweep:\n  task.random_seed: {{min: 1, max: {count}, num: {count}}}\n")
    assert str(found.warnings[0]).startswith(f"{word} study: {count:,} experiments")


def test_one_hundred_experiments_are_not_worth_a_word() -> None:
    assert study("sweep:\n  task.random_seed: {min: 1, max: 100, num: 100}\n").warnings == ()


def test_a_sweep_of_which_most_is_skipped_is_told() -> None:
    found = study("sweep:\n  vllm.sampling_params.top_p: [0.5, 2, 3]\n")
    assert [str(n) for n in found.warnings] == ["known not to work: 2 of 3 points; see the rules in the plan"]


def test_unknown_engine_keys_pass_through_and_a_close_one_is_told_with_its_line() -> None:
    found = study("vllm: {engine_params: {gpu_memory_utilisation: 0.5, brand_new: {a: [1]}}}\nengine: vllm\n")
    assert found.experiments[0].config["vllm"]["engine_params"]["brand_new"] == {"a": [1]}
    notice, other = map(str, found.warnings)
    assert other.startswith(
        "line 4: vllm.engine_params.brand_new is not a known key and passes through; an engine"
    )
    assert notice.startswith(
        "line 4: vllm.engine_params.gpu_memory_utilisation is not a known key and passes"
    )
    assert notice.endswith("did you mean 'gpu_memory_utilization'?")


def test_a_section_of_an_engine_that_never_runs_is_told() -> None:
    assert "vllm: is not used: no experiment runs vllm" in str(
        study("vllm: {engine_params: {}}\n").warnings[0]
    )


@pytest.mark.parametrize(
    "body",
    [
        "study_execution: {skip_preflight: true}\n",
        "output: {results_dir: x}\n",
        "output: {save_timeseries: false}\n",
        "study_execution: {shuffle_seed: 7, experiment_order: interleave}\n",
        "study_execution: {max_consecutive_failures: 0, circuit_breaker_cooldown_seconds: 5}\n",
        "airflow: {catchup: true}\n",
        "airflow: {start_date: 2026-01-01}\n",
        "airflow: {timezone: Europe/Berlin}\n",
        "airflow: {retries: 0, retry_delay: 5m}\n",
    ],
)
def test_study_keys_without_effect_are_told(body: str) -> None:
    assert [notice.code for notice in study(body).warnings] == ["no-effect"]


@pytest.mark.parametrize(
    "body",
    [
        "study_execution: {shuffle_seed: 7, experiment_order: shuffle, n_cycles: 3}\n",
        "airflow: {schedule: '@daily', catchup: true, start_date: 2026-01-01, timezone: Europe/Berlin}\n",
        "airflow: {retry_delay: 5m}\n",
        "airflow: {deadline: 6h}\n",
    ],
)
def test_study_keys_with_what_they_need_are_not_told(body: str) -> None:
    assert study(body).warnings == ()


def test_who_asks_to_be_told_of_a_regression_gets_the_defaults_of_the_comparison() -> None:
    found = study("airflow: {notify_on: [regression]}\n").airflow.compared
    assert found is not None
    assert (found.metric, found.threshold_ratio, found.baseline) == (
        "energy_per_output_token_j",
        0.02,
        "previous",
    )
    assert study("airflow: {notify_on: [failure]}\n").airflow.compared is None


def test_null_output_length_is_told() -> None:
    found = study(head=HEAD.replace("org/model", "org/model, max_output_tokens: null"))
    assert "task.max_output_tokens: null is taken as 256" in str(found.warnings[0])
    assert found.experiments[0].config["task"]["max_output_tokens"] == 256


def test_experiments_are_found_by_name() -> None:
    found = study(SEEDS)
    assert found.experiment(found.experiments[1].id) is found.experiments[1]
    with pytest.raises(KeyError, match="has no experiment 'x'; it has transformers-random_seed-1"):
        found.experiment("x")


def test_two_hashes_that_begin_alike_get_longer_ids() -> None:
    from llem_airflow.study.load import _id  # noqa: PLC0415
    from llem_airflow.study.plan.expand import Unique  # noqa: PLC0415  # a private part, for a case of one in 2**32

    taken: set[str] = set()
    one, two = (_id("slug", Unique({}, f"aaaaaaaa0000000{n}", []), taken) for n in range(2))
    assert (one, two) == ("slug-aaaaaaaa", "slug-aaaaaaaa00000001")


@pytest.mark.parametrize(
    ("file", "hashes"),
    [
        ("llem_airflow/example_dags/example_llem.yaml", ["dc6b3970fa590a51", "413f8f34a70d263f"]),
        (
            "llem_airflow/cli/starter.yaml",
            ["a77776bdf9e80e2f", "5259746ad5140415", "d8d1d71cf37798e1", "fa6d28461f2a3716"],
        ),
    ],
)
def test_the_identities_of_the_shipped_studies_stay(file: str, hashes: list[str]) -> None:
    """A default of how often or in what order changes no identity: results of before are found again."""
    root = Path(__file__).parents[2]
    assert [each.hash for each in load_study(root / file).experiments] == hashes


def test_a_value_that_is_none_of_the_allowed_ones_is_told_with_them() -> None:
    text = report("transformers: {engine_params: {dtype: bfloat17}}\n")
    assert (
        "dtype is none that torch has for weights (found 'bfloat17'; allowed: auto, float32, float16" in text
    )


def test_burstiness_tells_that_its_sense_is_not_that_of_vllm() -> None:
    head = "serving_mode: server\nengine: vllm\ntask: {model: m}\n"
    found = study("server: {traffic: {rate: 2, arrival: gamma, burstiness: 0.5}}\n", head=head)
    (told,) = [str(notice) for notice in found.warnings if notice.code == "burstiness"]
    assert "0.5 is the coefficient of variation" in told
    assert told.endswith("would be 4")
