"""What a Python process of ours that starts another one lets it inherit."""

from __future__ import annotations

import os
from pathlib import Path


def child_environment() -> dict[str, str]:
    """Our environment, with the bundle or package that we run from in front, and without the current folder."""
    root = Path(__file__).parents[2]  # llem.pyz itself, or the folder that holds the package
    inherited = os.environ.get("PYTHONPATH")
    path = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
