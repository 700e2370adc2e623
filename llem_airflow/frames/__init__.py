"""Stored results as pandas DataFrames, for notebooks and scripts: the only place that imports pandas.

``strict=False`` returns two frames: what can be read, and what belongs there and could not be read.
"""

from llem_airflow.frames.asked import FrameError
from llem_airflow.frames.stored import (
    cycles_df,
    experiments_df,
    power_df,
    rates_df,
    requests_df,
    runs_df,
    searches_df,
)
from llem_airflow.frames.verdicts import compare_df, history_df

__all__ = [
    "FrameError",
    "compare_df",
    "cycles_df",
    "experiments_df",
    "history_df",
    "power_df",
    "rates_df",
    "requests_df",
    "runs_df",
    "searches_df",
]
