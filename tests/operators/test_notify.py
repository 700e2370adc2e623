"""A notifier is told once, in words, and cannot fail a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseNotifier

from llem_airflow.operators.notify import NotifierSettingsError, notifier, tell

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
