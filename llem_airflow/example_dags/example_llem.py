"""A study as an Airflow DAG, and a DAG that runs after it; shown where ``[core] load_examples`` is true."""

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from llem_airflow.factory import study_asset, study_dag

STUDY = study_dag(Path(__file__).with_name("example_llem.yaml"))

with DAG("example_llem_after", schedule=[study_asset("example-llem")], tags=["llem", "example"]) as AFTER:

    @task
    def joules_per_token(triggering_asset_events: Any = None) -> dict[str, float | None]:
        """Energy per output token of each experiment of the run that caused this one, in joules."""
        (event,) = triggering_asset_events[study_asset("example-llem")]
        numbers = event.extra["experiments"].items()
        return {name: found.get("energy_per_output_token_j", {}).get("mean") for name, found in numbers}

    joules_per_token()
