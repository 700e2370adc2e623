"""What an attempt writes: events with what a person reads, requests, its result or error; and its instants."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.measurement.engines.contract import Completion, Prompt
from llem_airflow.protocol.files import PHASES, error_name, result_name, write_whole
from llem_airflow.protocol.live import ENV_LIVE, LivePhase, phase_record
from llem_airflow.protocol.result import Anchor, AttemptError, CycleResult


class EventLog:
    """Writes events.jsonl and says the same on stdout.

    Attributes:
        phase_name: The phase that is open, or the last one; ``start`` before the first.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._begin_ns = time.monotonic_ns()
        self.phase_name = "start"

    def emit(self, event: str, t_mono_ns: int | None = None, **fields: Any) -> int:
        """Append one event and flush it.

        Args:
            event: One of ``protocol.files.EVENT_KINDS``.
            t_mono_ns: When it happened, in nanoseconds of the monotonic clock; None is now.
            **fields: What else belongs to it.

        Returns:
            When it happened, in nanoseconds of the monotonic clock.
        """
        at = time.monotonic_ns() if t_mono_ns is None else t_mono_ns
        row = {"t_mono_ns": at, "event": event, "phase": self.phase_name, **fields}
        with self._lock:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        return at

    def say(self, text: str) -> None:
        """One line for people: the time since the start, the phase, the text."""
        # Whoever listened may be gone; what was measured is worth more than that line.
        with contextlib.suppress(OSError):
            print(f"[{seconds_since(self._begin_ns):7.1f} s] {self.phase_name:<15} {text}", flush=True)

    def progress(self, done: float, total: float, text: str) -> None:
        """Say how far the phase is, and note it.

        Args:
            done: How much is done, in the unit that the text names.
            total: How much there is to do.
            text: For people.
        """
        self.emit("progress", done=round(done, 3), total=round(total, 3), text=text)
        self.say(text)

    def note(self, text: str) -> None:
        """Something worth keeping that is neither progress nor failure."""
        self.emit("note", text=text)
        self.say(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Mark a phase. A phase that fails has a begin and no end.

        Args:
            name: One of ``protocol.files.PHASES``.
        """
        if name not in PHASES:
            raise ValueError(f"{name!r} is not a phase; phases: {', '.join(PHASES)}")
        self.phase_name = name
        self._tell_live(LivePhase(self.emit("phase_begin"), name))
        yield
        self._tell_live(LivePhase(self.emit("phase_end"), None))

    def _tell_live(self, record: LivePhase) -> None:
        if os.environ.get(ENV_LIVE):
            with contextlib.suppress(OSError):
                print(phase_record(record).decode(), end="", flush=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def write_result(out: Path, result: CycleResult) -> None:
    """Write the result: the attempt has succeeded from here on."""
    write_whole(out / result_name(result.experiment_hash), result.dumps() + "\n")


def write_error(out: Path, experiment_hash: str, error: AttemptError) -> None:
    """Write why the attempt failed."""
    write_whole(out / error_name(experiment_hash), error.dumps() + "\n")


def anchor() -> Anchor:
    """One instant on the monotonic and the wall clock, read closest to each other of five tries."""
    best: tuple[int, Anchor] | None = None
    for _ in range(5):
        before_ns = time.monotonic_ns()
        epoch_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        if best is None or after_ns - before_ns < best[0]:
            best = (after_ns - before_ns, Anchor(mono_ns=(before_ns + after_ns) // 2, epoch_ns=epoch_ns))
    assert best is not None
    return best[1]


def seconds_since(t_mono_ns: int) -> float:
    """Time since an instant of the monotonic clock, in seconds."""
    return (time.monotonic_ns() - t_mono_ns) / 1e9


@dataclass(frozen=True)
class BatchTotals:
    """What one batch did.

    Attributes:
        requests: Completed requests.
        input_tokens: Their prompt tokens.
        output_tokens: Their generated tokens.
        t_submit_mono_ns: When the first was handed over, in nanoseconds of the monotonic clock.
        t_first_mono_ns: When the first token came; None when none did.
        t_prefill_end_mono_ns: When every request that was answered had its first token; None likewise.
        t_last_mono_ns: When the last token came, or the batch returned without any.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    t_submit_mono_ns: int
    t_first_mono_ns: int | None
    t_prefill_end_mono_ns: int | None
    t_last_mono_ns: int

    @property
    def duration_s(self) -> float:
        """From the first hand-over to the last token, in seconds."""
        return (self.t_last_mono_ns - self.t_submit_mono_ns) / 1e9


class RequestLog:
    """Writes requests.jsonl. A batch is written after it has ended, so no write falls between two tokens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._next = 0

    def write(
        self, phase: str, iteration: int, batch: Sequence[Prompt], done: Sequence[Completion]
    ) -> BatchTotals:
        """Append the requests of one batch and flush.

        Args:
            phase: ``warmup`` or ``measure``.
            iteration: Which batch of the phase, from 0.
            batch: The prompts.
            done: What they got, in any order.

        Raises:
            RuntimeError: The engine lost a request, or a token has no time.
        """
        returned_ns = time.monotonic_ns()
        inputs = {prompt.index: len(prompt.token_ids) for prompt in batch}
        if sorted(completion.prompt_index for completion in done) != sorted(inputs):
            raise RuntimeError(f"the engine answered {len(done)} of {len(batch)} prompts of a batch")
        for completion in done:
            self._write_one(phase, iteration, len(batch), inputs[completion.prompt_index], completion)
        self._file.flush()
        firsts_ns = [completion.token_mono_ns[0] for completion in done if completion.token_mono_ns]
        lasts_ns = [completion.token_mono_ns[-1] for completion in done if completion.token_mono_ns]
        return BatchTotals(
            requests=len(done),
            input_tokens=sum(inputs.values()),
            output_tokens=sum(len(completion.token_ids) for completion in done),
            t_submit_mono_ns=min(completion.t_submit_mono_ns for completion in done),
            t_first_mono_ns=min(firsts_ns, default=None),
            t_prefill_end_mono_ns=max(firsts_ns, default=None),
            t_last_mono_ns=max(lasts_ns, default=returned_ns),
        )

    def _write_one(
        self, phase: str, iteration: int, batch_size: int, input_tokens: int, one: Completion
    ) -> None:
        if len(one.token_mono_ns) != len(one.token_ids):
            raise RuntimeError(
                f"prompt {one.prompt_index}: {len(one.token_ids)} tokens but {len(one.token_mono_ns)} times"
            )
        row = {
            "request_id": f"{phase}-{self._next}",
            "phase": phase,
            "iteration": iteration,
            "prompt_index": one.prompt_index,
            "batch_size": batch_size,
            "input_tokens": input_tokens,
            "output_tokens": len(one.token_ids),
            "t_submit_mono_ns": one.t_submit_mono_ns,
            "t_first_mono_ns": one.token_mono_ns[0] if one.token_mono_ns else None,
            "t_last_mono_ns": one.token_mono_ns[-1] if one.token_mono_ns else None,
            "token_mono_ns": list(one.token_mono_ns),
            "output_token_ids": list(one.token_ids),
            "finish_reason": one.finish_reason,
        }
        self._file.write(json.dumps(row) + "\n")
        self._next += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()
