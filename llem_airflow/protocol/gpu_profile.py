"""The profile of a board's power meter: what ``llem-airflow gpu-check`` found out about one GPU.

It is kept by UUID beside the results, the analysis takes the few numbers of ``Sensor`` from it, and the stand-in driver
of the tests plays it back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from llem_airflow.protocol.typed_json import ProtocolError, from_json, to_json

PROFILE_VERSION = 1


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        what: What was looked at.
        value: What was found, with its unit; empty when it cannot be known.
        expected: What was expected, and by whom; empty where nothing was.
        verdict: expected | differs (other than expected) | unknown (it cannot be known).
        why: Why it cannot be known, or what follows from it.
    """

    what: str
    value: str
    expected: str
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Sensor:
    """What the analysis takes from a profile; None is not known.

    Attributes:
        counter_period_s: Time between two writes of the energy counter, in seconds.
        counter_period_uncertainty_s: How far that may be off.
        power_period_s: Time between two writes of the power registers, in seconds.
        instant_window_s: What instant power is the mean of, in seconds back from its write.
        average_window_s: The same of averaged power.
    """

    counter_period_s: float | None = None
    counter_period_uncertainty_s: float | None = None
    power_period_s: float | None = None
    instant_window_s: float | None = None
    average_window_s: float | None = None


@dataclass(frozen=True)
class MeasuringPath:
    """What the measuring path found on a model with random weights; None is "cannot be known".

    Attributes:
        problem: Why the path could not be walked to its end; empty otherwise.
        n_parameters: Of the model.
        dtype: Of its weights.
        device: Where it ran; ``cpu`` on a stand-in.
        windows: Measured windows whose energy is known.
        energy_per_token_j: Joules of the board for one generated token.
        energy_per_token_uncertainty_j: How far that may be off, with a coverage of 95 %.
        harness_to_bare_ratio: Tokens per second with the harness over those of a bare loop.
        harness_to_bare_uncertainty_ratio: How far that may be off, likewise.
        counter_to_integral_ratio: Rise of the counter / integral of instant power, over all windows.
        peer_ratios: Joules of another tool over ours in its own windows, by tool.
        peer_problems: Why another tool told nothing, by tool.
    """

    problem: str = ""
    n_parameters: int | None = None
    dtype: str | None = None
    device: str | None = None
    windows: int = 0
    energy_per_token_j: float | None = None
    energy_per_token_uncertainty_j: float | None = None
    harness_to_bare_ratio: float | None = None
    harness_to_bare_uncertainty_ratio: float | None = None
    counter_to_integral_ratio: float | None = None
    peer_ratios: dict[str, float] = field(default_factory=dict)
    peer_problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuProfile:
    """One board; None is "cannot be known".

    Attributes:
        schema_version: PROFILE_VERSION of the writer.
        uuid: NVML's.
        name: NVML's.
        source: measured, by gpu-check, or published, in a paper that ``note`` names.
        note: For people: where it comes from, what could not be done.
        made_epoch_ns: When.
        made_by: The version that did.
        driver: Version of the driver.
        power_limit_w: Enforced limit, in watts.
        load: What drew the power of the step responses: torch | scripted (a stand-in's) | none.
        power_period_s: Time between two writes of the power registers, in seconds.
        power_period_uncertainty_s: How far that may be off.
        power_jitter_s: Standard deviation of a write around its steady time.
        counter_period_s: Time between two writes of the energy counter.
        counter_period_uncertainty_s: How far that may be off.
        counter_jitter_s: Standard deviation of a write around its steady time.
        counter_step_mj: The unit in which the counter counts, in millijoules.
        counter_to_integral_ratio: Rise of the counter / integral of instant power.
        instant_window_s: What instant power is the mean of, in seconds back from its write.
        instant_window_uncertainty_s: How far that may be off.
        average_window_s: The same of averaged power.
        average_window_uncertainty_s: How far that may be off.
        edge_delay_s: From an edge of the load until power shows it, beyond what period and window explain.
        edge_delay_uncertainty_s: How far that may be off.
        idle_bare_w: Power without a CUDA context, in watts.
        idle_context_w: Power with one that does nothing.
        load_w: Power at full load.
        noise_idle_w: Standard deviation of instant power while idle, in watts.
        noise_load_w: The same at full load.
        thermal_time_constant_s: Time constant of the chip's temperature after the load began.
        temperature_idle_c: Temperature before the load, in degrees Celsius.
        temperature_load_c: Highest under load.
        throttled_ratio: Share of loaded readings with a thermal or hardware slowdown.
        power_capped_ratio: Share of loaded readings at the software's power cap, which is usual at full load.
        repeat_cv_ratio: Coefficient of variation of the energy of equal loads.
        sampler_core_ratio: Share of one core that sampling takes, by rate in hertz.
        answers: What NVML said to each question: ok, or the name of its error.
        call_cost_us: Median duration of each call, in microseconds.
        path: The measuring path on a model with random weights; None when it was not walked.
        findings: The lines of the page.
    """

    schema_version: int
    uuid: str
    name: str
    source: str
    note: str = ""
    made_epoch_ns: int | None = None
    made_by: str | None = None
    driver: str | None = None
    power_limit_w: float | None = None
    load: str = "none"
    power_period_s: float | None = None
    power_period_uncertainty_s: float | None = None
    power_jitter_s: float | None = None
    counter_period_s: float | None = None
    counter_period_uncertainty_s: float | None = None
    counter_jitter_s: float | None = None
    counter_step_mj: float | None = None
    counter_to_integral_ratio: float | None = None
    instant_window_s: float | None = None
    instant_window_uncertainty_s: float | None = None
    average_window_s: float | None = None
    average_window_uncertainty_s: float | None = None
    edge_delay_s: float | None = None
    edge_delay_uncertainty_s: float | None = None
    idle_bare_w: float | None = None
    idle_context_w: float | None = None
    load_w: float | None = None
    noise_idle_w: float | None = None
    noise_load_w: float | None = None
    thermal_time_constant_s: float | None = None
    temperature_idle_c: float | None = None
    temperature_load_c: float | None = None
    throttled_ratio: float | None = None
    power_capped_ratio: float | None = None
    repeat_cv_ratio: float | None = None
    sampler_core_ratio: dict[str, float] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    call_cost_us: dict[str, float] = field(default_factory=dict)
    path: MeasuringPath | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def sensor(self) -> Sensor:
        """What the analysis takes from it."""
        return Sensor(**{one.name: getattr(self, one.name) for one in fields(Sensor)})

    def dumps(self) -> str:
        """The profile as JSON."""
        return json.dumps(to_json(self), indent=1, allow_nan=False)

    @classmethod
    def loads(cls, text: str | bytes, where: str) -> GpuProfile:
        """Read a profile.

        Args:
            text: JSON.
            where: Name of the file, for messages.

        Raises:
            ProtocolError: Not JSON, of another version, or a field is wrong.
        """
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise ProtocolError(f"{where}: not JSON: {error}") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != PROFILE_VERSION:
            raise ProtocolError(
                f"{where}: gpu-profile of schema_version {version!r}, known is {PROFILE_VERSION}; "
                "make it again with `llem-airflow gpu-check`"
            )
        return from_json(cls, data, where)
