"""One planned cycle -> the ExperimentSpec that the measuring code is given."""

from __future__ import annotations

from collections.abc import Sequence

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.spec import ExperimentSpec, Limits, MeterSpec, ModelSource
from llem_airflow.study.plan.model import Experiment, Study
from llem_airflow.study.prompts import load_prompts


def experiment_spec(
    study: Study,
    experiment: Experiment,
    cycle: int,
    *,
    model_path: str | None = None,
    gpus: Sequence[str] = (),
    version: str | None = None,
    revision: str | None = None,
) -> ExperimentSpec:
    """What one attempt of this cycle is told.

    Args:
        study: The study.
        experiment: One of its experiments.
        cycle: Which repetition, from 1.
        model_path: Directory of the weights as the attempt sees it, or None to fetch from the hub.
        gpus: UUIDs that the attempt was given.
        version: Name of one of the study's ``versions``, to measure that release.
        revision: Commit that the experiment's revision means, where that is known.

    Raises:
        PromptsError: The prompts cannot be had.
        KeyError: The study has no such version.
    """
    if version is not None:
        experiment = experiment.at_version(study.version(version))
    config = experiment.config
    task, measurement = config["task"], config["measurement"]
    return ExperimentSpec(
        schema_version=PROTOCOL_VERSION,
        study=study.name,
        experiment_hash=experiment.hash,
        slug=experiment.slug,
        engine=experiment.engine,
        config=config,
        cycle=cycle,
        model=ModelSource(name=experiment.model, path=model_path, revision=revision or experiment.revision),
        prompts=load_prompts(task["dataset"], seed=task["random_seed"], folder=study.folder),
        meter=MeterSpec(
            kind=measurement["meter"],
            power_hz=float(measurement["power_hz"]),
            gpus=tuple(gpus),
            cpu_idle_w=float(measurement["cpu_idle_watts"]),
            cpu_max_w=float(measurement["cpu_max_watts"]),
            min_window_s=float(measurement["min_window_seconds"]),
        ),
        limits=Limits(wall_clock_s=experiment.wall_clock_s, silence_s=experiment.silence_s),
    )
