"""The profile of a board's power meter as a file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llem_airflow.protocol.gpu_profile import Finding, GpuProfile, MeasuringPath, Sensor
from llem_airflow.protocol.typed_json import ProtocolError

PROFILE = GpuProfile(
    1,
    "GPU-1",
    "NVIDIA A100",
    "measured",
    load="torch",
    counter_period_s=0.1,
    average_window_s=None,
    sampler_core_ratio={"10": 0.01},
    findings=(Finding("period", "100 ms", "100 ms", "expected"),),
)


def test_a_profile_is_read_as_it_was_written() -> None:
    assert GpuProfile.loads(PROFILE.dumps(), "p") == PROFILE
    assert PROFILE.dumps().startswith(
        '{\n "schema_version": 1,\n "uuid": "GPU-1",\n'
    )  # a person reads it, too


def test_what_the_analysis_takes_keeps_the_unknown_unknown() -> None:
    assert PROFILE.sensor == Sensor(counter_period_s=0.1)


def test_a_path_that_was_not_walked_has_no_window_and_knows_nothing() -> None:
    unknown = MeasuringPath("no GPU")
    assert (unknown.windows, unknown.energy_per_token_j, unknown.peer_ratios) == (0, None, {})


def test_a_published_profile_needs_only_a_name_and_a_source() -> None:
    text = json.dumps({"schema_version": 1, "uuid": "GPU-1", "name": "V100", "source": "published"})
    assert GpuProfile.loads(text, "p").counter_period_s is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "p: not JSON"),
        ("[]", "schema_version None"),
        ('{"schema_version": 2}', "schema_version 2, known is 1"),
        (
            '{"schema_version": 1, "uuid": "u", "name": "n", "source": "s", "colour": 1}',
            "unknown field 'colour'",
        ),
    ],
)
def test_a_file_that_is_no_profile_is_named(text: str, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        GpuProfile.loads(text, "p")


def test_what_is_no_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(PROFILE, load_w=float("nan")).dumps()
