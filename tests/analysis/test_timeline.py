from __future__ import annotations

import numpy as np

from llem_airflow.analysis.series import OUTSIDE, Phase, epoch_ns, phase_codes, phases
from llem_airflow.protocol.result import Anchor

S = 1_000_000_000


def test_one_anchor_shifts_the_clock() -> None:
    assert epoch_ns(np.array([5 * S, 6 * S]), [Anchor(5 * S, 100 * S)]).tolist() == [100 * S, 101 * S]


def test_a_clock_that_was_corrected_on_the_way_is_followed() -> None:
    anchors = [Anchor(0, 100 * S), Anchor(10 * S, 110 * S + 1000)]
    assert epoch_ns(np.array([0, 5 * S, 10 * S, 20 * S]), anchors).tolist() == [
        100 * S,
        105 * S + 500,
        110 * S + 1000,
        120 * S + 1000,
    ]


def test_absolute_times_keep_their_nanoseconds() -> None:
    now = 1_790_000_000_123_456_789
    for mono in (7, 30_000_000_000_000_007):  # just started, and up for a year
        assert epoch_ns(np.array([mono]), [Anchor(mono, now)]).tolist() == [now]


def test_a_phase_that_never_ended_ends_at_the_last_event() -> None:
    events = [
        {"t_mono_ns": 1, "event": "phase_begin", "phase": "load"},
        {"t_mono_ns": 4, "event": "phase_end", "phase": "load"},
        {"t_mono_ns": 5, "event": "phase_begin", "phase": "measure"},
        {"t_mono_ns": 9, "event": "progress", "phase": "measure"},
    ]
    assert phases(events) == (Phase("load", 1, 4), Phase("measure", 5, 9))


def test_each_moment_gets_the_phase_it_lies_in() -> None:
    moments = np.array([0, 1, 4, 5, 7, 9, 10])
    codes, names = phase_codes(moments, [Phase("load", 1, 4), Phase("measure", 5, 9)])
    assert [names[code] for code in codes] == [OUTSIDE, "load", "load", *["measure"] * 3, OUTSIDE]
