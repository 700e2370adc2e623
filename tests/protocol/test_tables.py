"""What the protocol fixes by name, once more: a name that is lost or moved makes files of two sides different."""

from __future__ import annotations

from collections.abc import Callable

import pynvml
import pytest

from llem_airflow.protocol import PROTOCOL_VERSION, files, gpus
from llem_airflow.protocol.failure_texts import LIBRARIES, first
from llem_airflow.protocol.failures import (
    CATEGORIES,
    RESUME_VARIABLE,
    Category,
    advice,
    category_of,
    how_to_rerun,
    is_refusal,
    raised_in,
)
from llem_airflow.protocol.result import ERROR_CATEGORIES, Window
from llem_airflow.protocol.spec import METER_KINDS

CHOSEN: list[tuple[Callable[[Category], bool], set[str]]] = [
    (
        lambda one: one.retryable,
        {
            *(
                "gpu_unavailable",
                "timeout_silence",
                "timeout_gpu_idle",
                "daemon_down",
                "disk_full",
                "network",
            ),
            *("crash", "killed", "name_conflict", "cancelled", "unknown"),
            *("server_not_ready", "server_died", "port_taken", "window_cut"),
        },
    ),
    (
        lambda one: one.at_once,
        {"gpu_unavailable", "timeout_silence", "timeout_gpu_idle", "crash", "killed", "port_taken"},
    ),
    (
        lambda one: one.by_study,
        {
            *(
                "out_of_memory_gpu",
                "out_of_memory_host",
                "timeout_wall_clock",
                "model_missing",
                "engine_missing",
            ),
            *("config", "meter_unavailable", "server_errors", "client_limit"),
        },
    ),
    (
        lambda one: one.outside_only,
        {
            *("image_pull", "image_config", "timeout_silence", "timeout_gpu_idle", "daemon_down", "crash"),
            *("killed", "name_conflict", "cancelled", "unknown", "session_unhealthy"),
        },
    ),
]


NAMES = {"gpu_access", "driver_mismatch", "permission", "model_access"}.union(*(names for _, names in CHOSEN))


@pytest.mark.parametrize(
    ("property_of", "names"), CHOSEN, ids=["retryable", "at_once", "by_study", "outside"]
)
def test_the_table_of_failures(property_of: Callable[[Category], bool], names: set[str]) -> None:
    assert {name for name in NAMES if property_of(CATEGORIES[name])} == names


def test_an_error_file_may_use_its_own_words_for_some_categories() -> None:
    words = {
        "bad_parameter": "config",
        "model_gated": "model_access",
        "timeout": "timeout_wall_clock",
        "tokenizer_missing": "model_missing",
    }
    assert {word: category_of(word) for word in words} == words
    assert {category_of(name) for name in CATEGORIES} == set(CATEGORIES)
    assert (category_of(None), category_of(""), category_of("a new one")) == (None, None, None)
    inside = {name for name, category in CATEGORIES.items() if not category.outside_only}
    assert list(ERROR_CATEGORIES) == sorted(inside | set(words))


def test_advice_is_a_sentence() -> None:
    assert advice("give it more") == "Give it more."
    assert advice("") == "."


def test_how_to_rerun_is_by_clearing_or_by_the_command_of_who_has_no_airflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert RESUME_VARIABLE == "LLEM_RESUME_COMMAND"
    monkeypatch.delenv(RESUME_VARIABLE, raising=False)
    assert (how_to_rerun(), how_to_rerun("it")) == ("clear the failed tasks", "clear it")
    monkeypatch.setenv(RESUME_VARIABLE, "llem-airflow run x")
    assert how_to_rerun("it") == "run `llem-airflow run x`"


@pytest.mark.parametrize("refused", ["ValueError", "TypeError", "NotImplementedError"])
def test_what_a_library_raises_for_an_argument_is_a_refusal_and_what_we_raise_is_not(refused: str) -> None:
    assert is_refusal(refused, "/site-packages/vllm/config.py")
    assert is_refusal(refused, None)
    assert not is_refusal(refused, "/src/llem_airflow/measurement/attempt.py")
    assert not is_refusal(refused, "/run/llem/llem.pyz/llem_airflow/x.py")
    assert not is_refusal("UnicodeDecodeError", "/site-packages/vllm/config.py")


