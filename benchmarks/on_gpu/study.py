"""A study through the process runner, without Airflow: ``study.py STUDY``; into LLEM_RESULTS_ROOT.

The smallest loop over a plan: each planned cycle gets a place and a process, its files are committed, and the run is
aggregated, as the operators do it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from llem_airflow import __version__
from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.summary import Summary
from llem_airflow.protocol.files import config_name
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Busy, Collected, Wait
from llem_airflow.runners.process import ProcessRunner, ProcessSettings
from llem_airflow.study import Study, load_study
from llem_airflow.study.plan.model import Experiment
from llem_airflow.study.plan.request import experiment_spec

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "tiny-llama-random"


def main() -> int:
    """Measure all cycles and tell what came out; 1 when one has no result."""
    study = load_study(sys.argv[1])
    with tempfile.TemporaryDirectory() as work:
        run = open_run(study, Path(os.environ["LLEM_RESULTS_ROOT"]))
        model = _model(study, Path(work))
        for planned in study.plan.planned_cycles:
            experiment = next(one for one in study.experiments if one.id == planned.experiment_id)
            try:
                measure(run, study, experiment, planned.cycle, model)
            except Exception as error:  # noqa: BLE001  # whatever it is, the other cycles go on
                traceback.print_exc()
                why = str(error).partition("\n")[0]
                print(f"> {experiment.id} cycle {planned.cycle}: no result: {why}", flush=True)
        summary = aggregate_run(run)
    _tell(summary)
    return int(summary.valid < summary.planned and not _played(summary))


def open_run(study: Study, root: Path) -> StoredRun:
    """A new run with the study and its plan in it."""
    run = ResultsRoot(str(root)).run(study.name, datetime.now(UTC).isoformat(timespec="seconds"))
    plan = {**study.plan.to_json(), "stated": study.output.stated()}
    run.write_plan(study.text, plan, {"started_epoch_ns": time.time_ns()})
    return run


def measure(run: StoredRun, study: Study, experiment: Experiment, cycle: int, model: Path | None) -> None:
    """One cycle, from a place to its committed folder.

    Raises:
        AttemptFailedError: It failed; what it left is stored.
    """
    spec = experiment_spec(study, experiment, cycle, model_path=str(model) if model else None)
    attempt = Attempt(
        study.name, run.run_id, experiment.id, -1, experiment.id, experiment.hash, cycle, 1, "on_gpu"
    )
    settings = ProcessSettings(
        wall_clock_s=experiment.wall_clock_s, silence_s=experiment.silence_s, gpu_request=experiment.gpus
    )
    facts: dict[str, Any] = {
        "llem_airflow_version": __version__,
        "run_id": run.run_id,
        "experiment": experiment.id,
        "experiment_hash": experiment.hash,
        "cycle": cycle,
        "runner": ProcessRunner.name,
        "started_epoch_ns": time.time_ns(),
    }
    with tempfile.TemporaryDirectory() as work:
        runner = ProcessRunner(attempt, settings, folder=Path(work), on_line=partial(print, flush=True))
        placed = runner.place(spec, Wait())
        if isinstance(placed, Busy):
            raise placed.error(Path(work))
        Path(work, config_name(spec.experiment_hash)).write_text(placed.told(spec).dumps(), encoding="utf-8")

        def store(collected: Collected) -> None:
            facts.update(finished_epoch_ns=time.time_ns(), host=collected.host, gpus=list(collected.gpus))
            run.commit_cycle(experiment.id, cycle, collected.folder, facts)

        try:
            runner.run(placed, spec, store)
        except Exception as error:
            run.commit_failed(experiment.id, cycle, 1, Path(work), {**facts, "error": str(error)})
            raise


def _model(study: Study, work: Path) -> Path | None:
    """The folder of the model of random weights, made now; None for engines without one."""
    if not any(one.model == MODEL for one in study.experiments):
        return None
    program = REPOSITORY / "images" / "models" / "tiny_llama.py"
    subprocess.run([sys.executable, program, work / MODEL], check=True)
    return work / MODEL


def _played(summary: Summary) -> bool:
    """Whether all cycles came to their end and only the stand-in's joules, which no model drew, were withheld."""
    codes = [{doubt.code for doubt in one.doubts} for one in summary.experiments]
    ended = sum(one.statuses.get("invalid_energy", 0) for one in summary.experiments)
    return ended == summary.planned and all({"stand_in", "other_device"} <= found for found in codes)


def _tell(summary: Summary) -> None:
    withheld = sum(one.statuses.get("invalid_energy", 0) for one in summary.experiments)
    without = f", {withheld} of them without an energy" if withheld else ""
    print(f"> {summary.valid + withheld} of {summary.planned} cycles have a result{without}")
    for one in summary.experiments:
        means = {metric.name: f"{metric.all.mean:.4g}" for metric in one.metrics}
        energy, speed = (
            means.get(name, "-") for name in ("energy_per_output_token_j", "output_tokens_per_s")
        )
        known = f"{energy} J/output token ({one.energy_kind})" if energy != "-" else "no energy"
        print(f"> {one.id}: {known}, {speed} output tokens/s")
        for doubt in one.doubts:
            if doubt.severity == "withheld":
                print(f">   {doubt.message}")


if __name__ == "__main__":
    sys.exit(main())
