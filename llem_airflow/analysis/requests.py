"""The requests of a measured window as numpy columns: a request costs no Python object here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llem_airflow.analysis.power_series import Floats

Ints = NDArray[np.int64]

COLUMNS = (
    "phase",
    "iteration",
    "output_tokens",
    "t_submit_mono_ns",
    "t_first_mono_ns",
    "t_last_mono_ns",
    "token_mono_ns",
)
"""Columns of requests.parquet that are computed with."""


@dataclass(frozen=True)
class Requests:
    """Requests in the order in which they were recorded. NaN is "not known".

    Times that run backwards (a first token before the submission, a token before the one ahead of it) come from a clock
    that was set or a broken record: of such a request no time but the submission is known.

    Attributes:
        origin_ns: Monotonic nanoseconds that all times are counted from, so that floats hold them exactly.
        iteration: Pass over the prompts; -1 is not known.
        output_tokens: Generated tokens.
        submit_ns: When each was submitted.
        first_ns: When its first token came.
        last_ns: When its last token came.
        token_ns: When each token came, request by request.
        tokens_from: Where the tokens of each request begin in ``token_ns``, and at last its length.
        disordered: Requests whose times ran backwards.
    """

    origin_ns: int
    iteration: Ints
    output_tokens: Floats
    submit_ns: Floats
    first_ns: Floats
    last_ns: Floats
    token_ns: Floats
    tokens_from: Ints
    disordered: int = 0

    @classmethod
    def of(cls, table: Any, phase: str | None = "measure") -> Requests:
        """Those of a table of requests (``COLUMNS``) that were submitted in a phase, by default in the window."""
        rows = (
            table if phase is None else table.filter(pc.equal(table.column("phase").cast(pa.string()), phase))
        )
        origin_ns = pc.min(rows.column("t_submit_mono_ns")).as_py() or 0
        times = rows.column("token_mono_ns").combine_chunks()
        counts = times.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        found = cls(
            origin_ns=origin_ns,
            iteration=rows.column("iteration").fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64),
            output_tokens=_floats(rows.column("output_tokens")),
            submit_ns=_since(rows.column("t_submit_mono_ns"), origin_ns),
            first_ns=_since(rows.column("t_first_mono_ns"), origin_ns),
            last_ns=_since(rows.column("t_last_mono_ns"), origin_ns),
            token_ns=_since(times.flatten(), origin_ns),
            tokens_from=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        )
        return found._in_order()

    def _in_order(self) -> Requests:
        """The same, without the times of the requests whose times run backwards."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.tokens_from))
        back = (self.first_ns < self.submit_ns) | (self.last_ns < self.submit_ns)
        back |= self.last_ns < self.first_ns
        back[owner[1:][(np.diff(self.token_ns) < 0) & (owner[1:] == owner[:-1])]] = True
        outside = (self.token_ns < self.submit_ns[owner]) | (self.token_ns > self.last_ns[owner])
        back[owner[outside]] = True
        if not back.any():
            return self
        return replace(
            self,
            first_ns=np.where(back, np.nan, self.first_ns),
            last_ns=np.where(back, np.nan, self.last_ns),
            token_ns=np.where(back[owner], np.nan, self.token_ns),
            disordered=int(back.sum()),
        )

    def __len__(self) -> int:
        return len(self.iteration)

    @property
    def tokens(self) -> int:
        """Generated tokens of all requests together, as far as they are known."""
        return int(np.nansum(self.output_tokens))

    @property
    def second_ns(self) -> Floats:
        """When the second token of each came; infinite where there is none."""
        at = self.tokens_from[:-1] + 1
        has = at < self.tokens_from[1:]
        found = np.full(len(self), np.inf)
        found[has] = self.token_ns[at[has]]
        return found


def _since(times: Any, origin_ns: int) -> Floats:
    return _floats(pc.subtract(times, origin_ns))


def _floats(array: Any) -> Floats:
    found: Floats = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found
