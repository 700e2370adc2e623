"""For installations that copy plugins instead of installing packages: the same plugin class, by import.

Do not copy this file where `llem-airflow` is installed as a package: its entry point registers the plugin already, and
Airflow treats a second registration of the same name as an error.
"""

from llem_airflow.web.plugin import LLEMPlugin

__all__ = ["LLEMPlugin"]
