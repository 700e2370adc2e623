"""Made-up evidence of a server under load: arrivals by chance, times to the first token that grow with the load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.protocol.result import CycleResult, Served
from llem_airflow.report.page import report_html
from llem_airflow.results import ResultsRoot, StoredRun
from tests.results.recorded import Recording, provenance
from tests.study.texts import study

TEXT = """\
study_name: chat-under-load
serving_mode: server
engine: vllm
task: {model: org/Llama-3.1-8B-Instruct, max_output_tokens: 64}
server: {traffic: {window_seconds: 40, slo: {ttft_ms: 500, tpot_ms: 60, percentile: 0.9}}}
sweep: {server.traffic.rate: [1, 2, 4, 8]}
study_execution: {n_cycles: 3}
"""


@dataclass(frozen=True)
class Loaded(Recording):
    """A cycle at some arrivals a second."""

    rate: float = 1.0

    def result(self) -> CycleResult:
        served = Served(("vllm", "serve"), 31.0, self.rate, self.requests, 0.4, 6.0, 60.0)
        return replace(super().result(), engine="vllm", served=served)

    def request_rows(self) -> list[dict[str, Any]]:
        random = np.random.default_rng([round(self.rate), self.cycle])
        due_s = np.sort(random.uniform(0, self.window_s, self.requests)) + self.begin_s
        share, rows = self.rate / 9, []
        for row, at_s in zip(super().request_rows(), due_s, strict=True):
            ttft_s = 0.05 + random.exponential(0.03 / (1 - share))
            gap_s = 0.012 / (1 - 0.8 * share) * random.lognormal(0, 0.1)
            tokens = [self.ns(at_s + ttft_s + k * gap_s) for k in range(self.output_tokens)]
            times = {"t_submit": at_s, "t_due": at_s, "t_first": at_s + ttft_s}
            rows.append(
                {
                    **row,
                    **{f"{name}_mono_ns": self.ns(at) for name, at in times.items()},
                    **{"t_last_mono_ns": tokens[-1], "t_end_mono_ns": tokens[-1], "token_mono_ns": tokens},
                    "status": "ok",
                }
            )
        return rows


def _power(level_w: float, random: np.random.Generator, t_s: float) -> float:
    return (level_w if t_s > 1008 else 95.0) + random.normal(0, 9)


def loaded(root: ResultsRoot, folder: Path, run_id: str, dag_id: str = "") -> StoredRun:
    """A run of a study of four rates, of a DAG that has its name or another one."""
    asked = study(head=TEXT)
    run = root.run(asked.name, run_id)
    meta = {"dag_id": dag_id or asked.name, "started_epoch_ns": 1_790_000_000 * 10**9}
    run.write_plan(TEXT, asked.plan.to_json(), meta)
    for place, planned in enumerate(asked.plan.planned_cycles):
        one = asked.experiment(planned.experiment_id)
        rate = float(one.config["server"]["traffic"]["rate"])
        random = np.random.default_rng([7, place])
        level_w = 130 + 60 * rate**0.6
        recording = Loaded(
            hash=one.hash,
            cycle=planned.cycle,
            config=one.config,
            power_w=partial(_power, level_w, random),
            requests=round(40 * rate),
            output_tokens=64,
            model="org/Llama-3.1-8B-Instruct",
            engine_version="0.33.0",
            rate=rate,
        )
        left = recording.write(folder / f"loaded-{place}")
        run.commit_cycle(one.id, planned.cycle, left, provenance(80.0 * place))
    aggregate_run(run, page=report_html)
    return run
