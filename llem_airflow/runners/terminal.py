"""The verbs ``gc`` and ``doctor`` on a terminal."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from llem_airflow.runners.doctor import examine, worst
from llem_airflow.runners.engine import ENGINE_ERRORS, LIVE_STATES, connect
from llem_airflow.runners.failures import classify
from llem_airflow.runners.reaper import Alive, find_leftovers, owners, remove_leftovers
from llem_airflow.text.terminal import Folding, console, show

_STYLES = {"ok": "", "warn": "yellow", "fail": "bold red"}


_ASK_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class _Airflow:
    """What the Airflow that is installed here says."""

    installation: str | None = None
    alive: Alive | None = None
    why: str = "no Airflow is set up here"


def collect(
    older_than_s: float, installation: str | None, *, remove: bool, as_json: bool, force: bool = False
) -> int:
    """List what nobody owns, and remove it when asked to; exit code 2 when the engine does not answer.

    Args:
        older_than_s: What Airflow cannot tell is a leftover from this age on, in seconds.
        installation: Which Airflow made it; None for the one that is installed here, or for all where none is.
        remove: Whether to remove it.
        as_json: Print the list as JSON.
        force: Also containers that run.
    """
    try:
        with connect() as api:
            said = _ask_airflow(owners(api))
            found = find_leftovers(
                api,
                alive=said.alive,
                older_than_s=older_than_s,
                installation=installation or said.installation,
                running="any",
            )
            left = [one for one in found if force or one.state not in LIVE_STATES]
            gone = remove_leftovers(api, left) if remove else 0
    except ENGINE_ERRORS as error:
        hint = classify(None, "", error=error).hint
        sys.stderr.write(f"the Docker engine does not answer: {error}\nWhat to do: {hint}\n")
        return 2
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in left], indent=1) + "\n")
        return 0
    if said.alive is None:
        sys.stdout.write(f"Airflow cannot be asked who is alive ({said.why}): age alone decides.\n")
    for one in found:
        if one not in left:
            sys.stdout.write(f"{one.name} runs and is not touched without --force: {one.what}\n")
    for one in left:
        sys.stdout.write(f"{one.kind} {one.name}  {one.state}, {one.age_s / 3600:.1f} h old: {one.what}\n")
    if not left:
        sys.stdout.write(f"Nothing of ours is older than {older_than_s / 3600:g} h and without an owner.\n")
    elif remove:
        sys.stdout.write(f"Removed {gone}.\n")
    else:
        sys.stdout.write(f"{len(left)} found; `llem-airflow gc --yes` removes them.\n")
    return 0


def _ask_airflow(labels: list[dict[str, str]]) -> _Airflow:
    """Ask in a process of its own: Airflow is not imported here, and what it prints is not for the list."""
    home = Path(os.environ.get("AIRFLOW_HOME") or Path.home() / "airflow")
    if importlib.util.find_spec("airflow") is None or not home.is_dir():
        return _Airflow()
    command = [sys.executable, "-m", "llem_airflow.operators.living"]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(labels),
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
        )
        said = json.loads(ended.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return _Airflow(why=type(error).__name__)
    if said["alive"] is None:
        return _Airflow(said["installation"], None, said["why"])
    known = {
        json.dumps(each, sort_keys=True): owned for each, owned in zip(labels, said["alive"], strict=True)
    }
    return _Airflow(said["installation"], lambda each: known.get(json.dumps(dict(each), sort_keys=True)))


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
