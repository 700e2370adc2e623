"""What sessions save, and whether they change what is measured: short experiments on every isolation, interleaved.

    OMP_NUM_THREADS=1 LLEM_MODELS_DIR=build/models python -m benchmarks.sessions [--experiments 20] [--window 2]

The experiments differ in batch size and output length and load alike. Each is measured once on each isolation, one
right after the other and in a turning order, so that a drift of the machine falls out; each isolation has one session
(or none) from the first to the last. The tasks are the operators' own ``execute`` on a real Docker engine, with a real
model; what Airflow takes between tasks is the same for all and not counted.

Told are the wall time of each isolation (the sum of its tasks, start and stop of its session among them), what it saves
of `container`, the mean log ratio of its energies per output token to those of `container` with its 95 % t interval
over experiments, and the break-even: how long an experiment's task on the other isolation must be at least for
`container` to cost at most 10 % more. Tokens of all isolations must be equal.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, get_args

from llem_airflow.analysis.statistics import mean_of, t_interval
from llem_airflow.operators import LLEMExperimentOperator, LLEMStartSessionOperator, LLEMStopSessionOperator
from llem_airflow.operators.outcome import cycle_row
from llem_airflow.results import CycleRef, ResultsRoot
from llem_airflow.study import Study, load_study_text
from llem_airflow.study.config.study import Isolation
from tests.parts import build_image

PLAIN = "container"
ISOLATIONS: tuple[str, ...] = get_args(Isolation)
"""Those that a study may name, the plain one first."""
METRIC = "energy_per_output_token_j"
DEAR_RATIO = 0.1
STUDY = """\
study_name: {isolation}
serving_mode: offline
study_execution: {{n_cycles: 1, isolation: {isolation}}}
engine: transformers
sampling_preset: deterministic
task: {{model: {model}, max_input_tokens: 32, dataset: {{source: builtin, n_prompts: 4}}}}
measurement: {{meter: cpu-estimate, min_window_seconds: {window_s}, baseline: {{enabled: false}}}}
offline: {{warmup: {{enabled: false}}}}
sweep: {{task.max_output_tokens: {lengths}, transformers.llem_execution.batch_size: [1, 2, 4, 8]}}
runners: {{transformers: container}}
images: {{transformers: "{image}"}}
"""


@dataclass
class Side:
    """One isolation and what it took.

    Attributes:
        isolation: Its name.
        study: The study on it.
        wall_s: Of each of its experiments, in seconds.
        around_s: Of its session's start and stop together, in seconds.
        refs: The stored cycles by experiment.
    """

    isolation: str
    study: Study
    wall_s: list[float] = field(default_factory=list)
    around_s: float = 0.0
    refs: dict[str, CycleRef] = field(default_factory=dict)

    @property
    def whole_s(self) -> float:
        """Wall time of everything."""
        return self.around_s + sum(self.wall_s)


def context(study: str, task_id: str) -> Any:
    """What an operator reads of Airflow's context."""
    ti = SimpleNamespace(
        dag_id=study, run_id="once", task_id=task_id, map_index=-1, try_number=1, max_tries=0
    )
    return {"ti": ti, "params": {}}


def timed(task: Any, side: Side) -> float:
    """Execute a task; how long it took, in seconds."""
    begin_s = time.monotonic()
    task.execute(context(side.study.name, task.task_id))
    return time.monotonic() - begin_s


def around(side: Side, kind: Callable[..., Any]) -> None:
    """Start or stop the session of an isolation that has one."""
    for session in side.study.plan.sessions:
        task = kind(task_id=kind.__name__, study=side.study, session=session.id, cycles=session.cycles)
        side.around_s += timed(task, side)


def measure(side: Side, place: int, root: ResultsRoot) -> None:
    """Measure the experiment at this place of the plan."""
    experiment = side.study.experiments[place]
    session = next(iter(side.study.plan.sessions), None)
    task = LLEMExperimentOperator(
        task_id=f"cycle_{place}",
        study=side.study,
        experiment=experiment,
        session=session.id if session else None,
    )
    side.wall_s.append(timed(task, side))
    ref = root.run(side.study.name, "once").cycle(experiment.id, 1)
    assert ref is not None
    side.refs[experiment.id] = ref


