"""TTFT and E2EL of our load client against vLLM's own benchmark client, on one server in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import Mount

from tests.engines import two_clients

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.alone, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
AGREE = 0.05


def asked_by_both(api: docker.APIClient, image: str, model: Path, folder: Path) -> dict[str, Any]:
    """What both clients saw, in a container without a network."""
    folder.chmod(0o777)
    mounts = [
        Mount("/models/m", str(model), type="bind", read_only=True),
        Mount("/code/llem_airflow", str(ROOT / "llem_airflow"), type="bind", read_only=True),
        Mount("/code/two_clients.py", two_clients.__file__, type="bind", read_only=True),
        Mount("/out", str(folder), type="bind"),
    ]
    made = api.create_container(
        image,
        ["python3", "/code/two_clients.py", "/models/m", "/out/seen.json", str(AGREE)],
        environment={"PYTHONPATH": "/code", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": "/tmp"},
        host_config=api.create_host_config(mounts=mounts, network_mode="none", shm_size="1g"),
    )
    try:
        api.start(made["Id"])
        ended = api.wait(made["Id"], timeout=500)
        assert ended["StatusCode"] == 0, api.logs(made["Id"], tail=60).decode(errors="replace")
    finally:
        api.remove_container(made["Id"], force=True)
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


def test_both_clients_measure_the_same_latencies(
    docker_api: docker.APIClient, vllm_image: str, smol_model: Path, tmp_path: Path
) -> None:
    seen = asked_by_both(docker_api, vllm_image, smol_model, tmp_path)
    assert seen["tokens"] == [two_clients.OUTPUT_TOKENS]
    assert seen["input_tokens"] == [two_clients.INPUT_TOKENS]
    assert seen["requests"] >= two_clients.REQUESTS
    assert all(abs(ratio) <= AGREE for ratio in seen["found"].values()), seen["pairs"]
