"""An engine for llem-airflow that repeats its prompt. A real one imports its library here, at the top."""

import time
from collections.abc import Callable, Sequence

from llem_airflow.measurement.engines.contract import Completion, EngineFacts, Prompt, Vocabulary
from llem_airflow.measurement.generation import engine_params
from llem_airflow.protocol.spec import ExperimentSpec


class EchoEngine:
    def open_context(self) -> bool:  # make the device ready without a model; False where that is not possible
        return False

    def load(self, spec: ExperimentSpec) -> None:  # everything that must not be in the measured window
        self.step_s = float(engine_params(spec).get("step_s", 0.001))

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[tuple[int, ...]]:
        return [tuple(text.encode()[:max_tokens]) for text in texts]

    def vocabulary(self) -> Vocabulary:  # what synthetic prompts are made of
        return Vocabulary(size=256, special_ids=frozenset({0}))

    def batch_size(self) -> int | None:  # prompts of one `generate`; None for all at once
        return None

    def generate(self, batch: Sequence[Prompt], on_step: Callable[[int], None]) -> list[Completion]:
        begin_ns, times_ns = time.monotonic_ns(), []
        for step in range(batch[0].output_tokens):
            time.sleep(self.step_s)
            times_ns.append(time.monotonic_ns())  # one time per token, when it is on the host
            on_step((step + 1) * len(batch))
        return [Completion(one.index, _echo(one), begin_ns, tuple(times_ns), "length") for one in batch]

    def describe(self) -> EngineFacts:  # the names are of distributions whose versions are recorded
        return EngineFacts(
            "1.0", {"name": "echo", "dtype": None}, ("llem-echo-engine",), {"step_s": self.step_s}
        )

    def memory(self) -> dict[str, int | None]:
        return {"gpu_peak_bytes": None}

    def reset(
        self, spec: ExperimentSpec
    ) -> None:  # only for isolation: engine, for an experiment that loads alike
        ...

    def sync(self) -> None: ...
    def reset_peaks(self) -> None: ...
    def close(self) -> None: ...


def _echo(prompt: Prompt) -> tuple[int, ...]:
    return tuple(prompt.token_ids[i % len(prompt.token_ids)] for i in range(prompt.output_tokens))