def tokens(ref: CycleRef) -> set[tuple[int, tuple[int, ...]]]:
    """What was answered to each prompt."""
    return {(row["prompt_index"], tuple(row["output_token_ids"])) for row in ref.requests().to_pylist()}


def energy_j(ref: CycleRef) -> float:
    """Energy per output token, in joules."""
    row = cycle_row(ref)
    value = row.measures.get(METRIC)
    if not value:
        raise RuntimeError(f"{ref.folder.url} has no {METRIC}: {row.status} {row.reason}")
    return value


def table(sides: Sequence[Side]) -> list[str]:
    """The lines of the table."""
    plain = sides[0]
    count = len(plain.wall_s)
    titles = [
        "isolation",
        f"wall time of {count}, s",
        "start and stop of the session, s",
        "saved",
        f"energy per output token against `{PLAIN}`, 95 % interval",
        f"`{PLAIN}` costs over {DEAR_RATIO:.0%} more where a task is shorter than",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for side in sides:
        head = f"| `{side.isolation}` | {side.whole_s:.0f} | {side.around_s:.1f}"
        if side is plain:
            lines.append(f"{head} | | | |")
            continue
        each_s = [a - b - side.around_s / count for a, b in zip(plain.wall_s, side.wall_s, strict=True)]
        saved_s, of_saving = mean_of(each_s), t_interval(each_s, signed=True)
        ratios = [math.log(energy_j(side.refs[name]) / energy_j(ref)) for name, ref in plain.refs.items()]
        interval = t_interval(ratios, signed=True)
        assert interval is not None
        assert of_saving is not None
        low, high = (math.expm1(end) for end in (interval.low, interval.high))
        ends = f"{of_saving.low:.1f} to {of_saving.high:.1f}"
        cells = [
            f"{saved_s * count / plain.whole_s:.0%}, {saved_s:.1f} s each ({ends})",
            f"{math.expm1(mean_of(ratios)):+.1%} ({low:+.1%} to {high:+.1%})",
            f"{saved_s / DEAR_RATIO:.0f} s" if of_saving.low > 0.0 else "not shown to",
        ]
        lines.append(f"{head} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Measure and print the table; 1 where tokens differ."""
    parser = argparse.ArgumentParser(
        description="What sessions save, and whether they change what is measured."
    )
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument(
        "--window", type=float, default=2.0, help="length of a measurement window, in seconds"
    )
    parser.add_argument("--model", default="tiny-llama-random")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    lengths = [8 + 4 * step for step in range(math.ceil(asked.experiments / 4))]
    os.environ["LLEM_INSTALLATION"] = f"bench-sessions-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLEM_RESULTS_ROOT"] = folder
        root = ResultsRoot(folder)
        values = {
            "image": build_image("cpu"),
            "model": asked.model,
            "window_s": asked.window,
            "lengths": lengths,
        }
        sides = [Side(name, load_study_text(STUDY.format(isolation=name, **values))) for name in ISOLATIONS]
        try:
            for side in sides:
                around(side, LLEMStartSessionOperator)
            for place in range(asked.experiments):
                turn = place % len(sides)
                for side in (*sides[turn:], *sides[:turn]):
                    measure(side, place, root)
                print(place + 1, *(f"{s.isolation} {s.wall_s[-1]:.1f} s" for s in sides), file=sys.stderr)
        finally:
            for side in sides:
                around(side, LLEMStopSessionOperator)
        plain = sides[0]
        print("\n".join(table(sides)))
        differ = [
            f"{side.isolation} {name}"
            for side in sides
            for name, ref in side.refs.items()
            if tokens(ref) != tokens(plain.refs[name])
        ]
    print(f"tokens: {'equal everywhere' if not differ else 'DIFFER: ' + ', '.join(differ)}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
