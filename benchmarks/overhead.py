"""What measuring costs the engine: tokens per second with the harness against the bare engine.

    OMP_NUM_THREADS=1 python -m benchmarks.overhead [--models FOLDER ...] [--minutes 6] [--error 0.004]

One process and one loaded model for both. Short blocks alternate, harness, bare, bare, harness:

- harness: ``Attempt.passes``, what an attempt does in its window (request and event logs, a time for each token, lines
  for people), while the sampler process reads 8 stand-in GPUs at 10 Hz;
- bare: ``generate`` with the same arguments in a loop, its input made once, nothing noted; the sampler is stopped.

Two neighbours give one ratio; in every second pair the bare engine comes first, so that a drift of the machine falls
out. Told is the median of the ratios, as others' bursts on the machine hit one or the other of a pair, and its standard
error (1.253 x 1.483 x median absolute deviation / root of n); it goes on until that is small enough. The ratio by wall
clock says what a user sees; by CPU time, sampler included, what the harness takes altogether, from whichever core.

"Harness alone" needs no quiet machine: the same ``Attempt.passes`` with a model whose ``generate`` gives its tokens to
the streamer and does nothing else; what that takes for each step is all that the harness adds to the engine's process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.sampler_cost import cpu_s_of, pid_of
from llem_airflow.measurement.attempt import Attempt
from llem_airflow.measurement.engines.contract import open_engine
from llem_airflow.measurement.output import EventLog
from llem_airflow.measurement.prompts import batches, prompt_set
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.files import EVENTS, POWER
from llem_airflow.protocol.spec import ExperimentSpec, MeterSpec
from llem_airflow.study import experiment_spec, load_study_text
from tests.standins.build import build

MODELS = (Path("build/models/SmolLM2-135M-Instruct"), Path("build/models/tiny-llama-random"))
BLOCK_S = 0.25
"""A block is at least one batch and so long."""
LEAST = 20
OUTPUT_TOKENS = 16
BATCH = 2
STUDY = f"""
study_name: overhead
serving_mode: offline
engine: transformers
task:
  model: {{model}}
  max_output_tokens: {OUTPUT_TOKENS}
  dataset: {{{{source: builtin, n_prompts: {BATCH}}}}}
