"""`llem-airflow run`: what it is asked for, what it refuses at once, how it goes on. Airflow is not started."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llem_airflow.cli import main, run_once
from llem_airflow.cli.edge import INTERRUPTED
from llem_airflow.cli.embedded import Home
from llem_airflow.cli.run_once import Wanted
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import Study, load_study
from llem_airflow.study.plan.request import Request
from tests.results.recorded import Recording, provenance, variant

STUDY = """
study_name: night
serving_mode: offline
engine: transformers
task: {model: tiny}
measurement: {meter: cpu-estimate}
sweep: {transformers.llem_execution.batch_size: [1, 2]}
study_execution: {n_cycles: 2}
runners: {transformers: process}
"""
RELEASES = "versions:\n  - {name: r1, released: 2026-01-01}\n  - {name: r2, released: 2026-02-01}\n"
BEGAN = datetime(2026, 11, 27, 13, 39, 28, 670735, tzinfo=UTC)


class Place:
    """A folder with a study, a model and results; what would be run is kept instead."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.code = folder, 0
        self.wanted: list[tuple[Wanted, datetime]] = []
        self.file = folder / "night.yaml"
        self.file.write_text(STUDY)
        (folder / "models" / "tiny").mkdir(parents=True)
        (folder / "models" / "tiny" / "config.json").write_text("{}")
        self.root = ResultsRoot(folder / "results")

    @property
    def study(self) -> Study:
        return load_study(self.file)

    def run(self, *arguments: str, **environment: str) -> Result:
        told = {
            "LLEM_RESULTS_ROOT": str(self.folder / "results"),
            "LLEM_MODELS_DIR": str(self.folder / "models"),
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.folder / "hub"),
            **environment,
        }
        done = CliRunner().invoke(main, ["run", str(self.file), *arguments], env=told)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    def measured(self, cycles: int) -> StoredRun:
        """A run of which so many cycles are measured."""
        run = self.root.run("night", f"manual__{BEGAN.isoformat()}")
        run.write_plan(STUDY, self.study.plan.to_json(), {"started_epoch_ns": 1})
        for number, planned in enumerate(self.study.plan.planned_cycles[:cycles]):
            folder = self.folder / f"out-{number}"
            hash_ = self.study.experiment(planned.experiment_id).hash
            variant(Recording(window_s=1.0), hash=hash_, cycle=planned.cycle).write(folder)
            run.commit_cycle(planned.experiment_id, planned.cycle, folder, provenance())
        return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place(tmp_path)

    def instead(wanted: Wanted, home: Home, began: datetime, on_line: object) -> int:
        found.wanted.append((wanted, began))
        if found.code == INTERRUPTED:
            raise KeyboardInterrupt
        return found.code

    monkeypatch.setattr(run_once, "_run", instead)
    return found


def test_resume_goes_on_with_the_newest_unfinished_run(place: Place) -> None:
    run = place.measured(3)
    place.code = 1
    done = place.run("--resume")
    ((wanted, began),) = place.wanted
    assert wanted.run == run
    assert began == BEGAN
    assert wanted.conf()["cycles"] == 2
    assert "goes on with the 1 cycle without a result" in done.output
    assert f"`llem-airflow run {place.file} --resume` measures the 1 cycle without a result." in done.output
    assert "clear" not in done.output.lower()


def test_a_run_that_is_whole_is_not_resumed(place: Place) -> None:
    place.measured(4)
    done = place.run("--resume")
    assert (done.exit_code, place.wanted) == (2, [])
    assert "no run under" in done.stderr


def test_an_edited_study_is_not_resumed(place: Place) -> None:
    place.measured(1)
    place.file.write_text(STUDY.replace("model: tiny}", "model: tiny, max_output_tokens: 9}"))
    done = place.run("--resume")
    assert (done.exit_code, place.wanted) == (2, [])


