"""The evidence: where results lie and how they are read and written. No Airflow here."""

from llem_airflow.results.folder import ResultReadError
from llem_airflow.results.records import CycleRef, FailureRef
from llem_airflow.results.store import ResultsRoot, StoredRun

__all__ = ["CycleRef", "FailureRef", "ResultReadError", "ResultsRoot", "StoredRun"]
