"""What the page of a new study asks: whether a text is a study, what it would measure, and whether it may be triggered.

Nothing is stored or started, and no file that the text names is read: the text comes from a browser.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dag import DagModel
from fastapi import Depends, HTTPException, Request
from fastapi.responses import Response

from llem_airflow.operators.request import STUDY_FIELD
from llem_airflow.study import Problem, Study, StudyFileError, load_study_text
from llem_airflow.study.config.schema import json_schema
from llem_airflow.study.file.document import Bounds
from llem_airflow.study.names import ADHOC_DAG_ID, PROMPT_FILES, names_dataset
from llem_airflow.web.access import ReadableDags
from llem_airflow.web.answers import json_answer

LARGEST_BYTES = 128 << 10
"""Of a text; a larger study belongs into the DAG folder."""
BOUNDS = Bounds(points=10_000, cycles=100_000, reads_base=False)
"""Together about a second of one core; files in the DAG folder may ask for more."""
SHOWN = 200
"""Problems, and experiments, that an answer has; the others are counted."""
EXAMPLE = """\
# Does answering four requests at once save energy per token?
study_name: my-study
serving_mode: offline
engine: transformers

task:
  model: HuggingFaceTB/SmolLM2-135M-Instruct
  max_output_tokens: 64
  dataset: {source: builtin, n_prompts: 16}

sweep:
  transformers.llem_execution.batch_size: [1, 4]

study_execution:
  n_cycles: 3
  experiment_order: interleave
"""
PATIENCE_S = 20.0
"""So long a text waits for the one that is checked before it."""
_one_at_a_time = threading.Lock()


async def text_of(request: Request) -> str:
    """The text in the body of a request, read up to the limit.

    Raises:
        HTTPException: 413 when it is longer, 400 when it is no text.
    """
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LARGEST_BYTES:
            advice = "put a larger study as a file into the folder of studies"
            raise HTTPException(413, f"the text has more than {LARGEST_BYTES >> 10} KiB; {advice}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"byte {error.start} is no UTF-8; save the file as UTF-8") from error


def check(text: Annotated[str, Depends(text_of)]) -> Response:
    """The plan of a study, or what is wrong with it; one text at a time, so that it costs one core at most."""
    if not _one_at_a_time.acquire(timeout=PATIENCE_S):
        raise HTTPException(503, "other studies are being checked; try again in a moment")
    try:
        return json_answer(checked(text))
    finally:
        _one_at_a_time.release()


def checked(text: str) -> dict[str, Any]:
    """Plan, warnings and problems of a text."""
    try:
        study = load_study_text(text, name="study", bounds=BOUNDS)
    except StudyFileError as error:
        return _answer(error.problems)
    problems = tuple(_relative_prompts(study))
    return _answer(problems, None if problems else study)


def _answer(problems: tuple[Problem, ...], study: Study | None = None) -> dict[str, Any]:
    return {
        "problems": [{**problem.to_json(), "text": str(problem)} for problem in problems[:SHOWN]],
        "more_problems": max(0, len(problems) - SHOWN),
        "plan": None if study is None else _plan(study),
        "warnings": []
        if study is None
        else [*(one.to_json() for one in study.warnings), *_not_applied(study)],
    }


def _plan(study: Study) -> dict[str, Any]:
    plan = study.plan
    reasons = {skip.rule: skip.reason for skip in plan.skipped}
    hosts: dict[str, list[str]] = {}  # by experiment; none where the study names none
    for run in plan.planned_cycles:
        if run.host:
            hosts.setdefault(run.experiment_id, []).append(run.host)
    on_hosts = Counter(run.host for run in plan.planned_cycles if run.host)
    return {
        "name": study.name,
        "declared": plan.declared,
        "valid": plan.valid,
        "unique": len(plan.experiments),
        "cycles": plan.cycles,
        "runs": len(plan.planned_cycles),
        "order": study.execution.experiment_order,
        "longest_s": plan.wall_clock_s,
        "pauses_s": sum(run.gap_before_s for run in plan.planned_cycles),
        "gpus": plan.gpus,
        "hosts": [{"name": name, "runs": runs} for name, runs in on_hosts.items()],
        "skipped": [
            {"rule": rule, "reason": reasons[rule], "points": count}
            for rule, count in Counter(skip.rule for skip in plan.skipped).most_common()
        ],
        "experiments": [
            {
                "id": each.id,
                "engine": each.engine,
                "model": each.model,
                "runner": each.runner,
                "gpus": each.gpus.count,
                "hosts": list(dict.fromkeys(hosts.get(each.id, ()))),
            }
            for each in plan.experiments[:SHOWN]
        ],
    }


def _relative_prompts(study: Study) -> Iterator[Problem]:
    """A pasted study lies in no folder that the path of a file could be relative to."""
    for source in dict.fromkeys(each.config["task"]["dataset"]["source"] for each in study.experiments):
        is_file = source.endswith(PROMPT_FILES) and not names_dataset(source)
        if is_file and not source.startswith(("/", "~")):
            advice = "a study that is no file needs an absolute path, on the machine that measures"
            where = ("task", "dataset", "source")
            yield study.problem(
                where, f"the file {source!r} has no folder that it could lie in", advice, value=source
            )


def _not_applied(study: Study) -> Iterator[dict[str, Any]]:
    """Keys that belong to a DAG of the study's own."""
    keys = ("schedule", "window", "deadline", "tags", "pool", "max_active_cycles", "dag_id")
    for key in keys:
        if key in study.airflow.model_fields_set:
            place = study.problem(("airflow", key), "", "")
            message = f"airflow.{key} has no effect on a study that is triggered here, only on one in the DAG folder"
            yield {"code": "not-applied", "message": message, "line": place.line}


def new_study(user: GetUserDep, readable: ReadableDags, session: SessionDep) -> Response:
    """What the page needs once: the schema of studies, an example, and the DAG that would measure the text."""
    dag = session.get(DagModel, ADHOC_DAG_ID) if ADHOC_DAG_ID in readable else None
    known = dag is not None and not dag.is_stale
    return json_answer(
        {
            "dag_id": ADHOC_DAG_ID,
            "field": STUDY_FIELD,
            "known": known,
            "paused": dag is not None and bool(dag.is_paused),
            "may_trigger": known and _may_trigger(user),
            "largest_bytes": LARGEST_BYTES,
            "schema": json_schema(),
            "example": EXAMPLE,
        }
    )


def _may_trigger(user: Any) -> bool:
    return get_auth_manager().is_authorized_dag(
        method="POST",
        access_entity=DagAccessEntity.RUN,
        details=DagDetails(id=ADHOC_DAG_ID, team_name=DagModel.get_team_name(ADHOC_DAG_ID)),
        user=user,
    )
