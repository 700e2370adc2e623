"""What measuring costs the engine: tokens per second with the harness against the bare engine.

    OMP_NUM_THREADS=1 python -m benchmarks.overhead [--model FOLDER] [--blocks 12] [--seconds 5]

One process, one loaded model. Blocks with everything that an attempt does around ``generate`` (sampler
process at 10 Hz on 8 stand-in GPUs, a time per token, request and event logs) alternate with blocks of
``generate`` alone, in ABBA order. The ratio by wall clock says what a user sees on a quiet machine; the
ratio by CPU time, sampler included, is the one to trust on a busy one.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llem_airflow.measurement.engines.registry import open_engine
from llem_airflow.measurement.events import EventLog
from llem_airflow.measurement.prompts import batches, prompt_set
from llem_airflow.measurement.requests import RequestLog
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.files import EVENTS, POWER, REQUESTS
from llem_airflow.protocol.spec import ExperimentSpec, MeterSpec
from llem_airflow.study import experiment_spec, load_study_text
from tests.standins.build import build

OUTPUT_TOKENS = 32
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
transformers: {{{{llem_execution: {{{{batch_size: {BATCH}}}}}}}}}
"""


class Block(NamedTuple):
    """One block of iterations.

    Attributes:
        tokens: Generated tokens.
        wall_s: Time that passed.
        cpu_s: CPU time of this process and of the sampler.
    """

    tokens: int
    wall_s: float
    cpu_s: float


def spec_of(model: Path) -> ExperimentSpec:
    """A spec as an attempt gets it."""
    study = load_study_text(STUDY.format(model=model.name))
    return experiment_spec(study, study.experiments[0], 1, model_path=str(model))


def timed(seconds: float, step: Callable[[], int]) -> Block:
    """Repeat a step for a while."""
    begin_s, cpu_s = time.monotonic(), _own_cpu_s()
    tokens = 0
    while time.monotonic() - begin_s < seconds:
        tokens += step()
    return Block(tokens, time.monotonic() - begin_s, _own_cpu_s() - cpu_s)


def bare(engine: Any, batch: Sequence[Any], seconds: float) -> Block:
    """``generate`` and nothing else, with the same arguments."""
    model, pad = engine._model, engine._tokenizer.pad_token_id or 0  # noqa: SLF001  # the very same model
    longest = max(len(prompt.token_ids) for prompt in batch)
    ids = torch.tensor([[pad] * (longest - len(p.token_ids)) + list(p.token_ids) for p in batch])
    mask = torch.tensor([[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in batch])
    sampling = engine._sampling  # noqa: SLF001  # and what it is told

    def step() -> int:
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=OUTPUT_TOKENS,
                min_new_tokens=OUTPUT_TOKENS,
                pad_token_id=pad,
                **sampling,
            )
        return OUTPUT_TOKENS * len(batch)

    return timed(seconds, step)


def harness(engine: Any, batch: Sequence[Any], seconds: float) -> Block:
    """The same with everything that an attempt does while it measures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        log, requests = EventLog(out / EVENTS), RequestLog(out / REQUESTS)
        sampler = start_sampler(MeterSpec(kind="nvml"), out / POWER)

        def step() -> int:
            completions = engine.generate(batch, lambda _: None)
            totals = requests.write("measure", 0, batch, completions)
            log.emit("iteration", index=0, duration_s=totals.duration_s, output_tokens=totals.output_tokens)
            return int(totals.output_tokens)

        with log.phase("measure"):
            sampler.wait_for_tick()
            block = timed(seconds, step)
        meter = sampler.stop()
        requests.close()
    share = block.wall_s * 10 * 8 / max(meter.samples, 1)  # the sampler ran a little longer than the block
    return block._replace(cpu_s=block.cpu_s + (meter.sampler_cpu_s or 0.0) * min(share, 1.0))


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Alternate the blocks and print the ratios."""
    options = argparse.ArgumentParser(description="Throughput with the harness against the bare engine.")
    options.add_argument("--model", type=Path, default=Path("build/models/SmolLM2-135M-Instruct"))
    options.add_argument("--blocks", type=int, default=12)
    options.add_argument("--seconds", type=float, default=5.0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "gpus.conf"
        script.write_text("gpus = 8\n")
        os.environ.update(build().environment(script))
        spec = spec_of(chosen.model)
        engine: Any = open_engine("transformers", offline=True)
        engine.load(spec)
        batch = batches(prompt_set(spec, engine), engine.batch_size())[0]
        bare(engine, batch, 3.0)
        found: dict[str, list[Block]] = {"bare": [], "harness": []}
        for i in range(chosen.blocks):
            for one in (bare, harness) if i % 2 else (harness, bare):
                found[one.__name__].append(one(engine, batch, chosen.seconds))
    pairs = list(zip(found["harness"], found["bare"], strict=True))
    wall = [ours.tokens / ours.wall_s / (theirs.tokens / theirs.wall_s) for ours, theirs in pairs]
    cpu = [ours.tokens / ours.cpu_s / (theirs.tokens / theirs.cpu_s) for ours, theirs in pairs]
    for name, ratios in (("wall clock", wall), ("CPU time", cpu)):
        spread = statistics.stdev(ratios) / len(ratios) ** 0.5
        median = statistics.median(ratios)
        print(
            f"tokens/s by {name}, harness / bare: median {median:.4f} of {len(ratios)} pairs, s.e. {spread:.4f}"
        )


if __name__ == "__main__":
    main()
