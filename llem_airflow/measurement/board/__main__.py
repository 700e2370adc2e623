"""The process that reads the boards: ``python -m llem_airflow.measurement.board <seconds> <folder>``.

For each board it writes ``<n>.csv``, readings in the columns of power.csv, and ``<n>.json``, what they are readings of.
Standard output tells the progress, one JSON object a line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from llem_airflow.measurement.board.answers import ask_everything
from llem_airflow.measurement.board.load import OpenLoad, open_load
from llem_airflow.measurement.board.plan import LEAST_S, SAMPLER_S, Phase, plan
from llem_airflow.measurement.meters.contract import MeterUnavailableError
from llem_airflow.measurement.meters.nvml import NO_DRIVER_ADVICE, NvmlMeter
from llem_airflow.protocol.records import POWER_COLUMNS

RATES_HZ = (10, 20, 100)
_SPACING_NS = 2_000_000
"""Time between two readings: a tenth of the fastest register known."""
_LATE_S = 0.1
_GIVEN_UP = 50
"""Readings that fail one after the other end a board's check."""


def main(argv: list[str]) -> int:
    """Check every board that the driver shows."""
    seconds, folder = float(argv[0]), Path(argv[1])
    try:
        nvml, handles = _boards()
    except MeterUnavailableError as error:
        _say(error=str(error))
        return 1
    try:
        prepared = [_prepare(nvml, handle) for handle in handles]
        each_s = max(seconds / len(prepared), LEAST_S)
        for number, facts in enumerate(prepared):
            _say(board=facts["name"], uuid=facts["uuid"], number=number, boards=len(prepared))
            if not facts["refused"]:
                with (folder / f"{number}.csv").open("w", encoding="ascii") as readings:
                    readings.write(",".join(POWER_COLUMNS) + "\n")
                    _check(facts, each_s, number * each_s, readings)
            (folder / f"{number}.json").write_text(json.dumps(facts), encoding="utf-8")
    finally:
        nvml.nvmlShutdown()
    return 0


def _boards() -> tuple[Any, list[Any]]:
    try:
        import pynvml  # noqa: PLC0415  # it may be missing
    except ImportError as error:
        raise MeterUnavailableError("the Python package nvidia-ml-py is not installed here") from error
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded) as error:
        raise MeterUnavailableError(f"no NVIDIA driver answers here ({error}). {NO_DRIVER_ADVICE}") from error
    except pynvml.NVMLError as error:
        raise MeterUnavailableError(
            f"the NVIDIA driver does not work here: {error}. Run nvidia-smi"
        ) from error
    if not handles:
        raise MeterUnavailableError(f"the driver shows no GPU here. {NO_DRIVER_ADVICE}")
    return pynvml, handles


def _prepare(nvml: Any, handle: Any) -> dict[str, Any]:
    """What a board says before its plan begins: itself, its answers, the cost of reading it."""
    facts: dict[str, Any] = {"uuid": "", "name": "", "refused": "", "lost": "", "phases": [], "edges": []}
    facts |= {"load": "none", "load_note": "", "described": {}, "sampler_core_ratio": {}}
    try:
        facts["uuid"], facts["name"] = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError as error:
        facts["refused"] = f"it tells neither its name nor its UUID: {error}"
    facts["answers"], facts["call_cost_us"] = ask_everything(nvml, handle)
    if facts["refused"]:
        return facts
    try:
        meter = NvmlMeter((facts["uuid"],))
    except MeterUnavailableError as error:
        facts["refused"] = str(error)
        return facts
    try:
        facts["described"] = meter.describe()[0]
        facts["sampler_core_ratio"] = {str(rate): _core_ratio(meter, rate) for rate in RATES_HZ}
    finally:
        meter.close()
    return facts


def _core_ratio(meter: NvmlMeter, rate_hz: int) -> float:
    """Share of a core that reading at a rate takes."""
    began_ns, began_cpu_s = time.monotonic_ns(), time.thread_time()
    for number in range(int(SAMPLER_S * rate_hz)):
        meter.read()
        _sleep_until(began_ns + (number + 1) * 1_000_000_000 // rate_hz)
    return (time.thread_time() - began_cpu_s) / ((time.monotonic_ns() - began_ns) / 1e9)


def _check(facts: dict[str, Any], seconds: float, begins_after_s: float, readings: TextIO) -> None:
    load = open_load(facts["uuid"], facts["name"], begins_after_s)
    try:
        meter = NvmlMeter((facts["uuid"],))
    except MeterUnavailableError as error:
        facts["lost"] = str(error)
        load.close()
        return
    try:
        _play(facts, plan(seconds), load, meter, readings)
    finally:
        load.close()
        meter.close()
        facts["load"], facts["load_note"] = load.kind, load.note


def _play(
    facts: dict[str, Any], phases: tuple[Phase, ...], load: OpenLoad, meter: NvmlMeter, readings: TextIO
) -> None:
    origin_ns = load.begin_ns()
    if (late_s := (time.monotonic_ns() - origin_ns) / 1e9) > _LATE_S:
        load.note += f" It had begun {late_s:.1f} s before the first reading."
    for phase in phases:
        if phase.name == "context":
            load.context()
        if load.kind != "scripted":  # what took longer than planned moves all that follows
            origin_ns = time.monotonic_ns() - int(phase.begin_s * 1e9)
        _say(uuid=facts["uuid"], phase=phase.name, done_ratio=phase.begin_s / phases[-1].end_s)
        begin_ns, end_ns = (origin_ns + int(at_s * 1e9) for at_s in (phase.begin_s, phase.end_s))
        load.start(phase, origin_ns)
        facts["lost"] = _read_until(meter, begin_ns, end_ns, readings)
        facts["phases"].append({"name": phase.name, "begin_ns": begin_ns, "end_ns": end_ns})
        facts["edges"] += [{"phase": phase.name, "on_ns": on, "off_ns": off} for on, off in load.done()]
        if facts["lost"]:
            return


def _read_until(meter: NvmlMeter, begin_ns: int, end_ns: int, readings: TextIO) -> str:
    """Read as often as the plan says; the error that ended it, or nothing."""
    failed = 0
    _sleep_until(begin_ns)
    while (now_ns := time.monotonic_ns()) < end_ns:
        (reading,) = meter.read()
        readings.write(reading.line())
        failed = failed + 1 if reading.error and reading.energy_mj is None else 0
        if failed > _GIVEN_UP:
            return str(reading.error)
        _sleep_until(now_ns + _SPACING_NS)
    return ""


def _sleep_until(at_ns: int) -> None:
    time.sleep(max((at_ns - time.monotonic_ns()) / 1e9, 0.0))


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
