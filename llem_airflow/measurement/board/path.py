"""The measuring path end to end: ``python -m llem_airflow.measurement.board.path <uuid> <seconds> <folder>``.

A model with random weights answers prompts as in an attempt: its loop, its sampler, its windows. Beside it the other
tools that are installed measure the same windows; and the same model in a bare loop tells what the harness costs.
``path.json`` holds what happened, or why nothing could; power.csv what the sampler read. On a stand-in the model runs
on the CPU, and the power is its script's.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.measurement.attempt import Attempt
from llem_airflow.measurement.board.peer import Peers
from llem_airflow.measurement.output import EventLog
from llem_airflow.measurement.sampler import Sampler, start_sampler
from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.files import EVENTS, POWER, write_json
from llem_airflow.protocol.spec import ExperimentSpec, Limits, MeterSpec, ModelSource, Prompts
from llem_airflow.protocol.typed_json import to_json

PATH = "path.json"
WINDOWS = 5
_FEWEST_PAIRS, _MOST_PAIRS = 3, 40
_BLOCK_S = 0.25
"""A block of the comparison with the bare loop is at least one batch and so long."""
_LEAST_S = 6.0
"""Measuring takes so long at least, however late the model was ready."""
_COMPARING = 0.3
"""Share of the time that the comparison with the bare loop may take."""


@dataclass(frozen=True)
class Ready:
    """A loaded model with an attempt and a sampler around it."""

    engine: Any
    work: list[tuple[Any, ...]]
    attempt: Attempt
    sampler: Sampler

    def passes(self, wanted_s: float) -> int:
        """Pass after pass for so long, as in the window of an attempt; the tokens that came."""
        done = self.attempt.passes(self.engine, self.work, time.monotonic_ns(), wanted_s)
        return sum(one.output_tokens for one in done)

    def pass_once(self) -> int:
        """One pass."""
        return self.passes(0.0)


def main(argv: list[str]) -> int:
    """Measure and write what came out; 0 also when nothing could be measured: the file says why."""
    uuid, until_s, folder = argv[0], time.monotonic() + float(argv[1]), Path(argv[2])
    try:
        found = _measured(uuid, until_s, folder)
    except Exception as error:  # noqa: BLE001  # engine, driver and meter raise many kinds; the page says which
        first = next(iter(str(error).splitlines()), "")
        found = {
            "problem": first
            if isinstance(error, RuntimeError) and first
            else f"{type(error).__name__}: {first}"
        }
    write_json(folder / PATH, found)
    return 0


def _measured(uuid: str, until_s: float, folder: Path) -> dict[str, Any]:
    try:
        from llem_airflow.measurement.board import random_model  # noqa: PLC0415  # what it imports may be missing
    except ImportError as error:
        return {"problem": f"PyTorch or transformers is not usable here: {error}"}

    random_model.quiet()
    meter = MeterSpec(kind="nvml", gpus=(uuid,))
    sampler = start_sampler(meter, folder / POWER)
    peers = Peers(uuid)
    try:
        engine = random_model.RandomModel(
            cpu=any("STAND-IN" in str(gpu["name"]) for gpu in sampler.describe_gpus())
        )
        spec = _spec(meter)
        engine.load(spec)
        log = EventLog(folder / EVENTS)
        log.phase_name = "measure"
        ready = Ready(engine, [(engine.prompt(),)], Attempt(spec, folder, log), sampler)
        peers.answers(ready.pass_once)
        engine.bare(ready.work[0])
        left_s = max(until_s - time.monotonic(), _LEAST_S)
        pairs = _against_bare(ready, _COMPARING * left_s)
        windows = [_window(ready, peers, (1 - _COMPARING) * left_s / WINDOWS / 1.5) for _ in range(WINDOWS)]
        facts = engine.describe().model
    finally:
        peers.close()
        told = sampler.stop()
    return {
        "model": {name: facts[name] for name in ("n_parameters", "dtype", "device")},
        "meter": to_json(told),
        "harness_to_bare": pairs,
        "windows": windows,
        "peer_problems": peers.problems,
    }


def _against_bare(ready: Ready, seconds: float) -> list[float]:
    """Tokens per second with the harness over those of the bare loop, block by block.

    Two neighbours make one ratio, and the order changes from pair to pair, so that a drift falls out. The sampler rests
    while the bare loop runs.
    """
    until_s, ratios = time.monotonic() + seconds, list[float]()
    while len(ratios) < _FEWEST_PAIRS or (time.monotonic() < until_s and len(ratios) < _MOST_PAIRS):
        if len(ratios) % 2:
            bare = _bare(ready)
            ratios.append(_harness(ready) / bare)
        else:
            ratios.append(_harness(ready) / _bare(ready))
    return ratios


def _harness(ready: Ready) -> float:
    began_s = time.monotonic()
    tokens = ready.passes(_BLOCK_S)
    ready.engine.sync()
    return tokens / (time.monotonic() - began_s)


def _bare(ready: Ready) -> float:
    (batch,) = ready.work
    with ready.sampler.resting():
        began_s, tokens = time.monotonic(), 0
        while (elapsed_s := time.monotonic() - began_s) < _BLOCK_S:
            ready.engine.bare(batch)
            tokens += sum(prompt.output_tokens for prompt in batch)
        return tokens / elapsed_s


def _window(ready: Ready, peers: Peers, seconds: float) -> dict[str, Any]:
    """One window, opened and closed as an attempt does, within those of the other tools."""
    peers.tell("begin")
    peers.answers(ready.pass_once)
    begin_ns = ready.sampler.wait_for_tick() or time.monotonic_ns()
    tokens = ready.passes(seconds)
    ready.engine.sync()
    end_ns = time.monotonic_ns()
    ready.sampler.wait_for_tick()
    peers.tell("end")
    return {
        "begin_ns": begin_ns,
        "end_ns": end_ns,
        "output_tokens": tokens,
        "peers": peers.answers(ready.pass_once),
    }


def _spec(meter: MeterSpec) -> ExperimentSpec:
    return ExperimentSpec(
        PROTOCOL_VERSION,
        study="gpu-check",
        experiment_hash="0" * 16,
        slug="random-weights",
        engine="transformers",
        config={"serving_mode": "offline"},
        cycle=1,
        model=ModelSource("random weights"),
        prompts=Prompts("random", "", (), 1),
        meter=meter,
        limits=Limits(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
