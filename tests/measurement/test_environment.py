from __future__ import annotations

import json
import os
import platform
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement import environment as environment_module
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


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("150000 100000", 1.5),
        ("max 100000", None),
        ("-1 100000", None),
        ("None 100000", None),
        ("7", None),
        ("50000 max", None),
    ],
)
def test_the_cpus_of_a_cgroup(quota: str, cpus: float | None) -> None:
    assert environment_module._cpus(quota) == cpus


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max", None), (None, None), ("4096", 4096), (str(2**60), 2**60), (str(2**60 + 1), None)],
)
def test_the_memory_limit_of_a_cgroup(text: str | None, limit: int | None) -> None:
    """Version 1 writes "unlimited" as a number close to 2**63."""
    assert environment_module._limit_bytes(text) == limit


@pytest.mark.parametrize(
    "name",
    [
        *(
            "OMP_X",
            "KMP_X",
            "GOMP_X",
            "MKL_X",
            "OPENBLAS_X",
            "CUDA_X",
            "NVIDIA_X",
            "PYTORCH_X",
            "TORCHX",
            "NCCL_X",
        ),
        *("VLLM_X", "TLLM_X", "TRTLLM_X", "TOKENIZERS_X", "HF_HUB_OFFLINE", "TRANSFORMERS_X", "FLASHINFER_X"),
        *("TRITON_X", "MALLOC_X", "LD_PRELOAD", "LLEM_IMAGE_X"),
    ],
)
def test_a_variable_that_changes_how_an_engine_runs_is_kept(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv(f"MY_{name}", "1")
    assert settings()[name] == "1"
    assert f"MY_{name}" not in settings()


def test_every_part_of_an_environment_is_what_the_machine_says() -> None:
    facts = EngineFacts("1.2", {"n_parameters": 5}, (), {"dtype": "float32"})
    one = anchor()
    while True:  # the load is averaged anew every five seconds
        before = os.getloadavg()
        found = environment(
            engine="scripted",
            facts=facts,
            settings={"OMP_X": "1"},
            gpus=[{"uuid": "GPU-a"}, {"uuid": "GPU-b", "driver_version": "580.1"}],
            gpus_after=[{"uuid": "GPU-a"}],
            anchors=[one],
        )
        if os.getloadavg() == before:
            break
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    assert found == {
        "schema_version": 1,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()) or None,
        "cpu": {
            "model": model[1].strip() if model else None,
            "count": os.cpu_count(),
            "usable": len(os.sched_getaffinity(0)),
            "governor": found["cpu"]["governor"],
            "load_average_1min": before[0],
        },
        "memory_total_bytes": int(meminfo["MemTotal"].split()[0]) * 1024,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "time_namespace_offsets": found["time_namespace_offsets"],
        "cgroup": found["cgroup"],
        "engine": "scripted",
        "engine_version": "1.2",
        "engine_settings": {"dtype": "float32"},
        "libraries": {},
        "cuda": found["cuda"],
        "gpus": [{"uuid": "GPU-a"}, {"uuid": "GPU-b", "driver_version": "580.1"}],
        "gpus_after": [{"uuid": "GPU-a"}],
        "driver": "580.1",
        "model": {"n_parameters": 5},
        "settings": {"OMP_X": "1"},
        "anchors": [{"mono_ns": one.mono_ns, "epoch_ns": one.epoch_ns}],
        "image": None,
        "image_digest": None,
    }
    assert set(found["cgroup"]) == {"cpus", "memory_bytes"}


@pytest.mark.parametrize(
    ("available", "told"),
    [
        (True, {"available": True, "version": "12.8", "cudnn": 91_000}),
        (False, {"available": False, "version": "12.8", "cudnn": None}),
    ],
)
def test_cuda_is_what_the_engines_torch_says(
    monkeypatch: pytest.MonkeyPatch, available: bool, told: dict[str, Any]
) -> None:
    torch: Any = types.SimpleNamespace(
        cuda=types.SimpleNamespace(is_available=lambda: available),
        version=types.SimpleNamespace(cuda="12.8"),
        backends=types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: 91_000)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment_module._cuda() == told
    monkeypatch.delitem(sys.modules, "torch")
    assert environment_module._cuda() == {"available": None, "version": None, "cudnn": None}
