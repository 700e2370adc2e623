"""Draws the pages that say little with a test's few results: made-up runs, Airflow's bundle, no Airflow.

``tests.airflow.pictures`` renews these pictures with the others.
"""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from airflow.api_fastapi.common.db.common import _get_session
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from playwright.sync_api import Page
from sqlalchemy import insert
from sqlalchemy.orm import Session

from benchmarks.web import client, database
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.operators.ui import FAILURE_KEY
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import StudyFileError, load_study_text
from llem_airflow.web import access
from tests.browser import chromium_page
from tests.results.recorded import Recording, provenance
from tests.web.airflow_rows import add_run
from tests.web.drawn import SHOW, open_bundle
from tests.web.loaded import loaded
from tests.web.written import BEGAN_NS, DAY_NS, FINGERPRINT, stored

MODELS = {"Llama-3.1-8B-Instruct": 0.33, "Qwen3-8B": 0.35, "Mistral-Small-24B": 0.98}
HARDWARE = {"NVIDIA H100 80GB HBM3": 1.0, "NVIDIA L40S": 1.32}
ENGINES = {"vllm": ("0.33.0", 1.0), "transformers": ("5.16.0", 3.1)}
BATCHES = (1, 4, 16, 64)
PARALLEL = (1, 2)
WAYS = "vllm.tensor_parallel_size"
LONGEST = 1240
"""So much of a page is shown, in pixels."""
DARK = "document.documentElement.classList.add('dark')"
RUN = "scheduled__2026-11-27"


def _config(engine: str, model: str, batch: int, parallel: int) -> dict[str, Any]:
    task = {"model": model, "max_output_tokens": 256, "dataset": {"source": "aienergyscore"}}
    return {"engine": engine, "task": task, engine: {"batch_size": batch, "tensor_parallel_size": parallel}}


def measured(
    root: ResultsRoot, night: int, model: str, gpu: str, engine: str, *, parallel: tuple[int, ...] = (1,)
) -> StoredRun:
    """A run of one model on one kind of GPU with one engine: batch sizes, and over how many GPUs."""
    random = np.random.default_rng(night)
    version, slow = ENGINES[engine]
    points = [(batch, way) for batch in BATCHES for way in parallel]
    plan: dict[str, Any] = {"cycles": 3, "experiments": []}
    rows = []
    for index, (batch, way) in enumerate(points):
        hash_ = f"{night:04x}{index:04x}".ljust(16, "0")
        name = f"{engine}-b{batch}-tp{way}-{hash_[:8]}"
        config = _config(engine, model, batch, way)
        plan["experiments"].append(
            {"id": name, "slug": name[:-9], "hash": hash_, "engine": engine, "config": config}
        )
        energy_j = MODELS[model] * HARDWARE[gpu] * slow * (0.25 + 2.9 / batch**0.72) * way**0.28
        tpot_s = 0.009 * (1 + 0.032 * batch) * slow**0.5 * HARDWARE[gpu] / way**0.62
        for cycle in (1, 2, 3):
            noise = 1 + 0.011 * random.standard_normal()
            measures = {
                "energy_per_output_token_j": energy_j * noise,
                "output_tokens_per_s": batch / tpot_s / noise,
                "tpot_mean_s": tpot_s * noise,
                "ttft_mean_s": (0.021 + 0.0042 * batch)
                * slow
                / way**0.4
                * (1 + 0.03 * random.standard_normal()),
                "average_power_w": energy_j * batch / tpot_s * (1 + 0.01 * random.standard_normal()),
            }
            told = {
                **FINGERPRINT,
                **{"model": model, "engine": engine, "engine_version": version, "n_prompts": 100},
                **{"gpus": [{"uuid": "GPU-0", "name": gpu}], "energy_semantics": 6},
                **{"prompts_sha256": "5f2c91d0" * 8},
            }
            rows.append(
                Cycle(
                    name,
                    cycle,
                    "valid",
                    hash=hash_,
                    engine=engine,
                    engine_version=version,
                    model=model,
                    energy_kind="measured",
                    energy_boundary="board",
                    measures=measures,
                    fingerprint=told,
                )
            )
    study = f"{model.partition('-')[0].lower()}-{gpu.split()[1].lower()}-{engine}"
    meta = {"dag_id": study, "started_epoch_ns": BEGAN_NS + night * DAY_NS}
    return stored(root, study, RUN, plan, meta, rows)


