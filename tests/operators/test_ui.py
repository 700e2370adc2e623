"""What a task fails with is kept for the pages."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.operators.ui import FAILURE_KEY, keeps_failure


class Pushed:
    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (AirflowFailException("a.yaml:1:2: x"), "a.yaml:1:2: x"),
        (KeyError("k"), "KeyError: 'k'"),
        (AirflowSkipException("no"), None),
    ],
)
def test_what_a_task_fails_with_is_kept_and_raised(error: Exception, kept: str | None) -> None:
    @keeps_failure
    def execute(_: Any, __: Any) -> None:
        raise error

    ti = Pushed()
    with pytest.raises(type(error)):
        execute(None, {"ti": ti})  # type: ignore[typeddict-item]  # as far as it is read
    assert ti.pushed.get(FAILURE_KEY) == kept


def test_a_text_that_cannot_be_kept_hides_no_error() -> None:
    @keeps_failure
    def execute(_: Any, __: Any) -> None:
        raise AirflowFailException("the real one")

    with pytest.raises(AirflowFailException, match="the real one"):
        execute(None, {"ti": None})  # type: ignore[typeddict-item]  # as when Airflow is away
