"""When a failed try is made again: at once, after the task's delay, or never; by what kind of failure it was."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import docker
import requests
from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from llem_airflow.protocol.failures import CATEGORIES
from llem_airflow.runners.failures import Failure, classify

if TYPE_CHECKING:
    from airflow.sdk import Context

AT_ONCE = frozenset(name for name, category in CATEGORIES.items() if category.at_once)
"""Categories for which waiting changes nothing: a crash is over, and a claim for GPUs has waited already."""

_FROM_ENGINE = (docker.errors.DockerException, requests.exceptions.RequestException)


class AttemptRetryableError(AirflowException):
    """An attempt failed in a way that another try can mend.

    Attributes:
        failure: What kind it was, for the retry policy.
    """

    def __init__(self, text: str, failure: Failure) -> None:
        super().__init__(text)
        self.failure = failure


class AttemptFinalError(AirflowFailException):
    """An attempt failed in a way that no other try mends; Airflow makes none, whatever the retry policy.

    Attributes:
        failure: What kind it was.
    """

    def __init__(self, text: str, failure: Failure) -> None:
        super().__init__(text)
        self.failure = failure


def ended(text: str, failure: Failure) -> AttemptRetryableError | AttemptFinalError:
    """The error of a task whose attempt failed in this way.

    Args:
        text: What happened and what to do.
        failure: What kind it was.
    """
    return AttemptRetryableError(text, failure) if failure.retryable else AttemptFinalError(text, failure)


def is_last_try(ti: Any) -> bool:
    """Whether a task gets no further try by the number of those it has had; no policy is asked."""
    return bool(ti.try_number > getattr(ti, "max_tries", 0))


class FailureRetryPolicy(RetryPolicy):
    """Retry what can pass, at once or after the task's ``retry_delay``; fail at once what cannot.

    It reads the kind of failure that ``llem_airflow.runners.failures`` tells. Errors of the Docker engine and of the
    network that reach the task otherwise are told apart in the same way; all others follow Airflow's own rules. The
    number of tries stays that of the task.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 - Airflow's signature
        max_tries: int,  # noqa: ARG002 - Airflow's signature
        context: Context | None = None,  # noqa: ARG002 - Airflow's signature
    ) -> RetryDecision:
        """Decide by the failure's category; the reason is shown on the task instance."""
        found = getattr(exception, "failure", None)
        if found is None and isinstance(exception, _FROM_ENGINE):
            found = classify(None, "", error=exception)
        if not isinstance(found, Failure):
            return RetryDecision.default()
        if not found.retryable:
            return RetryDecision.fail(f"{found.category}: another try cannot help; {found.hint}")
        if found.category in AT_ONCE:
            return RetryDecision.retry(timedelta(0), f"{found.category}: tried again at once")
        return RetryDecision.retry(None, f"{found.category}: tried again after the task's retry_delay")

    def serialize(self) -> dict[str, Any]:
        """Nothing but its name: it has no settings."""
        return {"__type": "FailureRetryPolicy"}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> FailureRetryPolicy:  # noqa: ARG003 - Airflow's signature
        """The policy again."""
        return cls()
