from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llem_airflow.results import ResultsRoot, StoredRun
from tests.results import roots
from tests.results.recorded import Recording, experiment_id, plan_json, provenance, variant

HASHES = ("aaaaaaaa00000000", "bbbbbbbb00000000")
CONFIGS = tuple(
    {"engine": "transformers", "task": {"model": "tiny"}, "transformers": {"batch_size": size}}
    for size in (1, 4)
)
IDS = tuple(experiment_id(index, hash_) for index, hash_ in enumerate(HASHES))

MakeRun = Callable[..., StoredRun]


s3_server = roots.s3_server


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run of two experiments; ``recordings`` maps (experiment index, cycle) to what was recorded."""
    return run_maker(ResultsRoot(tmp_path / "results"), tmp_path)


def run_maker(root: ResultsRoot, tmp_path: Path) -> MakeRun:
    """The same under any root."""

    def make(recordings: dict[tuple[int, int], Recording], cycles: int = 2, run_id: str = "r1") -> StoredRun:
        run = root.run("nightly", run_id)
        experiments = list(zip(IDS, HASHES, CONFIGS, strict=True))
        run.write_plan("model: tiny\n", plan_json(experiments, cycles), {"dag_id": "nightly"})
        for (index, cycle), recording in recordings.items():
            folder = tmp_path / f"out-{run_id}-{index}-{cycle}"
            config = recording.config or CONFIGS[index]
            variant(recording, hash=HASHES[index], cycle=cycle, config=config).write(folder)
            run.commit_cycle(IDS[index], cycle, folder, provenance(60.0 * (2 * cycle + index)))
        return run

    return make