def test_the_last_frame_of_a_traceback_raised_it() -> None:
    text = (
        'Traceback:\n  File "/a.py", line 1, in f\n    g()\n  File "/b.py", line 20, in g\nValueError: no\n'
    )
    assert raised_in(text) == "/b.py"
    assert raised_in("ValueError: no") is None


@pytest.mark.parametrize(
    "said",
    [
        *(
            "avoid",
            "avoids",
            "avoiding",
            "prevent",
            "prevents",
            "preventing",
            "if",
            "when",
            "on",
            "for",
            "against",
        ),
        *(
            "handle",
            "handles",
            "handling",
            "check",
            "checks",
            "checking",
            "detect",
            "detecting",
            "about",
            "no",
        ),
        *("never", "of", "a", "without", "reduce", "run", "runs", "running", "test", "tests", "testing"),
        *("catch", "catches"),
    ],
)
def test_advice_about_memory_is_no_failure(said: str) -> None:
    assert first(LIBRARIES, f"INFO: {said} CUDA out of memory") is None
    assert first(LIBRARIES, f"INFO: {said} OutOfMemoryError") is None
    found = first(LIBRARIES, f"INFO: {said}, CUDA out of memory")
    assert found is not None
    assert found.category == "out_of_memory_gpu"


def test_the_streams_of_an_attempt_have_these_columns() -> None:
    assert (
        *("t_before_mono_ns", "t_after_mono_ns", "gpu", "power_instant_mw", "power_average_mw", "energy_mj"),
        *("sm_clock_mhz", "mem_clock_mhz", "event_reasons", "temperature_c", "mem_temperature_c"),
        *("utilisation_percent", "memory_used_bytes", "error"),
    ) == files.POWER_COLUMNS
    assert (
        *("import", "load", "baseline_check", "baseline_bare", "baseline_context", "baseline_loaded"),
        *("warmup", "ramp", "measure", "drain", "cooldown"),
    ) == files.PHASES
    kinds = {"phase_begin", "phase_end", "iteration", "progress", "counter_tick", "baselines_reused", "note"}
    assert kinds == set(files.EVENT_KINDS)
    assert {
        *("request_id", "phase", "iteration", "prompt_index", "batch_size", "input_tokens", "output_tokens"),
        *("t_submit_mono_ns", "t_first_mono_ns", "t_last_mono_ns", "token_mono_ns", "output_token_ids"),
        "finish_reason",
    } == set(files.REQUEST_FIELDS)
    assert set(files.SERVED_FIELDS) == {
        *(
            "t_due_mono_ns",
            "t_end_mono_ns",
            "status",
            "chunk_tokens",
            "error_class",
            "http_status",
            "error_text",
        ),
    }
    assert (
        *("t_mono_ns", "running", "waiting", "kv_cache_usage_ratio", "preemptions", "prompt_tokens"),
        "generation_tokens",
    ) == files.SERVER_COLUMNS


def test_what_a_board_says_is_a_condition_or_of_the_moment() -> None:
    assert (
        *(
            "uuid",
            "name",
            "driver_version",
            "power_limit_w",
            "enforced_power_limit_w",
            "ecc_mode",
            "mig_mode",
        ),
        "persistence_mode",
    ) == gpus.BOARD_CONDITIONS
    assert gpus.BOARD_STATE == ("performance_state", "memory_used_bytes", "temperature_c", "processes")


def test_version_and_meters_are_what_files_say() -> None:
    assert PROTOCOL_VERSION == 1
    assert METER_KINDS == ("auto", "nvml", "amdsmi", "rapl", "cpu-estimate", "none")


def test_clock_event_reasons_have_the_bits_of_nvml() -> None:
    assert set(gpus.SLOWDOWNS) == {
        pynvml.nvmlClocksEventReasonHwSlowdown,
        pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    }
    assert gpus.SLOWDOWNS[pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown] == "power brake"
    assert pynvml.nvmlClocksEventReasonSwPowerCap == gpus.POWER_CAP_BIT


def test_a_window_lasts_as_many_seconds_as_its_clock_says() -> None:
    assert Window(5, 10_000_000_005, 1, 1, 1, 1).duration_s == 10.0
