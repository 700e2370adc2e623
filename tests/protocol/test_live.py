"""Live records: what is written is read again, and whatever else stands behind a mark is no record."""

from __future__ import annotations

import json
import select
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.protocol.live import (
    DEVICES_A_RECORD,
    LONGEST_BYTES,
    MARK,
    DevicePower,
    LivePhase,
    LivePower,
    parse,
    phase_record,
    power_record,
)

WATTS = st.floats(0, 20_000).map(lambda value: round(value, 1))
DEVICES = st.dictionaries(
    st.text("GPU-0123456789abcdef", min_size=1, max_size=80),
    st.builds(DevicePower, WATTS, WATTS, WATTS, st.integers(1, 10_000)),
    max_size=DEVICES_A_RECORD,
)
RECORDS = st.one_of(
    st.builds(LivePower, st.integers(0, 2**63 - 1), st.sampled_from(["measured", "estimate"]), DEVICES),
    st.builds(LivePhase, st.integers(0, 2**63 - 1), st.sampled_from([None, "load", "measure"])),
)


def written(record: LivePower | LivePhase) -> bytes:
    return power_record(record) if isinstance(record, LivePower) else phase_record(record)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written_and_fits_a_pipe(record: LivePower | LivePhase) -> None:
    text = written(record)
    assert text.startswith(MARK)
    assert text.endswith(b"\n")
    assert text.count(b"\n") == text.count(MARK) == 1
    assert len(text) <= LONGEST_BYTES
    assert parse(text[1:-1]) == record


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        {"t": 1},
        {"t": -1, "phase": "load"},
        {"t": 1.5, "phase": "load"},
        {"t": True, "phase": "load"},
        {"t": 1 << 63, "phase": "load"},
        {"t": 1, "phase": ""},
        {"t": 1, "phase": "x" * 81},
        {"t": 1, "phase": ["load"]},
        {"t": 1, "phase": "load", "more": 1},
        {"t": 1, "kind": "measured", "power": []},
        {"t": 1, "kind": 7, "power": {}},
        {"t": 1, "kind": "measured", "power": {"g": [1, 2, 3]}},
        {"t": 1, "kind": "measured", "power": {"g": [1, 2, 3, 0]}},
        {"t": 1, "kind": "measured", "power": {"g": [1, 2, 3, 1.5]}},
        {"t": 1, "kind": "measured", "power": {"g": [1, 2, 3, True]}},
        {"t": 1, "kind": "measured", "power": {"g": [float("nan"), 2, 3, 1]}},
        {"t": 1, "kind": "measured", "power": {"g": [1, float("inf"), 3, 1]}},
        {"t": 1, "kind": "measured", "power": {"g": [1, 2, float("nan"), 1]}},
        {"t": 1, "kind": "measured", "power": {"g": [1, 2, None, 1]}},
        {"t": 1, "kind": "measured", "power": {"g": "1234"}},
        {"t": 1, "kind": "measured", "power": {"g" * 81: [1, 2, 3, 1]}},
        {"t": 1, "kind": "measured", "power": {str(n): [1, 2, 3, 1] for n in range(17)}},
    ],
)
def test_what_is_not_exactly_a_record_is_none(value: Any) -> None:
    assert parse(json.dumps(value).encode()) is None


def test_brackets_without_end_are_no_record() -> None:
    assert parse(b"[" * 100_000) is None


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error(data: bytes) -> None:
    assert parse(data) is None or parse(data) == parse(data)


def test_watts_are_told_to_a_tenth() -> None:
    record = LivePower(7, "measured", {"g": DevicePower(1.26, 2.34, 3.46, 5)})
    assert power_record(record) == b'\x1e{"t":7,"kind":"measured","power":{"g":[1.3,2.3,3.5,5]}}\n'
    assert phase_record(LivePhase(7, None)) == b'\x1e{"t":7,"phase":null}\n'


def test_a_name_of_eighty_characters_is_read_and_the_earliest_and_the_latest_instant() -> None:
    for t_mono_ns in (0, 2**63 - 1):
        assert parse(phase_record(LivePhase(t_mono_ns, "x" * 80))[1:-1]) == LivePhase(t_mono_ns, "x" * 80)


def test_what_is_no_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        power_record(LivePower(7, "measured", {"g": DevicePower(1.0, float("nan"), 3.0, 5)}))


def test_sixteen_devices_fit_a_record_and_the_mark_is_the_record_separator() -> None:
    assert (DEVICES_A_RECORD, MARK, LONGEST_BYTES) == (16, b"\x1e", select.PIPE_BUF)
    many = {"x" * 79 + f"{n:x}": DevicePower(1.0, 2.0, 3.0, 1) for n in range(DEVICES_A_RECORD)}
    assert parse(power_record(LivePower(7, "measured", many))[1:-1]) == LivePower(7, "measured", many)
