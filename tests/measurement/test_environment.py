from __future__ import annotations

import json
import platform

import pytest

from llem_airflow.measurement.engines.contract import EngineFacts
from llem_airflow.measurement.environment import environment, settings
from llem_airflow.measurement.output import anchor


def test_it_holds_what_decides_comparability_and_nothing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_API_KEY", "do-not-tell")
    monkeypatch.setenv("HF_TOKEN", "do-not-tell")
    facts = EngineFacts("1.2", {"n_parameters": 5}, ("pytest", "no-such-library"), {"dtype": "float32"})
    gpus = [{"uuid": "GPU-a", "driver_version": "580.1"}]
    found = environment(
        engine="scripted", facts=facts, settings=settings(), gpus=gpus, gpus_after=gpus, anchors=[anchor()]
    )
    assert found["python"] == platform.python_version()
    assert found["settings"]["OMP_NUM_THREADS"] == "3"
    assert "do-not-tell" not in json.dumps(found)
    assert found["libraries"]["pytest"] is not None
    assert found["libraries"]["no-such-library"] is None
    assert found["driver"] == "580.1"
    assert found["cpu"]["count"] >= 1
    assert found["image_digest"] is None


def test_before_the_engine_is_loaded_its_part_is_absent() -> None:
    found = environment(
        engine="scripted", facts=None, settings={}, gpus=[], gpus_after=[], anchors=[anchor()]
    )
    assert found["engine_version"] is None
    assert found["model"] is None
    assert found["driver"] is None


def test_an_anchor_places_the_monotonic_clock_in_absolute_time() -> None:
    one, other = anchor(), anchor()
    drift_ns = (other.epoch_ns - one.epoch_ns) - (other.mono_ns - one.mono_ns)
    assert abs(drift_ns) < 1_000_000_000
