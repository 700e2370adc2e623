"""An image's engine against the record that our calls were written from."""

from __future__ import annotations

import docker
import pytest
from click.testing import CliRunner

from llem_airflow.cli import main

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]  # the first one builds the image


@pytest.mark.engine
def test_the_real_vllm_has_everything_that_is_recorded_of_its_version(
    docker_api: docker.APIClient, vllm_image: str
) -> None:
    checked = CliRunner().invoke(main, ["engine-check", "vllm", "--image", vllm_image])
    assert checked.exit_code == 0, checked.output
    assert "vllm 0.32.0" in checked.output
    assert "recorded: 0.32.0" in checked.output
    assert "every recorded call still fits" in checked.output


def test_an_image_without_the_engine_is_told_and_leaves_no_container(
    docker_api: docker.APIClient, python_image: str
) -> None:
    checked = CliRunner().invoke(main, ["engine-check", "tensorrt", "--image", python_image])
    assert checked.exit_code == 2
    assert "nvidia_entrypoint.sh" in checked.output
    assert docker_api.containers(all=True, filters={"label": "llem.check"}) == []
