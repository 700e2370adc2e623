"""The evidence: where results lie and how they are read and written. No Airflow here."""

from llem_airflow.results.cycles import CycleRef, FailureRef, ResultReadError
from llem_airflow.results.store import ResultsRoot, StoredRun

__all__ = ["CycleRef", "FailureRef", "ResultReadError", "ResultsRoot", "StoredRun"]
