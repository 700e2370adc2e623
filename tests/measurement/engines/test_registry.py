from __future__ import annotations

import os

import pytest

from llem_airflow.measurement.engines.contract import ENGINES, QUIET_ENVIRONMENT, engine_names, open_engine
from llem_airflow.measurement.failure import MeasurementError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*QUIET_ENVIRONMENT, "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "x")  # put back at the end
        monkeypatch.delenv(name)
    monkeypatch.setitem(ENGINES, "counter", "collections:Counter")
    monkeypatch.setitem(ENGINES, "lost", "no_such_library_at_all.engine:Engine")


def test_an_engine_is_made_by_its_name_and_told_to_be_quiet() -> None:
    assert type(open_engine("counter", offline=False)).__name__ == "Counter"
    assert {name: os.environ[name] for name in QUIET_ENVIRONMENT} == QUIET_ENVIRONMENT
    assert "HF_HUB_OFFLINE" not in os.environ
    assert {
        *("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM"),
        *("TRANSFORMERS_NO_ADVISORY_WARNINGS", "TRANSFORMERS_VERBOSITY", "VLLM_NO_USAGE_STATS"),
    } == set(QUIET_ENVIRONMENT)


def test_a_model_at_hand_needs_no_look_at_the_hub_and_the_user_s_own_settings_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    open_engine("counter", offline=True)
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_VERBOSITY"]) == ("1", "debug")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    open_engine("counter", offline=True)
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_an_engine_that_is_not_there_or_not_known_is_told() -> None:
    with pytest.raises(
        MeasurementError, match="module 'no_such_library_at_all' is not in this image"
    ) as lost:
        open_engine("lost", offline=False)
    with pytest.raises(
        MeasurementError, match="'nobody' is not known; engines here: transformers, vllm"
    ) as nobody:
        open_engine("nobody", offline=False)
    assert (lost.value.category, nobody.value.category) == ("engine_missing", "engine_missing")


def test_ours_come_first() -> None:
    assert engine_names()[:3] == ("transformers", "vllm", "tensorrt")
