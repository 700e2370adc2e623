"""The command's flow: read the boards, make their profiles, keep them, show them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from llem_airflow.gpu_check.collect import NoBoardError, collect
from llem_airflow.gpu_check.page import VERDICT_WORDS, html_page, text_page
from llem_airflow.gpu_check.profile import profile_of
from llem_airflow.protocol.gpu_profile import GpuProfile
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.results.folder import Folder, ResultsWriteError
from llem_airflow.results.gpu_profiles import write_profile

_PHASES = {
    "bare": "idle",
    "context": "idle with a CUDA context",
    "square": "a load that is switched on and off",
    "full": "full load",
    "repeat": "one load again and again",
}


def gpu_check(minutes: float, root: str, *, as_json: bool) -> int:
    """Characterise the power meter of every GPU here.

    Args:
        minutes: How long, for all of them together.
        root: The results root that keeps the profiles.
        as_json: Print the profiles as JSON instead of the pages.

    Returns:
        0 when every board was checked to its end, 1 when one was not, 2 when there is none or nothing could be kept.
    """
    with tempfile.TemporaryDirectory(prefix="llem-gpu-check-") as folder:
        try:
            boards = collect(minutes * 60, Path(folder), _show_progress)
        except NoBoardError as error:
            sys.stderr.write(f"gpu-check: {error}\n")
            return 2
    profiles: list[GpuProfile] = []
    for seen in boards:
        profile = profile_of(seen)
        text = text_page(profile)
        if not as_json:
            sys.stdout.write(f"{text}\n")
        if profile.uuid:
            try:
                kept = write_profile(
                    Folder.at(root), profile, {"txt": text, "html": html_page(profile, seen)}
                )
            except ResultsWriteError as error:
                sys.stderr.write(f"gpu-check: the profile could not be kept: {error}\n")
                return 2
            sys.stderr.write(f"kept: {kept.url}/{profile.uuid}.json, .html, .txt\n")
        profiles.append(profile)
    if as_json:
        sys.stdout.write(json.dumps([to_json(profile) for profile in profiles], indent=1) + "\n")
    else:
        sys.stdout.write(_summary(profiles) + "\n")
    return int(any(seen.facts["refused"] or seen.facts["lost"] for seen in boards))


def _summary(profiles: list[GpuProfile]) -> str:
    verdicts = [found.verdict for profile in profiles for found in profile.findings]
    counts = ", ".join(f"{verdicts.count(verdict)} {words}" for verdict, words in VERDICT_WORDS.items())
    return f"{len(profiles)} GPU{'s' * (len(profiles) != 1)}: {counts}"


def _show_progress(message: dict[str, Any]) -> None:
    if "board" in message:
        name = message["board"] or "a board without a name"
        sys.stderr.write(f"{name} ({message['number'] + 1} of {message['boards']})\n")
    elif "phase" in message:
        sys.stderr.write(f"  {message['done_ratio']:4.0%}  {_PHASES[message['phase']]}\n")
