"""The Airflow UI plugin: read-only pages over the results and what they mean."""
