"""An Airflow DAG that removes what killed tasks left on the Docker engines; it touches nothing that is not ours."""

from airflow.sdk import DAG

from llem_airflow.operators import LLEMCollectGarbageOperator
from llem_airflow.operators.maintenance import hosts_to_clean

with DAG(
    dag_id="llem_maintenance",
    description="Remove containers and volumes of experiments that no live task owns",
    schedule="@hourly",
    catchup=False,
    max_active_runs=1,
    tags=["llem"],
):
    for task_id, arguments in hosts_to_clean().items():
        LLEMCollectGarbageOperator(task_id=task_id, **arguments)