measurement: {{{{meter: nvml}}}}
study_execution: {{{{n_cycles: 1, experiment_timeout_seconds: 86400}}}}
transformers: {{{{llem_execution: {{{{batch_size: {BATCH}}}}}}}}}
"""


@dataclass(frozen=True)
class Block:
    """One block of iterations, or several together.

    Attributes:
        tokens: Generated tokens.
        wall_s: Time that passed.
        engine_s: CPU time of this process.
        cpu_s: The same, and the sampler's.
    """

    tokens: int
    wall_s: float
    engine_s: float
    cpu_s: float

    def __add__(self, other: Block) -> Block:
        return Block(
            self.tokens + other.tokens,
            self.wall_s + other.wall_s,
            self.engine_s + other.engine_s,
            self.cpu_s + other.cpu_s,
        )


def spec_of(model: Path) -> ExperimentSpec:
    """A spec as an attempt gets it."""
    study = load_study_text(STUDY.format(model=model.name))
    return experiment_spec(study, study.experiments[0], 1, model_path=str(model))


class Bench:
    """A loaded model, an attempt around it and a sampler beside it.

    Args:
        model: Folder of the model.
        out: Where the attempt writes.
    """

    def __init__(self, model: Path, out: Path) -> None:
        spec = spec_of(model)
        self.engine: Any = open_engine("transformers", offline=True)
        self.engine.load(spec)
        self.work = batches(prompt_set(spec, self.engine), self.engine.batch_size())
        log = EventLog(out / EVENTS)
        log.phase_name = "measure"
        self.attempt = Attempt(spec, out, log)
        self.sampler = start_sampler(MeterSpec(kind="nvml"), out / POWER)
        self.sampler_pid = pid_of(self.sampler)
        self.bare_step = _bare_step(self.engine, self.work[0])

    def bare(self) -> Block:
        """``generate`` and nothing else."""

        def steps() -> int:
            begin_s, tokens = time.monotonic(), 0
            while time.monotonic() - begin_s < BLOCK_S:
                self.bare_step()
                tokens += OUTPUT_TOKENS * BATCH
            return tokens

        with self.sampler.resting():
            return self._timed(steps)

    def harness(self) -> Block:
        """What an attempt does in its window."""

        def steps() -> int:
            done = self.attempt.passes(self.engine, self.work, time.monotonic_ns(), BLOCK_S)
            return sum(one.output_tokens for one in done)

        return self._timed(steps)

    def alone_s(self) -> float:
        """CPU time of the harness for one step, without a model: the least disturbed of several tries."""
        real, self.engine._model = self.engine._model, _Instant(self.engine._model)
        try:
            tries = []
            for _ in range(10):
                block = self.harness()
                tries.append(block.engine_s / block.tokens * BATCH)
        finally:
            self.engine._model = real
        return min(tries)

    def _timed(self, steps: Callable[[], int]) -> Block:
        begin_s, engine_s, sampler_s = time.monotonic(), _own_cpu_s(), cpu_s_of(self.sampler_pid)
        tokens = steps()
        wall_s, engine_s = time.monotonic() - begin_s, _own_cpu_s() - engine_s
        return Block(tokens, wall_s, engine_s, engine_s + cpu_s_of(self.sampler_pid) - sampler_s)

    def close(self) -> None:
        """End the sampler and drop the model."""
        self.sampler.stop()
        self.attempt.close()
        self.engine.close()


class _Instant:
    """A model that answers at once, through the streamer as the real one does."""

    def __init__(self, model: Any) -> None:
        self.device, self.generation_config = model.device, model.generation_config

    def generate(self, *, input_ids: Any, streamer: Any, **_told: Any) -> None:
        """As many steps as the real one."""
        streamer.put(input_ids.cpu())
        for _ in range(OUTPUT_TOKENS):
            streamer.put(input_ids[:, -1].cpu())
        streamer.end()


def _bare_step(engine: Any, batch: Sequence[Any]) -> Callable[[], None]:
    model, pad = engine._model, engine._tokenizer.pad_token_id or 0  # the very same model
    longest = max(len(prompt.token_ids) for prompt in batch)
    ids = torch.tensor([[pad] * (longest - len(p.token_ids)) + list(p.token_ids) for p in batch])
    mask = torch.tensor([[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in batch])
    told = {"max_new_tokens": OUTPUT_TOKENS, "min_new_tokens": OUTPUT_TOKENS, "pad_token_id": pad}
    told |= engine._sampling  # and what it is told

    def step() -> None:
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=mask, **told)

    return step


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare(model: Path, minutes: float, error: float) -> str:
    """One row of the table."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # the attempt's lines for people
    ):
        bench = Bench(model, Path(folder))
        for warm in (bench.bare, bench.harness, bench.bare):
            warm()
        alone_s = bench.alone_s()
        pairs: list[tuple[Block, Block]] = []
        end_s = time.monotonic() + minutes * 60
        while len(pairs) < LEAST or (time.monotonic() < end_s and _median(_wall(pairs))[1] > error):
            pairs.append((bench.harness(), bench.bare()))
            pairs.append((bench.bare(), bench.harness())[::-1])
        bench.close()
    step_s = statistics.median(block.wall_s / block.tokens for _, block in pairs) * BATCH
    wall, cpu = _median(_wall(pairs)), _median([a.tokens / a.cpu_s / (b.tokens / b.cpu_s) for a, b in pairs])
    sampler_s, wall_s = (
        sum(values) for values in zip(*((a.cpu_s - a.engine_s, a.wall_s) for a, _ in pairs), strict=True)
    )
    cells = (
        model.name,
        f"{step_s * 1e3:.2f} ms",
        f"{alone_s * 1e6:.0f} us",
        f"{alone_s / step_s:.2%}",
        f"{sampler_s / wall_s:.2%}",
        f"{wall[0]:.4f} +- {wall[1]:.4f}",
        f"{cpu[0]:.4f} +- {cpu[1]:.4f}",
        str(len(pairs)),
    )
    return f"| {' | '.join(cells)} |"


def _wall(pairs: Sequence[tuple[Block, Block]]) -> list[float]:
    return [(a.tokens / a.wall_s) / (b.tokens / b.wall_s) for a, b in pairs]


def _median(values: Sequence[float]) -> tuple[float, float]:
    """Median and its standard error, as for a normal distribution with the sample's median absolute deviation."""
    middle = statistics.median(values)
    deviation = statistics.median([abs(value - middle) for value in values])
    return middle, 1.253 * 1.483 * deviation / len(values) ** 0.5


def main() -> None:
    """Print one row for each model."""
    options = argparse.ArgumentParser(description="Throughput with the harness against the bare engine.")
    options.add_argument("--models", type=Path, nargs="+", default=MODELS)
    options.add_argument("--minutes", type=float, default=6.0, help="at most, for each model")
    options.add_argument("--error", type=float, default=0.004, help="standard error at which it ends")
    chosen = options.parse_args()
    print(
        "| model | a step of the bare engine | harness alone, a step | of the engine's step | sampler, share of a core "
        "| tokens/s, harness / bare: wall clock | CPU time | pairs |"
    )
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "gpus.conf"
        script.write_text("gpus = 8\n")
        os.environ.update(build().environment(script))
        for model in chosen.models:
            print(compare(model, chosen.minutes, chosen.error), flush=True)


if __name__ == "__main__":
    main()
