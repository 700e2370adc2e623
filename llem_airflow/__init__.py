"""Apache Airflow provider for LLM-inference energy benchmarks."""

__version__ = "0.1.0"
