"""Live records taken out of an attempt's output, so that no log and no watchdog sees them."""

from __future__ import annotations

from collections.abc import Callable

from llem_airflow.protocol.live import LONGEST_BYTES, MARK, LivePhase, LivePower, parse

OnLive = Callable[[LivePower | LivePhase], None]


class LiveRecords:
    """Takes records out of a stream that comes in pieces; what only looks like one stays where it is.

    Args:
        on_live: Called with every record.
    """

    def __init__(self, on_live: OnLive | None) -> None:
        self._on_live = on_live
        self._held = b""

    def taken_out_of(self, data: bytes) -> bytes:
        """What is left of the output; the begin of a record is kept until its end comes."""
        rest, self._held = self._held + data, b""
        left = []
        while (begin := rest.find(MARK)) >= 0:
            left.append(rest[:begin])
            end = rest.find(b"\n", begin, begin + LONGEST_BYTES)
            if end < 0 and len(rest) - begin < LONGEST_BYTES:
                self._held = rest[begin:]
                return b"".join(left)
            record = parse(rest[begin + 1 : end]) if end >= 0 else None
            if record is None:
                end = begin  # a mark of somebody else
                left.append(MARK)
            elif self._on_live is not None:
                self._on_live(record)
            rest = rest[end + 1 :]
        return b"".join((*left, rest))

    def finish(self) -> bytes:
        """The begin of a record whose end never came: somebody else's text, or cut when its writer was killed."""
        held, self._held = self._held, b""
        return held
