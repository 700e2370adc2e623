"""``llem-airflow gpu-check`` of every board, its profiles in one file. ``profiles.py FOLDER [--short]``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROFILES = "gpu-profiles.json"
_COMMAND = "import sys; from llem_airflow.cli import main; sys.argv[0] = 'llem-airflow'; main()"


def main() -> int:
    """Run the command and keep what it found; its own exit code."""
    folder = Path(sys.argv[1])
    minutes = "0.2" if "--short" in sys.argv[2:] else "2"
    with tempfile.TemporaryDirectory() as root:
        done = subprocess.run(
            [sys.executable, "-c", _COMMAND, "gpu-check", "--minutes", minutes],
            env={**os.environ, "LLEM_RESULTS_ROOT": root},
            check=False,
        )
        found = [json.loads(path.read_text()) for path in sorted(Path(root).glob(".gpu-profiles/*.json"))]
    (folder / PROFILES).write_text(json.dumps(found, indent=1))
    for one in found:
        differs = [finding["what"] for finding in one["findings"] if finding["verdict"] == "differs"]
        print(
            f"> {one['name']}: register period {_ms(one['power_period_s'])}, instant power over "
            f"{_ms(one['instant_window_s'])}, averaged over {_ms(one['average_window_s'])}; other than expected: "
            f"{', '.join(differs) or 'nothing'}"
        )
    return done.returncode


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
