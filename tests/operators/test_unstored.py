"""A cycle that was measured while its store was away is not measured again: the next try stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException

from llem_airflow.operators import LLEMExperimentOperator
from llem_airflow.results import ResultsRoot
from llem_airflow.results.unstored import kept_results
from tests.operators.test_experiment import context, places, study_at

__all__ = ["places"]  # the fixture that every test of an operator has


class InTheWay(LLEMExperimentOperator):
    """Its results root becomes a file while the engine measures."""

    def line(self, line: str) -> None:
        root = Path(str(self.params["root"]))
        if root.is_dir():
            root.rename(root.with_name("aside"))
            root.write_text("in the way")
        super().line(line)


@pytest.mark.engine
def test_the_next_try_stores_what_a_process_measured_while_the_store_was_away(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLEM_UNSTORED", str(tmp_path / "unstored"))
    study, root = study_at(tmp_path, "process"), tmp_path / "results"
    root.mkdir()
    args: dict[str, Any] = {"study": study, "experiment": study.experiments[0].id}
    with pytest.raises(
        AirflowException, match=r"was measured and could not be stored: .*Nothing is lost: it is kept"
    ):
        InTheWay(task_id="one.cycle_1", params={"root": str(root)}, **args).execute(context())
    (kept,) = kept_results(tmp_path / "unstored")
    root.unlink()
    (tmp_path / "aside").rename(root)
    monkeypatch.setenv("LLEM_MODELS_DIR", str(tmp_path))  # whoever measured now would find no model
    monkeypatch.setenv("LLEM_PYTHON", "/bin/false")
    said = LLEMExperimentOperator(task_id="one.cycle_1", **args).execute(context(try_number=2))
    (cycle,) = ResultsRoot(root).run("one", "manual__x").cycles(repeats=True)
    assert said["result"] == cycle.folder.url
    assert cycle.provenance()["finished_epoch_ns"] == kept.provenance["finished_epoch_ns"]
    assert kept_results(tmp_path / "unstored") == []
