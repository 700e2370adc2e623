"""A driver that fails, lies or hangs, at any moment, on one board or on all: a readable page of each board."""

from __future__ import annotations

import itertools
from html import escape
from pathlib import Path

import pytest

from llem_airflow.gpu_check.collect import NoBoardError, Seen, collect
from llem_airflow.gpu_check.page import html_page, text_page
from llem_airflow.gpu_check.profile import profile_of
from llem_airflow.protocol.gpu_profile import GpuProfile
from tests.standins.gpus import use_script

EACH_S = 0.3
KINDS = ("lost", "no_permission", "not_supported", "timeout", "unknown")
MOMENTS = {"at once": 0, "while it is asked": 40, "under load": 800}
"""Calls of a board after which it fails; its readings begin after some 500."""
TARGETS = ("", " call=nvmlDeviceGetUUID", " field=83")
FAULTS = [*itertools.product(KINDS, MOMENTS.values(), TARGETS)]
GARBAGE = (
    b"name = \xff\xfe\xfa",
    b"uuid = \xff\xff",
    b"power = const 1e18",
    b"power = const -1e9",
    b"power = const nan",
    b"limit_w = 0",
    b"temperature_c = -1e12",
    b"counter_step_mj = 1e15",
    b"update_ms = 1e-7",
)
BOARDS = 15


def checked(folder: Path, monkeypatch: pytest.MonkeyPatch, script: bytes, boards: int) -> list[Seen]:
    """All boards of a script, checked in a hurry."""
    use_script(monkeypatch, folder, f"gpus = {boards}")
    with (folder / "gpus.conf").open("ab") as file:
        file.write(script)
    readings = folder / "readings"
    readings.mkdir()
    return collect(EACH_S * boards, readings, lambda message: None, least_s=0.0)


def pages(seen: Seen) -> tuple[GpuProfile, str]:
    """What is kept and shown of a board."""
    profile = profile_of(seen)
    text = text_page(profile)
    assert profile.findings
    assert all(found.what in text and found.why in text for found in profile.findings)
    assert escape(profile.note) in html_page(profile, seen)
    assert GpuProfile.loads(profile.dumps(), "a profile") == profile
    assert "Traceback" not in text
    return profile, text


@pytest.mark.parametrize("part", range(len(FAULTS) // BOARDS))
def test_a_fault_of_one_board_at_any_moment_ends_in_its_page_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    faults = FAULTS[part :: len(FAULTS) // BOARDS]
    script = "".join(
        f"fault = {kind} gpu={number}{target} after_calls={calls}\n"
        for number, (kind, calls, target) in enumerate(faults)
    )
    found = checked(tmp_path, monkeypatch, script.encode(), len(faults) + 1)
    assert [seen.facts["number"] for seen in found] == [*range(len(faults) + 1)]
    for seen, (kind, calls, target) in zip(found, faults, strict=False):
        profile, _ = pages(seen)
        if not target and kind != "not_supported" and not calls:
            assert profile.note, (kind, calls)
    well = found[-1].facts
    assert (well["refused"], well["lost"], len(well["phases"])) == ("", "", 5)


def test_a_driver_that_answers_nonsense_ends_in_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = b"".join(b"gpu.%d.%s\n" % (number, line) for number, line in enumerate(GARBAGE))
    found = checked(tmp_path, monkeypatch, script, len(GARBAGE) + 1)
    said = [pages(seen)[0].note for seen in found]
    assert ["cannot be read" in note for note in said] == [number < 2 for number in range(len(said))]
    assert len(found[-1].facts["phases"]) == 5


def test_a_driver_that_hangs_on_one_board_is_left_there_and_the_others_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLEM_GPU_CHECK_PATIENCE_S", "15")
    hangs = b"fault = slow ms=600000 gpu=1 after_calls=%d\n"
    found = checked(tmp_path, monkeypatch, hangs % 100, 3)
    notes = [pages(seen)[0].note for seen in found]
    assert "the NVIDIA driver hangs: no answer for 15 s while asking for" in notes[1]
    assert [len(seen.facts["phases"]) for seen in found] == [5, 0, 5]


def test_a_process_that_says_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    monkeypatch.setattr("llem_airflow.gpu_check.collect._STARTS_S", 0.2)
    monkeypatch.setattr("llem_airflow.gpu_check.collect.sys.executable", str(silent))
    with pytest.raises(NoBoardError, match="hangs: no answer for 0 s while starting Python"):
        collect(1.0, tmp_path, lambda message: None)
