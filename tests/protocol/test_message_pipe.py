"""Messages of another process: whole lines, in their order, in time or not at all."""

from __future__ import annotations

import os

from llem_airflow.protocol.processes import MessagePipe


def test_messages_come_whole_and_in_their_order_and_the_end_is_told_from_silence() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        messages = MessagePipe(pipe)
        assert not messages.ended
        os.write(write, b'{"a": 1}\n{"b": 2}\n{"c"')
        assert messages.receive(5.0) == {"a": 1}
        assert messages.receive(0.0) == {"b": 2}
        assert messages.receive(0.0) is None
        assert not messages.ended
        os.write(write, b": 3}\n")
        assert messages.receive(0.0) == {"c": 3}
        os.close(write)
        assert messages.receive(5.0) is None
        assert messages.ended
