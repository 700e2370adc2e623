"""The verbs ``gc`` and ``doctor`` on a terminal."""

from __future__ import annotations

import dataclasses
import json
import sys

from llem_airflow.container.doctor import examine, worst
from llem_airflow.container.engine import ENGINE_ERRORS, connect
from llem_airflow.container.failures import classify
from llem_airflow.container.reaper import find_leftovers, remove_leftovers
from llem_airflow.terminal import Folding, console, show

_STYLES = {"ok": "", "warn": "yellow", "fail": "bold red"}


def collect(older_than_s: float, installation: str | None, *, remove: bool, as_json: bool) -> int:
    """List what nobody owns, and remove it when asked to; exit code 2 when the engine does not answer."""
    try:
        with connect() as api:
            left = find_leftovers(api, older_than_s=older_than_s, installation=installation)
            gone = remove_leftovers(api, left) if remove else 0
    except ENGINE_ERRORS as error:
        hint = classify(None, "", error=error).hint
        sys.stderr.write(f"the Docker engine does not answer: {error}\nWhat to do: {hint}\n")
        return 2
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in left], indent=1) + "\n")
        return 0
    for one in left:
        sys.stdout.write(f"{one.kind} {one.name}  {one.state}, {one.age_s / 3600:.1f} h old: {one.what}\n")
    if not left:
        sys.stdout.write(f"Nothing of ours is older than {older_than_s / 3600:g} h and without an owner.\n")
    elif remove:
        sys.stdout.write(f"Removed {gone}.\n")
    else:
        sys.stdout.write(f"{len(left)} found; `llem-airflow gc --yes` removes them.\n")
    return 0


def diagnose(*, as_json: bool) -> int:
    """Print what the doctor found."""
    checks = examine()
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(check) for check in checks], indent=1) + "\n")
        return worst(checks)
    for check in checks:
        line = f"{check.status:<5}{check.name}: {check.text}"
        show(console(), Folding(line, _STYLES[check.status], indent=5))
        if check.fix:
            show(console(), Folding(f"     → {check.fix}", "dim", indent=7))
    return worst(checks)
