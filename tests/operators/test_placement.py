"""What a container of an experiment is given: caches, the way to the model, shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from docker.types import Mount

from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.operators.host import HostSettings
from llem_airflow.operators.placement import container_settings, hub_secrets
from llem_airflow.operators.settings import LocalModel
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.study import load_study_text

LOCAL = LocalModel(Path("/m"), "/m", "/models/m", "/models/m")
STUDY = """\
study_name: s
serving_mode: offline
study_execution: {{n_cycles: 1}}
engine: {engine}
task: {{model: org/model, dataset: {{source: builtin, n_prompts: 2}}}}
measurement: {{meter: none}}
gpus: {{count: {gpus}}}
images: {{{engine}: image}}
"""


def settings_of(
    engine: str = "vllm", model: LocalModel | None = LOCAL, gpus: int = 1, **kwargs: object
) -> ContainerSettings:
    study = load_study_text(STUDY.format(engine=engine, gpus=gpus), name="s")
    operator = LLEMExperimentOperator(
        task_id="t",
        study=study,
        experiment=study.experiments[0],
        **kwargs,  # type: ignore[arg-type]  # DockerOperator's
    )
    return container_settings(operator, model)


def mounted(settings: ContainerSettings) -> dict[str, Mount]:
    return {mount["Target"]: mount for mount in settings.mounts}


@pytest.mark.parametrize(
    ("engine", "variable", "folder"),
    [
        ("vllm", "VLLM_CACHE_ROOT", "/engine-cache/vllm-65532/vllm"),
        ("vllm", "TORCHINDUCTOR_CACHE_DIR", "/engine-cache/vllm-65532/inductor"),
        ("transformers", "TORCHINDUCTOR_CACHE_DIR", "/engine-cache/transformers-65532/inductor"),
        ("tensorrt", "TLLM_LLMAPI_BUILD_CACHE_ROOT", "/engine-cache/tensorrt-65532/tensorrt-llm"),
    ],
)
def test_what_an_engine_compiles_outlives_its_container(engine: str, variable: str, folder: str) -> None:
    settings = settings_of(engine)
    assert settings.environment[variable] == folder
    volume = mounted(settings)["/engine-cache"]
    assert (volume["Source"], volume["Type"], volume["ReadOnly"]) == ("llem-engine-cache", "volume", False)
    assert [str(cache) for cache in settings.caches] == [f"/engine-cache/{engine}-65532"]


def test_another_user_has_caches_of_its_own_and_the_installation_may_name_another_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__LLEM__ENGINE_CACHE", "/srv/compiled")
    settings = settings_of(user="1000:1000", environment={"TRITON_CACHE_DIR": "/tmp/t"})
    assert settings.environment["VLLM_CACHE_ROOT"] == "/engine-cache/vllm-1000/vllm"
    assert settings.environment["TRITON_CACHE_DIR"] == "/tmp/t"
    assert mounted(settings)["/engine-cache"]["Type"] == "bind"


def test_a_model_of_the_hub_gets_network_cache_endpoint_and_a_private_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    settings = settings_of(model=None)
    assert settings.network_mode == "bridge"
    assert settings.environment["HF_ENDPOINT"] == "https://mirror.example"
    assert settings.environment["HF_HOME"] == "/hub/cache"
    assert mounted(settings)["/hub"]["Source"] == "llem-hub-cache"
    assert settings.private_environment == {"HF_TOKEN": "hf_secret"}
    assert "HF_TOKEN" not in settings.environment
    assert hub_secrets(HostSettings(hub_token="hf_of_the_host")) == {"HF_TOKEN": "hf_of_the_host"}


def test_in_the_worker_s_offline_mode_a_cached_model_is_used_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = settings_of(model=None)
    assert settings.network_mode == "none"
    assert settings.environment["HF_HUB_OFFLINE"] == "1"
    assert "/hub" in mounted(settings)


def test_a_local_model_gets_neither_network_nor_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    settings = settings_of()
    assert settings.network_mode == "none"
    assert settings.private_environment == {}
    assert mounted(settings)["/models/m"]["ReadOnly"] is True


@pytest.mark.parametrize(("gpus", "size"), [(1, "2g"), (4, "5g")])
def test_shared_memory_grows_with_the_gpus_that_talk_through_it(gpus: int, size: str) -> None:
    assert settings_of(gpus=gpus).shm_size == size
    assert settings_of(gpus=gpus, shm_size="64g").shm_size == "64g"
