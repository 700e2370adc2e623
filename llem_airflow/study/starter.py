"""The commented study that ``llem-airflow init`` writes."""

from __future__ import annotations

import re
from pathlib import Path

_FILE = Path(__file__).parent / "data" / "starter.yaml"


def write_starter_file(path: Path, *, replace: bool) -> None:
    """Write the starter, named after its file.

    Raises:
        OSError: The file is there already, or cannot be written.
    """
    name = re.sub(r"[^\w.-]+", "-", path.stem, flags=re.ASCII).strip("-.") or "study"
    text = _FILE.read_text("utf-8").replace("my-study", name)
    with path.open("w" if replace else "x", encoding="utf-8") as file:
        file.write(text)
