"""A DAG for each study file in the folder ``studies`` beside this Airflow DAG file."""

from pathlib import Path

from llem_airflow.factory import study_dags

study_dags(Path(__file__).parent / "studies", globals())
