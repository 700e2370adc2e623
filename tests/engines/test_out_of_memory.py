"""A real model in a container that is too small for it."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from llem_airflow.protocol.files import error_name
from llem_airflow.protocol.result import AttemptError
from llem_airflow.runners.failures import AttemptFailedError
from tests.engines.boxes import experiment, observe
from tests.measurement.running import HASH

pytestmark = [pytest.mark.docker, pytest.mark.engine]


def test_a_model_that_does_not_fit_its_container_leaves_an_error_file_with_phase_and_advice(
    docker_api: docker.APIClient, cpu_image: str, smol_model: Path, tmp_path: Path
) -> None:
    spec = experiment("transformers", smol_model, {})
    with pytest.raises(AttemptFailedError, match=r"ran out of memory \(limit: 512m") as caught:
        observe(docker_api, cpu_image, spec, tmp_path / "out", smol_model.parent, mem_limit="512m")
    # The kernel leaves the attempt no time for a last word: what is known outside is written in its place.
    error = AttemptError.loads((tmp_path / "out" / error_name(HASH)).read_text())
    assert (error.category, error.phase, error.retryable_hint) == ("out_of_memory_host", "load", False)
    assert error.type == "EndedOutOfMemoryHost"
    assert caught.value.failure.hint in error.message
    assert "loading /models/" in (tmp_path / "out" / "container.log").read_text()
