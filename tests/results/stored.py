"""A small results root with everything that the store can hold, and the one that was written when formats were frozen.

    python -m tests.results.stored FOLDER

writes it anew. ``stored/`` is never written again: it stands for what users have on their disks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.results import ResultsRoot, StoredRun
from tests.results.recorded import Recording, experiment_id, plan_json, provenance, variant

FROZEN = Path(__file__).parent / "stored"
"""Written by the release before ``results/`` was rebuilt."""

A, B = "aaaaaaaa00000000", "bbbbbbbb00000000"
IDS = (experiment_id(0, A), experiment_id(1, B))
_BRIEF: dict[str, Any] = {
    "load_s": 2.0,
    "warmup_s": 3.0,
    "window_s": 8.0,
    "requests": 4,
    "output_tokens": 3,
    "hz": 2.0,
}
_FAILURE = {"category": "engine", "message": "boom\nmore", "hint": "", "retryable": False}


def make(root: Path) -> StoredRun:
    """A run with valid, repeated, damaged, failed, skipped and left cycles, aggregated."""
    run = ResultsRoot(root).run("nightly", "manual__2026-01-02T03:04:05+00:00")
    experiments = [(name, hash_, {"engine": "transformers"}) for name, hash_ in zip(IDS, (A, B), strict=True)]
    run.write_plan("model: tiny\n", plan_json(experiments, 2), {"dag_id": "nightly"})
    run.write_plan("model: tiny\n", plan_json(experiments, 3), {"dag_id": "nightly"})
    with tempfile.TemporaryDirectory() as name:
        _commit(run, Path(name))
    run.mark_skipped(IDS[1], 2, "not needed: half width 0.1 % after 1 cycle", needed=False)
    run.mark_skipped(IDS[1], 3, "not begun: outside the time-of-day window", needed=True)
    aggregate_run(run)
    return run


def _commit(run: StoredRun, aside: Path) -> None:
    first = Recording(hash=A, **_BRIEF)
    run.commit_cycle(IDS[0], 1, first.write(aside / "first"), provenance())
    again = variant(first, power_w=210.0, gpus=("GPU-1", "GPU-2")).write(aside / "again")
    _second_sampler(again)
    run.commit_cycle(IDS[0], 1, again, provenance(60))
    broken = variant(first, cycle=2).write(aside / "broken")
    (broken / "power.csv").write_text("t_before_mono_ns,t_after_mono_ns,gpu\nabc,def,GPU-1\n")
    run.commit_cycle(IDS[0], 2, broken, provenance(120))
    lost = variant(first, hash=B).write(aside / "lost")
    (lost / f"{B}_result.json").unlink()
    run.commit_failed(IDS[1], 1, 1, lost, provenance(180) | {"failure": _FAILURE})
    other = variant(first, hash=B, power_w=lambda t_s: 150.0 + t_s % 7).write(aside / "other")
    run.commit_cycle(IDS[1], 1, other, provenance(240))


def _second_sampler(folder: Path) -> None:
    (folder / "power_check.csv").write_bytes((folder / "power.csv").read_bytes())
    (folder / "meter_check.json").write_text(
        '{"kind": "nvml", "energy_kind": "measured", "boundary": "board", "devices": ["GPU-1", "GPU-2"], '
        '"requested_hz": 2.0, "achieved_hz": 2.0, "samples": 62, "failed_reads": 0, "call_p50_s": 0.001, '
        '"sampler_cpu_s": 0.1, "note": ""}'
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]))
