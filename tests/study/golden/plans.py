"""Identity and plan of studies, one a line: its text, and what became of it.

``experiments`` has ``<id> <hash> <digest>`` of each, where the digest is over everything that it is: configuration,
GPUs, runner, image, limits; of the thirteenth and later ones there is one digest together. ``order`` is the digest of
the order of the cycles and their pauses, ``plan`` of the plan as it is stored, without its notices, which stand beside
it; ``sections`` of all that the study says beside its experiments; ``spec`` of what the container is told in the first
cycle; ``versions`` has the hashes of the experiments at each release. In lines that have ``whole``, that is the plan
itself. In every digest 1.0 is 1.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import asdict, is_dataclass
from datetime import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llem_airflow.study import Experiment, PromptsError, Study, StudyFileError, experiment_spec, load_study
from tests.study.golden.reports import FOLDER, STUDY

FILE = FOLDER / "plans.jsonl"
SHOWN = 12
INPUTS = ("name", "text", "files")
Line = dict[str, Any]


def read_lines() -> Iterator[Line]:
    """What is kept."""
    for line in FILE.read_text("utf-8").splitlines():
        yield json.loads(line)


def answer(line: Line) -> Line:
    """The line with what becomes of its study now."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for name, text in {STUDY: line["text"], **line.get("files", {})}.items():
            Path(name).write_text(text, "utf-8")
        try:
            study = load_study(STUDY)
        except StudyFileError as error:
            return {"refused": str(error)}
        plan = plain(study.plan.to_json())
        notices = [notice["message"] for notice in plan.pop("notices")]
        answered: Line = {
            "dag_id": study.dag_id,
            "experiments": _named(study.experiments),
            "order": digest([plan["order"], plan["gaps"]]),
            "plan": digest(plan),
            "notices": notices,
            "sections": digest(_sections(study)),
            "spec": _spec(study),
        }
    if study.versions:
        answered["versions"] = {
            version.name: [each.at_version(version).hash for each in study.experiments]
            for version in study.versions
        }
    if "whole" in line:
        answered["whole"] = plan
    return {name: line[name] for name in INPUTS if name in line} | answered


AIRFLOW = [
    "dag_id",
    "schedule",
    "timezone",
    "start_date",
    "catchup",
    "window",
    "carry_over",
    "deadline_s",
    "tags",
    "owner",
    "retries",
    "retry_delay_s",
    "max_active_cycles",
    "pool",
    "priority",
    "notify_on",
]
EXECUTION = [
    "experiment_order",
    "shuffle_seed",
    "allow_missing_cycles",
    "canary",
    "experiment_timeout_s",
    "silence_s",
    "wall_clock_timeout_s",
    "deduplicate_equivalent",
    "max_consecutive_failures",
    "breaker_cooldown_s",
]


def _sections(study: Study) -> list[Any]:
    """What the study says beside its experiments, by the names under which it is read."""
    needs_cooldown = any(
        each.config["measurement"]["meter"] in {"auto", "nvml", "rapl"} for each in study.experiments
    )
    gap_s, long_gap_s = study.execution.gaps_s(needs_cooldown=needs_cooldown)
    target = study.execution.precision_target
    airflow = {name: getattr(study.airflow, name) for name in AIRFLOW}
    execution = {name: getattr(study.execution, name) for name in EXECUTION}
    gaps = {"n_cycles": study.cycles, "experiment_gap_s": gap_s, "cycle_gap_s": long_gap_s}
    return [
        study.name,
        airflow | {"regression": study.airflow.compared},
        execution | gaps | {"precision_target": target},
        study.output,
        study.versions,
    ]


def _named(experiments: Sequence[Experiment]) -> list[str]:
    lines = [f"{each.id} {each.hash} {digest(_all_of(each))}" for each in experiments]
    rest = lines[SHOWN:]
    return lines[:SHOWN] + ([f"and {len(rest)} more: {digest(rest)}"] if rest else [])


def _all_of(experiment: Experiment) -> list[Any]:
    return [
        experiment.config,
        experiment.gpus,
        experiment.runner,
        experiment.image,
        experiment.model,
        experiment.revision,
        experiment.wall_clock_s,
        experiment.silence_s,
    ]


def _spec(study: Study) -> str | None:
    """Digest of what the container is told; None where its prompts are not on this machine, or for a server."""
    if study.experiments[0].config["task"]["dataset"]["source"].startswith("org/"):
        return None  # a dataset of the hub
    try:
        return digest(experiment_spec(study, study.experiments[0], 1))
    except (PromptsError, NotImplementedError):
        return None


def digest(value: Any) -> str:
    """Eight hex digits for a value."""
    return sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:8]


def plain(value: Any) -> Any:
    """The value as JSON, with whole numbers without a point."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    if isinstance(value, time):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def golden() -> tuple[Path, str]:
    """The golden file as it would be written now."""
    lines = (json.dumps(answer(line), sort_keys=True, ensure_ascii=False) for line in read_lines())
    return FILE, "".join(f"{line}\n" for line in lines)
