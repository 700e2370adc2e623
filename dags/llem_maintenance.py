"""An Airflow DAG that removes what killed tasks left on the Docker engine; it touches nothing that is not ours."""

from airflow.sdk import DAG

from llem_airflow.operators import LLEMCollectGarbageOperator

with DAG(
    dag_id="llem_maintenance",
    description="Remove containers and volumes of experiments that no live task owns",
    schedule="@hourly",
    catchup=False,
    max_active_runs=1,
    tags=["llem"],
):
    LLEMCollectGarbageOperator(task_id="gc")
