"""requests.jsonl: one row a request, with a time per token."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llem_airflow.measurement.engines.contract import Completion, Prompt


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