def spread(root: ResultsRoot, folder: Path, session: Session) -> None:
    """A run at work over two hosts of eight GPUs: measured, failed, at work and waiting."""
    names = [f"vllm-batch_size-{batch}-{batch:08x}" for batch in BATCHES]
    experiments: list[dict[str, Any]] = [
        {
            "id": name,
            "slug": name[:-9],
            "hash": name[-8:].ljust(16, "0"),
            "engine": "vllm",
            "config": _config("vllm", "Llama-3.1-70B-Instruct", batch, 8),
        }
        for name, batch in zip(names, BATCHES, strict=True)
    ]
    order = [name for _ in range(4) for name in names]
    hosts = [("dgx1", "dgx2")[(place // 4 + place) % 2] for place in range(16)]
    run = root.run("spread", RUN)
    plan = {"cycles": 4, "experiments": experiments, "order": order, "hosts": hosts}
    run.write_plan("", plan, {"dag_id": "spread", "started_epoch_ns": BEGAN_NS})
    add_run(session, "spread", RUN, "running")
    gpus = [f"GPU-{n}" for n in range(8)]
    states = ["success"] * 6 + ["running"] * 2 + [None] * 8
    for place, state in enumerate(states):
        name, cycle = order[place], 1 + place // 4
        table: Any = TaskInstance.__table__
        values = {
            "task_id": f"{name}.cycle_{cycle}",
            "dag_id": "spread",
            "run_id": RUN,
            "pool": "default_pool",
            "pool_slots": 1,
        }
        values |= {"state": state, "try_number": 1 if state else 0, "operator": "LLEMExperimentOperator"}
        session.execute(
            insert(table).values(**values, duration=431.0 + 7 * place if state == "success" else None)
        )
        left = folder / f"{place}"
        if place == 7:
            left.mkdir()
            (left / "container.log").write_text("loading\nCUDA out of memory\n")
            failed = {"category": "gpu_oom", "message": "no memory", "hint": "lower the batch size"}
            run.commit_failed(name, cycle, 1, left, {"failure": failed})
        if state == "success":
            level, tokens = 420.0 + 45 * (place % 4), 40 * (1 + place % 4) ** 2

            def power(t_s: float, level: float = level) -> float:
                inside = 1015.0 <= t_s <= 1055.0
                return (
                    (level if inside else 118.0 if t_s < 1005 else 240.0)
                    + 22 * math.sin(2.3 * t_s)
                    + 9 * math.sin(17 * t_s)
                )

            recording = Recording(
                hash=name[-8:].ljust(16, "0"),
                cycle=cycle,
                config=experiments[place % 4]["config"],
                power_w=power,
                gpus=gpus,
                output_tokens=tokens,
                ttft_s=0.2,
                itl_s=1.5 / tokens,
                model="Llama-3.1-70B-Instruct",
            )
            recording.write(left)
            _apart(left)
            run.commit_cycle(name, cycle, left, provenance(440.0 * place))
    session.commit()


def _apart(left: Path) -> None:
    """The devices draw a little more and a little less than each other."""
    with (left / "power.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        share = 1 + 0.007 * (int(row["gpu"].rpartition("-")[2]) - 3.5)
        for column in ("power_instant_mw", "power_average_mw"):
            row[column] = str(round(float(row[column]) * share)) if row[column] else ""
    with (left / "power.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


ADHOC = {"known": True, "paused": False, "may_trigger": True}
WRONG = """\
study_name: typed
engine: transformers
task: {model: SmolLM2-135M-Instruct, max_output_token: 8}
sweep:
  transformers.llem_execution.batch_size: [1, two]
study_execution: {n_cycles: 3}
"""


def refused(session: Session) -> None:
    """A run of a pasted study with mistakes."""
    add_run(session, "refused", RUN, "failed", conf={"study": WRONG})
    table: Any = TaskInstance.__table__
    for name, state in (("plan", "failed"), ("aggregate", "upstream_failed")):
        values = {"task_id": name, "dag_id": "refused", "run_id": RUN, "state": state, "try_number": 1}
        pool = {"pool": "default_pool", "pool_slots": 1, "operator": "LLEMPlanOperator"}
        session.execute(insert(table).values(**values, **pool))
    try:
        load_study_text(WRONG, name="study")
    except StudyFileError as error:
        XComModel.set(FAILURE_KEY, str(error), dag_id="refused", task_id="plan", run_id=RUN, session=session)
    session.commit()


class _Site:
    def __init__(self, asked: Any) -> None:
        self._asked = asked

    def get(self, path: str, **params: str) -> Any:
        found = self._asked.get(path, params=params)
        # There is no Airflow that could know the DAG of pasted studies: the pictures are of one that does.
        return httpx.Response(200, json=found.json() | ADHOC) if path == "/api/new-study" else found

    def post(self, path: str, content: bytes) -> Any:
        return self._asked.post(path, content=content)


def site(root: ResultsRoot, session: Session) -> Any:
    """What answers the pages, of a user who may read everything."""
    asked = client(root)
    application: Any = asked.app
    application.dependency_overrides |= {
        _get_session: lambda: session,
        access.reads_runs: lambda: lambda _dag_id: True,
    }
    return _Site(asked)


def draw(page: Page, where: str, props: Mapping[str, Any], drawn: str, *, width: int, dark: bool) -> None:
    """One page, and of a long one its begin."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(DARK if dark else DARK.replace("add", "remove"))
    page.evaluate(SHOW, [where, props])
    page.locator(drawn).first.wait_for(state="attached")
    page.get_by_text("Loading …").first.wait_for(state="detached")
    page.evaluate("document.body.style.padding = '12px'")
    height = min(LONGEST, int(page.evaluate("document.body.firstChild.scrollHeight")) + 24)
    page.set_viewport_size({"width": width, "height": height})
    page.locator(drawn).first.wait_for(state="attached")


def scenes(page: Page) -> Iterator[str]:
    """Draw one after the other, each under its name; those without one in ``PICTURES`` show what only some data has."""
    with tempfile.TemporaryDirectory() as folder, Session(database()) as session:
        root, alone = ResultsRoot(Path(folder) / "results"), ResultsRoot(Path(folder) / "served")
        night = 0
        for model in MODELS:
            for gpu in HARDWARE:
                for engine in ENGINES:
                    night += 1
                    if engine == "vllm" or model.startswith("Llama"):
                        measured(root, night, model, gpu, engine, parallel=PARALLEL if night == 1 else (1,))
        spread(root, Path(folder), session)
        refused(session)
        under_load = loaded(alone, Path(folder), RUN)  # the leaderboard of the others is without it
        study = "llama-h100-vllm"
        for name in (under_load.study, study):
            add_run(session, name, RUN, "success")
        ours, theirs, rates, plan = (
            {"dagId": dag_id, "runId": RUN} for dag_id in (study, "spread", under_load.study, "refused")
        )
        run, work, served, planned = (
            f"/dags/{of['dagId']}/runs/{RUN}/plugin/llem-energy?view=" for of in (ours, theirs, rates, plan)
        )
        of_rate = under_load.plan()["experiments"][2]["id"]
        board = "/plugin/llem-studies?page=leaderboard"
        batches = [f"vllm-batch_size-{batch}-{batch:08x}" for batch in BATCHES]
        pages: tuple[tuple[ResultsRoot, str, str, dict[str, str], str], ...] = (
            (root, "leaderboard", board, {}, "leaderboard] table"),
            (root, "leaderboard-phone", board, {}, "leaderboard] table"),
            (root, "beyond", f"{board}&limit_ms=30&latency=tpot_mean_s", {}, "leaderboard] table"),
            (root, "pareto", f"{run}results&plot=pareto&colour={WAYS}", ours, "pareto] svg"),
            (root, "parallel", f"{run}results&plot=parallel", ours, "parallel] svg"),
            (root, "distributions", f"{run}results&plot=cycles", ours, "distribution] circle"),
            (root, "cycles", f"{work}cycles", theirs, "matrix]"),
            (root, "cell", f"{work}cycles&cell={batches[3]}.2", theirs, "cell]"),
            (root, "failed-cycle", f"{work}cycle&cell={batches[3]}.2", theirs, "cycle] pre"),
            (root, "cycle", f"{work}cycle&cell={batches[2]}.1", theirs, "latencies] polyline"),
            (root, "run-phone", f"{run}results&plot=factors", ours, "factors] svg"),
            (root, "plan", planned, plan, "problem]"),
            (root, "new-study", "/plugin/llem-studies?page=new", {}, "problems] li"),
            (root, "new-study-phone", "/plugin/llem-studies?page=new", {}, "problems] li"),
            (alone, "served", served, rates, "factors] svg"),
            (alone, "served-cycle", f"{served}cycle&cell={of_rate}.1", rates, "latencies] polyline"),
            (alone, "served-board", board, {}, "leaderboard] table"),
        )
        opened = None
        for results, name, where, props, drawn in pages:
            if results is not opened:
                opened = results
                open_bundle(page, site(opened, session))
                page.evaluate("text => sessionStorage.setItem('llem-new-study', text)", WRONG)
            width = 400 if name.endswith("-phone") else 1300 if name == "leaderboard" else 1100
            draw(page, where, props, f"[data-testid=llem-{drawn}", width=width, dark=name in SHOWN_DARK)
            yield name


PICTURES = (
    *("leaderboard", "leaderboard-phone", "pareto", "parallel", "cycles", "cycle", "run-phone", "plan"),
    *("new-study", "new-study-phone", "served", "served-cycle"),
)
"""The scenes that the documentation shows."""
SHOWN_DARK = {"leaderboard-phone", "pareto", "served-cycle"}


def main(shots: Path) -> list[str]:
    """Screenshots of all scenes; the names of those that are shown."""
    with chromium_page() as page:
        for name in scenes(page):
            page.screenshot(path=shots / f"drawn-{name}.png")
    return list(PICTURES)
