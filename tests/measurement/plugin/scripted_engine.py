"""A third party's engine: answers by a script instead of a model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llem_airflow.measurement.engines.contract import Completion, EngineFacts, Prompt, Vocabulary
from llem_airflow.protocol.spec import ExperimentSpec


class ScriptedEngine:
    """Takes ``step_s`` a token; fails where ``fail`` says.

    With each of the first ``drifting`` calls a token takes ``slower_by`` (a ratio) longer.
    """

    calls = 0

    def open_context(self) -> bool:
        return False

    def load(self, spec: ExperimentSpec) -> None:
        defaults = {"step_s": 0.001, "slower_by": 0.0, "drifting": 0}
        self.script = defaults | spec.config.get("scripted", {}).get("engine_params", {})
        if spec.model.path and not list(Path(spec.model.path).glob("*.safetensors")):
            raise OSError(f"no weights in {spec.model.path}")
        self._fail_in("load")

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[tuple[int, ...]]:
        return [tuple(ord(letter) for letter in text)[:max_tokens] for text in texts]

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(size=256, special_ids=frozenset({0, 1}))

    def batch_size(self) -> int | None:
        return int(self.script.get("batch_size", 1))

    def generate(self, batch: Sequence[Prompt], on_step: Callable[[int], None]) -> list[Completion]:
        self._fail_in("generate")
        begin_ns = time.monotonic_ns()
        times_ns = []
        self.calls += 1
        step_s = self.script["step_s"] * (
            1 + self.script["slower_by"] * min(self.calls, self.script["drifting"])
        )
        for step in range(batch[0].output_tokens):
            time.sleep(step_s)
            times_ns.append(time.monotonic_ns())
            on_step((step + 1) * len(batch))
        tokens = tuple(range(len(times_ns)))
        return [Completion(prompt.index, tokens, begin_ns, tuple(times_ns), "length") for prompt in batch]

    def sync(self) -> None: ...

    def reset_peaks(self) -> None: ...

    def describe(self) -> EngineFacts:
        return EngineFacts("1.0", {"name": "script", "n_parameters": None}, ("pytest",), dict(self.script))

    def memory(self) -> dict[str, int | None]:
        return {"gpu_peak_bytes": None}

    def close(self) -> None: ...

    def _fail_in(self, where: str) -> None:
        if self.script.get("fail") == where:
            raise RuntimeError(self.script["message"])
        if self.script.get("die") == where:
            os.kill(os.getpid(), signal.SIGKILL)
