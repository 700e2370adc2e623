"""What the load process is told to do: one JSON file, made before the traffic begins and kept as evidence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llem_airflow.measurement.load.client import Conversations, Endpoint
from llem_airflow.protocol.typed_json import ProtocolError, from_json, to_json


@dataclass(frozen=True)
class LoadPrompt:
    """One request's question.

    Attributes:
        max_tokens: Most tokens of the answer.
        text: The prompt as text, or None.
        token_ids: The prompt as token ids, or None. Exactly one of the two is given.
        sampling: More fields of this request's body, over those of the plan (min_tokens, ...).
    """

    max_tokens: int
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadPlan:
    """Traffic against one server: an open loop (``due_s``) or a closed one (``users`` and ``duration_s``).

    Attributes:
        endpoint: The server's root, ``http://HOST:PORT``.
        model: Name that the server knows its model by.
        prompts: Request i of the schedule asks ``prompts[i % len(prompts)]``.
        turns: How many of the prompts each conversation has, in their order; then the schedule is that of their first
            turns, and each further one is due when the answer before it has come. Empty: no prompt follows another.
        start_mono_ns: When the traffic begins, in nanoseconds of the monotonic clock, which all processes of a host
            share.
        timeout_s: How long after its due time a request is given up, in seconds.
        phase: What its rows are marked with.
        due_s: When each request is due, in seconds from the start, ascending.
        users: Users of the closed loop.
        duration_s: For how long these ask, or further turns of conversations are begun, in seconds.
        end_s: When what is still open is cut, in seconds from the start; None waits for all.
        concurrency_cap: Most requests in flight of an open loop.
        sampling: More fields of each request's body (temperature, ignore_eos, seed, ...).
    """

    endpoint: str
    model: str
    prompts: tuple[LoadPrompt, ...]
    start_mono_ns: int
    timeout_s: float
    phase: str = "measure"
    due_s: tuple[float, ...] | None = None
    users: int | None = None
    duration_s: float | None = None
    end_s: float | None = None
    concurrency_cap: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    turns: tuple[int, ...] = ()

    def checked(self) -> LoadPlan:
        """The plan itself.

        Raises:
            ProtocolError: It cannot be carried out; the message names the field.
        """
        if (self.due_s is None) == (self.users is None):
            raise ProtocolError("load plan: it needs due_s or users, and not both")
        if self.users is not None and (self.users < 1 or self.duration_s is None or self.concurrency_cap):
            raise ProtocolError("load plan: users >= 1 come with duration_s and without concurrency_cap")
        if any(
            after < before for before, after in zip(self.due_s or (), (self.due_s or ())[1:], strict=False)
        ):
            raise ProtocolError("load plan: due_s must ascend")
        if not self.prompts or any((one.text is None) == (one.token_ids is None) for one in self.prompts):
            raise ProtocolError("load plan: it needs prompts, each with text or token_ids, and not both")
        if self.turns and (sum(self.turns) != len(self.prompts) or min(self.turns) < 1):
            raise ProtocolError("load plan: turns, each 1 or more, are as many as there are prompts")
        try:
            Endpoint.of(self.endpoint)
        except ValueError as error:
            raise ProtocolError(f"load plan: {error}") from error
        return self

    def conversations(self) -> Conversations:
        """What is asked."""
        return Conversations(
            self.bodies(), self.turns, math.inf if self.duration_s is None else self.duration_s
        )

    def bodies(self) -> list[bytes]:
        """The JSON body of each prompt's request."""
        return [
            completion_body(
                self.model,
                one.text if one.token_ids is None else one.token_ids,
                one.max_tokens,
                {**self.sampling, **one.sampling},
            )
            for one in self.prompts
        ]


def completion_body(
    model: str, prompt: str | tuple[int, ...] | None, max_tokens: int, sampling: dict[str, Any]
) -> bytes:
    """A streamed completion's request, which asks for the running token count with each chunk.

    ``continuous_usage_stats`` is an option of vLLM's and TensorRT-LLM's servers: it tells how many tokens a chunk
    holds.
    """
    body = {
        **sampling,
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return json.dumps(body).encode("ascii")


def write_plan(plan: LoadPlan, path: Path) -> None:
    """Write the plan as JSON."""
    path.write_text(json.dumps(to_json(plan)), encoding="ascii")


def read_plan(path: Path) -> LoadPlan:
    """Read a plan.

    Raises:
        OSError: There is none.
        ProtocolError: It is not one, or cannot be carried out.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProtocolError(f"{path.name}: not JSON: {error}") from error
    return from_json(LoadPlan, data, path.name).checked()
