"""An Airflow DAG that measures a study pasted into its trigger form."""

from llem_airflow.factory import adhoc_dag

dag = adhoc_dag()
