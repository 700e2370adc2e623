"""What the page of a run says of a server under load."""

from __future__ import annotations

from pathlib import Path

from llem_airflow.results import ResultsRoot
from llem_airflow.web.explore import explorer
from llem_airflow.web.kept import Kept
from tests.web.loaded import loaded


def test_the_rate_that_meets_the_slo_stands_beside_the_answer(tmp_path: Path) -> None:
    found = explorer(loaded(ResultsRoot(tmp_path / "results"), tmp_path, "r1"), Kept())
    cheapest, knee = found["load"]
    assert cheapest.startswith("The cheapest that meets the SLO is rate 4/s, at 1.05 J/token")
    assert knee == "E2EL p95 turns up from rate 4/s on (the knee)."
    met = {
        one["factors"]["server.traffic.rate"]: one["metrics"]["slo_attainment_ratio"]["mean"]
        for one in found["experiments"]
    }
    assert met[4] == 1.0
    assert met[8] < 0.9
