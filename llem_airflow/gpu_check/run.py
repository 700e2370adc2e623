"""The command's flow: read the boards, make their profiles, keep them, show them."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from llem_airflow.gpu_check.collect import NoBoardError, Seen, collect
from llem_airflow.gpu_check.page import counted, html_page, text_page
from llem_airflow.gpu_check.path import walk
from llem_airflow.gpu_check.profile import profile_of
from llem_airflow.gpu_check.verdicts import path_findings
from llem_airflow.protocol.gpu_profile import GpuProfile, MeasuringPath, Sensor
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.results.folder import Folder, ResultReadError, ResultsWriteError
from llem_airflow.results.records import read_profile, write_profile

_PHASES = {
    "bare": "idle",
    "context": "idle with a CUDA context",
    "square": "a load that is switched on and off",
    "full": "full load",
    "repeat": "one load again and again",
    "path": "a model with random weights",
}
LEAST_PATH_S = 20.0


def gpu_check(minutes: float, root: str, *, as_json: bool, model_seconds: float | None = None) -> int:
    """Characterise the power meter of every GPU here.

    Args:
        minutes: How long, for all of them together.
        root: The results root that keeps the profiles.
        as_json: Print the profiles as JSON instead of the pages.
        model_seconds: How much of it the measuring path on a model may take, for all of them together; None is a third,
            and nothing where that is too short.

    Returns:
        0 when every board was checked to its end, 1 when one was not, 2 when there is none or nothing could be kept.
    """
    path_s = _share(minutes * 60) if model_seconds is None else model_seconds
    profiles: list[GpuProfile] = []
    with tempfile.TemporaryDirectory(prefix="llem-gpu-check-") as work:
        try:
            boards = collect(minutes * 60 - path_s, Path(work), _show_progress)
            for seen in boards:
                profile = profile_of(seen)
                _keep(profile, seen, root)  # already now: what comes may be ended from outside
                path = _path(seen, profile, path_s / len(boards), Path(work))
                profile = replace(profile, path=path, findings=(*profile.findings, *path_findings(path)))
                if where := _keep(profile, seen, root):
                    sys.stderr.write(f"kept: {where}, .html, .txt\n")
                profiles.append(profile)
        except NoBoardError as error:
            sys.stderr.write(f"gpu-check: {error}\n")
            return 2
        except ResultsWriteError as error:
            sys.stderr.write(f"gpu-check: the profile could not be kept: {error}\n")
            return 2
    if as_json:
        sys.stdout.write(json.dumps([to_json(profile) for profile in profiles], indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(map(text_page, profiles)) + "\n")
        sys.stdout.write(f"{len(profiles)} GPU{'s' * (len(profiles) != 1)}: {counted(profiles)}\n")
    return int(any(seen.facts["refused"] or seen.facts["lost"] for seen in boards))


def _keep(profile: GpuProfile, seen: Seen, root: str) -> str:
    """Keep a profile with its pages; where, or nothing when an earlier one tells more.

    Raises:
        ResultsWriteError: It cannot be written.
    """
    if not profile.uuid:
        profile = replace(profile, uuid=f"GPU-{seen.facts['number']}-of-unknown-UUID")
    if profile.sensor == Sensor() and _found_more(root, profile.uuid):
        sys.stderr.write(f"nothing of the meter of {profile.uuid} could be told: its earlier profile stays\n")
        return ""
    pages = {"txt": text_page(profile), "html": html_page(profile, seen)}
    return f"{write_profile(Folder.at(root), profile, pages).url}/{profile.uuid}.json"


def _found_more(root: str, uuid: str) -> bool:
    try:
        earlier = read_profile(Folder.at(root), uuid)
    except ResultReadError:
        return False
    return earlier is not None and earlier.sensor != Sensor()


def _share(seconds: float) -> float:
    """A third of the time for the model, where that is enough for some windows of some seconds."""
    return seconds / 3 if seconds / 3 >= LEAST_PATH_S else 0.0


def _path(seen: Seen, profile: GpuProfile, seconds: float, work: Path) -> MeasuringPath | None:
    """The measuring path on a board that was checked to its end; None without time for it."""
    if not seconds:
        return None
    if seen.facts["refused"] or seen.facts["lost"]:
        return MeasuringPath(problem="the board was not checked to its end")
    _show_progress({"phase": "path", "done_ratio": 1.0, "uuid": profile.uuid})
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return walk(profile, seconds, Path(folder))


def _show_progress(message: dict[str, Any]) -> None:
    if "board" in message:
        name = message["board"] or "a board without a name"
        sys.stderr.write(f"{name} ({message['number'] + 1} of {message['boards']})\n")
    elif "phase" in message:
        sys.stderr.write(f"  {message['done_ratio']:4.0%}  {_PHASES[message['phase']]}\n")
