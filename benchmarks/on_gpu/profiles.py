"""``llem-airflow gpu-check`` of every board, its profiles in one file. ``profiles.py FOLDER [--short]``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROFILES = "gpu-profiles.json"
MINUTES, PLAN_S = 1.5, 60.0
"""Two thirds are for the plan, a third is for the measuring path."""
_COMMAND = "import sys; from llem_airflow.cli import main; sys.argv[0] = 'llem-airflow'; main()"


def main() -> int:
    """Run the command and keep what it found; its own exit code."""
    folder, root = Path(sys.argv[1]), Path(os.environ["LLEM_RESULTS_ROOT"])
    minutes = ("0.1", "--model-seconds", "0") if "--short" in sys.argv[2:] else (str(MINUTES),)
    command = [sys.executable, "-c", _COMMAND, "gpu-check", "--minutes", *minutes]
    done = subprocess.run(command, check=False)
    found = [json.loads(path.read_text()) for path in sorted(root.glob(".gpu-profiles/*.json"))]
    (folder / PROFILES).write_text(json.dumps(found, indent=1))
    for one in found:
        differs = [finding["what"] for finding in one["findings"] if finding["verdict"] == "differs"]
        print(
            f"> {one['name']}: register period {_ms(one['power_period_s'])}, instant power over "
            f"{_ms(one['instant_window_s'])}, averaged over {_ms(one['average_window_s'])}; other than expected: "
            f"{', '.join(differs) or 'nothing'}"
        )
        print(f"> {one['note']}" if one["note"] else "", f"> {_path(one['path'] or {})}", sep="\n")
    return done.returncode


def _path(path: dict[str, Any]) -> str:
    energy_j, ratio = path.get("energy_per_token_j"), path.get("harness_to_bare_ratio")
    if energy_j is None or ratio is None:
        return f"measuring path: {path.get('problem') or 'not walked'}"
    tools = [("counter / integral", path["counter_to_integral_ratio"]), *path["peer_ratios"].items()]
    return (
        f"measuring path, {path['n_parameters'] / 1e9:.2g} B on {path['device']}: {energy_j:.4g} J/token; "
        f"harness / bare loop {ratio:.2%}; "
        + ", ".join(f"{name} {value:.4f}" for name, value in tools if value is not None)
    )


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