def test_ctrl_c_is_130_and_says_what_is_kept_and_how_to_go_on(place: Place) -> None:
    run = place.measured(1)
    place.code = INTERRUPTED
    done = place.run("--resume", "--runner", "process")
    assert done.exit_code == 130
    assert f"1 of 4 cycles measured and kept in {run.url}." in done.output
    assert "--runner process --resume` measures the 3 cycles without a result." in done.output


def test_a_model_that_is_missing_is_told_before_anything_starts(place: Place) -> None:
    place.file.write_text(STUDY.replace("model: tiny", "model: tinny"))
    for arguments in ((), ("--dry-run",)):
        done = place.run(*arguments)
        assert (done.exit_code, place.wanted) == (2, [])
        assert f"{place.folder / 'models'} has tiny (did you mean 'tiny'?)" in done.stderr
        assert str(place.folder / "hub") in done.stderr
    planned = CliRunner().invoke(
        main,
        ["plan", str(place.file)],
        env={"LLEM_MODELS_DIR": str(place.folder / "models"), "HF_HUB_OFFLINE": "1"},
    )
    assert planned.exit_code == 2
    assert "has tiny (did you mean" in planned.stderr


def test_a_study_of_releases_asks_for_one_and_measures_it(place: Place) -> None:
    place.file.write_text(STUDY + RELEASES)
    done = place.run()
    assert (done.exit_code, place.wanted) == (2, [])
    assert "run --release NAME" in done.stderr
    assert "r1 (2026-01-01), r2 (2026-02-01)" in done.stderr
    assert place.run("--release", "r3").exit_code == 2
    place.code = 1
    assert place.run("--release", "r2").exit_code == 1
    ((wanted, _),) = place.wanted
    assert wanted.conf() == {"experiments": "*", "version": "r2"}


def test_experiments_and_cycles_narrow_a_run(place: Place) -> None:
    dry = place.run("--dry-run", "--experiments", "*batch_size-2*", "--cycles", "1")
    assert (dry.exit_code, place.wanted) == (0, [])
    assert "= 1 cycle to measure" in " ".join(dry.output.split())
    assert place.run("--experiments", "nope").exit_code == 2
    place.run("--experiments", "*batch_size-2*", "--cycles", "1")
    ((wanted, _),) = place.wanted
    assert len(wanted.asked.plan.planned_cycles) == 1
    assert place.run("--resume", "--cycles", "1").exit_code == 2


def test_the_program_of_a_run_names_it_by_its_time_and_carries_what_is_asked(place: Place) -> None:
    wanted = Wanted(place.study, Request(cycles=1), "process", None)
    text = run_once._program(wanted, BEGAN)
    compile(text, "study.py", "exec")
    assert repr(BEGAN.isoformat()) in text
    assert json.dumps({"cycles": 1})[1:-1].replace('"', "'") in text


def test_an_isolation_of_the_command_goes_before_that_of_the_file(place: Place) -> None:
    place.file.write_text(STUDY.replace("transformers: process", "transformers: container"))
    dry = place.run("--dry-run", "--isolation", "engine")
    assert (dry.exit_code, place.wanted) == (0, [])
    assert "in 2 sessions (2 container starts and 2 loads of a model saved)" in " ".join(dry.output.split())
    place.code = 1
    ended = place.run("--isolation", "engine")
    ((wanted, _),) = place.wanted
    assert wanted.asked.plan.sessions != ()
    program = run_once._program(wanted, BEGAN)
    assert f"load_study({str(place.file.resolve())!r}, isolation='engine')" in program
    assert "--isolation engine --resume" in ended.output + ended.stderr
    place.file.write_text(STUDY)
    refused = place.run("--isolation", "engine")
    assert refused.exit_code == 2
    assert "a session is a living container, and `runners` says process" in refused.stderr


def test_a_home_that_cannot_be_made_is_a_message(place: Place) -> None:
    (place.folder / "file").write_text("")
    done = place.run(AIRFLOW_HOME=str(place.folder / "file" / "airflow"))
    assert (done.exit_code, place.wanted) == (2, [])
    assert "set AIRFLOW_HOME" in done.stderr
