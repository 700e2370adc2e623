"""What the runner and a session's container say to each other."""

from __future__ import annotations

import pytest

from llem_airflow.protocol.session import Exit, Turn
from llem_airflow.protocol.typed_json import ProtocolError


def test_an_answer_is_read_as_it_was_written() -> None:
    for turn in (Turn("taken"), Turn("busy", "attempt a", 1, 2.5)):
        assert Turn.loads(turn.dumps()) == turn
    for ended in (Exit(0, False), Exit(137, True, "try1")):
        assert Exit.loads(ended.dumps()) == ended
    assert Turn.loads('{"state": "taken"}') == Turn("taken", "", 0, 0.0)
    assert Exit.loads('{"exit_code": 1, "oom_killed": false}') == Exit(1, False, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Traceback", "the turn: not JSON: Expecting value"),
        ("[]", "the turn: expected an object, found list"),
        ('{"state": 1}', "the turn: state: expected str, found int"),
    ],
)
def test_what_is_no_answer_is_named(text: str, said: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{said}"):
        Turn.loads(text)


def test_what_is_no_number_is_not_written() -> None:
    for record in (Turn("ended", age_s=float("nan")), Exit(float("inf"), False)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not JSON compliant"):
            record.dumps()
