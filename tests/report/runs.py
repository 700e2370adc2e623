"""Six recorded runs whose report is frozen in golden/: each shows another part of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llem_airflow.results import ResultsRoot, StoredRun
from tests.results.recorded import Recording, experiment_id, plan_json, provenance, variant

HASHES = ("aaaaaaaa00000000", "bbbbbbbb00000000", "cccccccc00000000")
SIZES = (1, 4, 8)
IDS = tuple(experiment_id(index, hash_) for index, hash_ in enumerate(HASHES))
NOISE = (0.0, 1.0, -1.5, 0.5, -0.4)
DAY_S = 86_400.0
ESTIMATE = Recording(
    energy_kind="estimate", meter_kind="cpu-estimate", gpus=("cpu",), counter=False, power_w=20.0
)


def _run(
    root: ResultsRoot,
    scratch: Path,
    name: str,
    recordings: Mapping[tuple[int, int], Recording],
    *,
    cycles: int,
    experiments: int = 2,
    day: int = 0,
    meta: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> StoredRun:
    """A run of the study ``name``'s first part (before the slash), with what its cycles recorded."""
    study, _, run_id = name.partition("/")
    run = root.run(study, run_id)
    configs = [
        {"engine": "transformers", "task": {"model": "tiny"}, "transformers": {"batch_size": size}}
        for size in SIZES[:experiments]
    ]
    planned = plan_json(list(zip(IDS, HASHES, configs, strict=False)), cycles)
    started = provenance(day * DAY_S)["started_epoch_ns"]
    run.write_plan("model: tiny\n", planned | dict(plan or {}), {"started_epoch_ns": started, **(meta or {})})
    for (index, cycle), recording in recordings.items():
        folder = scratch / f"{study}-{run_id}-{index}-{cycle}"
        config = recording.config or configs[index]
        variant(recording, hash=HASHES[index], cycle=cycle, config=config).write(folder)
        run.commit_cycle(
            IDS[index], cycle, folder, provenance(day * DAY_S + 60.0 * (experiments * cycle + index))
        )
    return run


def _noisy(
    power_w: float, cycles: int, experiments: int = 2, **changes: Any
) -> dict[tuple[int, int], Recording]:
    """Each further experiment draws a fifth less."""
    return {
        (index, cycle): Recording(power_w=power_w * 0.8**index + NOISE[cycle - 1] * (1 + index), **changes)
        for cycle in range(1, cycles + 1)
        for index in range(experiments)
    }


def sweep(root: ResultsRoot, scratch: Path) -> list[StoredRun]:
    """Three healthy experiments of three cycles, with a carbon intensity and a price."""
    stated = {
        "carbon": {"g_per_kwh": 380.0, "source": "grid average", "year": 2025},
        "price": {"per_kwh": 0.3, "currency": "EUR", "source": "contract", "year": 2025},
    }
    recordings = _noisy(200.0, 3, 3)
    return [_run(root, scratch, "sweep/r1", recordings, cycles=3, experiments=3, plan={"stated": stated})]


def single(root: ResultsRoot, scratch: Path) -> list[StoredRun]:
    """One experiment of five cycles, a short window in some."""
    recordings = _noisy(200.0, 5, 1)
    recordings |= {(0, 2): Recording(window_s=12.0), (0, 4): Recording(window_s=15.0, requests=7)}
    return [_run(root, scratch, "single/r1", recordings, cycles=5, experiments=1)]


def failing(root: ResultsRoot, scratch: Path) -> list[StoredRun]:
    """One valid cycle; another failed twice, one left no trace, one has no energy that can be told."""
    recordings = {(0, 1): Recording(), (1, 2): Recording(counter=False, hz=0.1)}
    plan = {
        "skipped": [
            {"rule": "no-bf16-on-cpu", "reason": "bfloat16 is slow here", "point": {"dtype": "bfloat16"}}
        ]
    }
    run = _run(root, scratch, "failing/r1", recordings, cycles=2, plan=plan)
    for attempt, category in ((1, "gpu_unavailable"), (2, "model_missing")):
        left = scratch / f"failed-{attempt}"
        left.mkdir()
        failure = {
            "category": category,
            "message": "the attempt failed: ValueError: no tokenizer from one of:\n(1) a file,\n(2) a class",
            "hint": "put the tokenizer's files next to the weights",
        }
        run.commit_failed(IDS[1], 1, attempt, left, provenance(60.0 * attempt) | {"failure": failure})
    return [run]


def two_cycles(root: ResultsRoot, scratch: Path) -> list[StoredRun]:
    """Estimates of two cycles: no interval is told."""
    recordings = {(i, c): variant(ESTIMATE, power_w=20.0 - 4 * i + c) for i in (0, 1) for c in (1, 2)}
    return [_run(root, scratch, "two/r1", recordings, cycles=2)]


def adaptive(root: ResultsRoot, scratch: Path) -> list[StoredRun]:
    """A precision target that one experiment meets and the other does not."""
    recordings = _noisy(200.0, 4)
    recordings |= {(1, cycle): Recording(power_w=150.0 + 30 * cycle) for cycle in (1, 2, 3, 4)}
    target = {"precision_target": {"relative_half_width": 0.02, "min_cycles": 2}}
    run = _run(root, scratch, "adaptive/r1", recordings, cycles=5, plan=target)
    run.mark_skipped(IDS[0], 5, "half width 0.93 % after 4 cycles", needed=False)
    return [run]


def releases(root: ResultsRoot, scratch: Path) -> list[StoredRun]:
    """Four nights of one release and two of the next: a history, a regression, a comparison of releases."""
    found = []
    for day, (release, power_w) in enumerate(
        [("tiny@2601", 200.0)] * 3 + [("tiny@2601", 240.0)] + [("tiny@2602", 180.0)] * 2
    ):
        recordings = _noisy(power_w + day % 2, 3)
        meta = {"version": release}
        name = f"releases/scheduled__2026-01-0{day + 1}T03_00_00+00_00"
        found.append(_run(root, scratch, name, recordings, cycles=3, day=day, meta=meta))
    return found


RUNS: dict[str, Callable[[ResultsRoot, Path], list[StoredRun]]] = {
    "sweep": sweep,
    "single": single,
    "failing": failing,
    "two_cycles": two_cycles,
    "adaptive": adaptive,
    "releases": releases,
}
