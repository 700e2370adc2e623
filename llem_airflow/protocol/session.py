"""What crosses between a runner and the container of a session: one that lives on over several cycles.

The runner executes ``llem.pyz session COMMAND`` in the container; the folders lie in the exchange volume::

    llem.pyz            the bundle of the guard, which idles as the container's program
    state/              whose turn it is, the lives of the container, the health checks
    attempts/{key}/     one attempt: {hash}_config.json, llem.pyz, out/, and output, started, exit.json

An engine that lives on has its files in ``state/``, too: ``engine`` (its process), ``engine-next`` (the attempt that it
is handed), ``engine-answer`` (how that ended), ``engine-log`` (what it prints), ``engine-ended`` (its exit code).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from llem_airflow.protocol.typed_json import ProtocolError, from_json, to_json

Line = TypeVar("Line", bound="_Line")

COMMAND = "session"
"""First argument of the bundle."""

STATE = "state"
ATTEMPTS = "attempts"

MAX_RUNTIME = "it has lived for max_runtime"
"""Why a guard ends whose session may not be started again."""

HEALTH = "health.jsonl"
"""One line for each look between cycles, and one when the guard ends."""

LIVES = "lives.jsonl"
"""One line for each start of the session's container."""

EVIDENCE = "session.json"
"""In ``out/``: session, start kind, position, lives of the container, health checks so far."""

BEAT = "beat"
"""Touched by the living guard every :data:`BEAT_S` seconds; Docker's healthcheck looks how old it is."""

BEAT_S = 2.0

ENV_SESSION = "LLEM_SESSION"
"""The session's id, in the container's environment."""

EXEC, WARM = "exec", "warm"
"""How an attempt starts in a session: as a process of its own, or handed to the engine that lives on."""

TAKEN, RUNNING, ENDED, BUSY, UNHEALTHY = "taken", "running", "ended", "busy", "unhealthy"


class _Line:
    """A frozen dataclass that crosses as one line of JSON."""

    _called: ClassVar[str]

    def dumps(self) -> str:
        """As one line of JSON."""
        return json.dumps(to_json(self), allow_nan=False)

    @classmethod
    def loads(cls: type[Line], text: str) -> Line:
        """Read one.

        Raises:
            ProtocolError: It is none.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ProtocolError(f"{cls._called}: not JSON: {error}") from error
        return from_json(cls, data, cls._called)


@dataclass(frozen=True)
class Turn(_Line):
    """The answer to an attempt that asks for its turn.

    Attributes:
        state: ``taken`` (it may be handed in and run), ``running`` or ``ended`` (an earlier try's is there and is now
            this try's), ``busy`` (another attempt has the turn), ``unhealthy`` (the container must be restarted).
        text: Who has the turn, or what is not healthy; empty otherwise.
        position: How many attempts ran before in the session.
        age_s: How long an earlier try's has run, in seconds; 0 for none.
    """

    _called = "the turn"

    state: str
    text: str = ""
    position: int = 0
    age_s: float = 0.0


@dataclass(frozen=True)
class Exit(_Line):
    """How an attempt in a session ended.

    Attributes:
        exit_code: As Docker writes it: 128 + number after a signal.
        oom_killed: Whether the kernel ended one of its processes for want of memory.
        owner: The try that it belongs to; empty when it was removed.
    """

    _called = "the exit"

    exit_code: int
    oom_killed: bool
    owner: str = ""
