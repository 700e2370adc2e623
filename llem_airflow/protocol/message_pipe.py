"""What one of our processes says to another: JSON messages, one a line, through a pipe."""

from __future__ import annotations

import json
import os
import select
import time
from typing import IO, Any


class MessagePipe:
    """The end of a pipe at which messages arrive.

    Args:
        pipe: What the other process writes to; nobody else reads from it.

    Attributes:
        ended: Whether the other end was found to be gone.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._heard = b""
        self.ended = False

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when there is none in time, or the other end is gone.

        Args:
            timeout_s: How long to wait, in seconds; what is there already is taken at 0, too.
        """
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._pipe], [], [], max(deadline_s - time.monotonic(), 0))
            more = os.read(self._pipe.fileno(), 65536) if ready else b""
            if not more:
                self.ended = bool(ready)
                return None
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
