from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llem_airflow.analysis.history import Point, Trend, trends


def trend(points: Sequence[Point], better: str, **given: Any) -> Trend:
    """What the history of one experiment alone says."""
    return trends([points], better, **given)[0]
