"""A registry that cannot be found is no image that is not there, wherever the engine's first word comes from."""

from __future__ import annotations

from docker.errors import APIError, ImageNotFound

from llem_airflow.runners.failures import classify
from llem_airflow.runners.images import ImagePullError

DNS = 'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 127.0.0.53:53: no such host'


def pulled() -> ImagePullError:
    """As docker-py and ``pull`` raise it: the engine had said before that it has no such image."""
    refused = APIError(f"500 Server Error ({DNS})")
    refused.__context__ = ImageNotFound('404 Client Error: Not Found ("No such image: llem/x:1")')
    error = ImagePullError(DNS)
    error.__cause__ = refused
    return error


def test_the_reason_is_the_network_and_a_retry_can_help() -> None:
    error = pulled()
    found = classify(None, str(error), error=error)
    assert (found.category, found.retryable) == ("image_pull", True)
    assert "cannot reach the registry" in found.hint


def test_an_image_that_is_not_there_is_said() -> None:
    found = classify(None, "", error=ImageNotFound("No such image: llem/x:1"))
    assert (found.category, found.retryable) == ("image_pull", False)
    assert "no such image or tag" in found.hint
