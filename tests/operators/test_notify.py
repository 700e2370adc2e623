"""A notifier is told once, in words, and cannot fail a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import BaseNotifier, Context

from llem_airflow.operators import LLEMAggregateOperator
from llem_airflow.operators.notify import NotifierSettingsError, notifier, tell
from llem_airflow.study import load_study_text

HERE = "tests.operators.test_notify"


class FileNotifier(BaseNotifier):
    """Appends a line to a file."""

    template_fields = ("line",)

    def __init__(self, path: str, line: str = "{{ llem_event }}: {{ llem_message }}") -> None:
        super().__init__()
        self.path = path
        self.line = line

    def notify(self, context: Any) -> None:
        with Path(self.path).open("a") as file:
            file.write(self.line + "\n")


class BrokenNotifier(BaseNotifier):
    """Cannot reach its server."""

    def notify(self, context: Any) -> None:
        raise OSError("no route to host")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(name: str | None, args: str = "") -> None:
        monkeypatch.setenv("AIRFLOW__LLEM__NOTIFIER", name or "")
        monkeypatch.setenv("AIRFLOW__LLEM__NOTIFIER_ARGS", args)

    return use


def test_the_notifier_s_templates_find_the_event_and_the_message(tmp_path: Path, settings: Any) -> None:
    settings(f"{HERE}.FileNotifier", f'{{"path": "{tmp_path / "told"}"}}')
    tell({}, "regression", "bs8 became worse: {{ not a template }}")
    assert (tmp_path / "told").read_text() == "regression: bs8 became worse: {{ not a template }}\n"


def test_without_a_notifier_nothing_is_told(settings: Any) -> None:
    settings(None)
    assert notifier() is None


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (f"{HERE}.FileNotifier", "{", r"\[llem\] notifier_args is no JSON object"),
        (f"{HERE}.FileNotifier", "[]", r"\[llem\] notifier_args must be a JSON object"),
        (f"{HERE}.FileNotifier", '{"file": 1}', r"\[llem\] notifier = .*FileNotifier with \['file'\]"),
        (f"{HERE}.NoSuch", "", "has no attribute 'NoSuch'"),
        ("pathlib.Path", "", r"pathlib\.Path is no Airflow notifier"),
    ],
)
def test_settings_that_make_no_notifier_are_named(settings: Any, name: str, args: str, message: str) -> None:
    settings(name, args)
    with pytest.raises(NotifierSettingsError, match=message):
        notifier()


def test_a_notifier_that_fails_is_logged_with_the_message_and_fails_nothing(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings(f"{HERE}.BrokenNotifier")
    with caplog.at_level(logging.ERROR):
        tell({}, "failure", "2 of 4 planned cycles without a result")
    assert "the notifier failed; the message was:\n2 of 4 planned cycles without a result" in caplog.text


def test_a_failure_is_told_once_no_further_try_follows(settings: Any, tmp_path: Path) -> None:
    told = tmp_path / "told"
    settings(f"{HERE}.FileNotifier", json.dumps({"path": str(told)}))
    study = load_study_text(
        "study_name: s\nserving_mode: offline\nengine: transformers\ntask: {model: m}\n"
        "measurement: {meter: cpu-estimate}\nairflow: {notify_on: [failure]}\n"
    )
    task = LLEMAggregateOperator(task_id="aggregate", study=study, retries=1)
    for try_number, lines in ((1, 0), (2, 1)):
        ti = SimpleNamespace(try_number=try_number, max_tries=1)
        with pytest.raises(AttributeError, match="run_id"):
            task.execute(cast("Context", {"ti": ti, "params": {}}))
        assert len(told.read_text().splitlines() if told.exists() else []) == lines
