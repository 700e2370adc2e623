"""The process that reads the boards: ``python -m llem_airflow.measurement.board SECONDS LEAST FOLDER [NUMBER ...]``.

It takes so many seconds for all boards together, and so many at least for each; boards with one of the numbers are left
out. For each it writes ``<n>.csv``, readings in the columns of power.csv, and ``<n>.json``, what they are readings of,
which is there from the begin and written anew as more is known. Standard output tells the progress, one JSON object a
line; ``within_s`` is when the next comes at the latest, unless the driver hangs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from llem_airflow.measurement.board.load import LONGEST_ANSWER_S, LONGEST_START_S, BoardLoad, open_load
from llem_airflow.measurement.board.plan import SAMPLER_S, Phase, plan
from llem_airflow.measurement.meters.contract import MeterUnavailableError
from llem_airflow.measurement.meters.nvml import NO_DRIVER_ADVICE, NvmlMeter
from llem_airflow.protocol.files import POWER_COLUMNS

RATES_HZ = (10, 20, 100)
_SPACING_NS = 2_000_000
"""Time between two readings: a tenth of the fastest register known."""
_LATE_S = 0.1
_GIVEN_UP = 50
"""Readings that fail one after the other end a board's check."""
PATIENCE = "LLEM_GPU_CHECK_PATIENCE_S"
"""Names after how many seconds without an answer the driver hangs."""
STARTS_S, ANSWERS_S = 90.0, float(os.environ.get(PATIENCE, "20"))
"""A cold start of the driver on a host with many GPUs takes tens of seconds; then an answer takes milliseconds."""
_TOLD_EVERY_NS = 1_000_000_000


def main(argv: list[str]) -> int:
    """Check every board that the driver shows, but those that are to be left out."""
    seconds, least_s, folder, left_out = (
        float(argv[0]),
        float(argv[1]),
        Path(argv[2]),
        set(map(int, argv[3:])),
    )
    try:
        nvml, count = _start_driver()
    except MeterUnavailableError as error:
        _say(error=str(error))
        return 1
    try:
        numbers = [number for number in range(count) if number not in left_out]
        each_s = max(seconds / count, least_s)
        watch_s = min(SAMPLER_S, each_s / 10)
        prepared = {number: _prepared(nvml, number, folder / f"{number}.json", watch_s) for number in numbers}
        for number, facts in prepared.items():
            _say(board=facts["name"], uuid=facts["uuid"], number=number, boards=count)
            if not facts["refused"]:
                with (folder / f"{number}.csv").open("w", encoding="ascii") as readings:
                    readings.write(",".join(POWER_COLUMNS) + "\n")
                    _check(facts, each_s, number * each_s, readings, folder / f"{number}.json")
            _keep(folder / f"{number}.json", {**facts, "done": True})
    finally:
        nvml.nvmlShutdown()
    return 0


def _start_driver() -> tuple[Any, int]:
    """NVML, and how many boards it shows."""
    _say(within_s=STARTS_S, doing="starting the driver")
    try:
        import pynvml  # noqa: PLC0415  # it may be missing
    except ImportError as error:
        raise MeterUnavailableError("the Python package nvidia-ml-py is not installed here") from error
    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded) as error:
        raise MeterUnavailableError(
            f"no NVIDIA driver answers here ({error}). Run this where `nvidia-smi` lists the GPUs: on their "
            "host, or in a container that was given them"
        ) from error
    except pynvml.NVMLError as error:
        raise MeterUnavailableError(
            f"the NVIDIA driver does not work here: {error}. Run nvidia-smi"
        ) from error
    if not count:
        raise MeterUnavailableError(f"the driver shows no GPU here. {NO_DRIVER_ADVICE}")
    return pynvml, count


def _prepared(nvml: Any, number: int, path: Path, watch_s: float) -> dict[str, Any]:
    """What a board says before its plan begins: itself, its answers, the cost of reading it."""
    facts: dict[str, Any] = {"number": number, "uuid": "", "name": "", "refused": "", "lost": ""}
    facts |= {
        "phases": [],
        "edges": [],
        "load": "none",
        "load_note": "",
        "described": {},
        "sampler_core_ratio": {},
    }
    facts |= {"answers": {}, "call_cost_us": {}, "done": False}
    _keep(path, facts)
    _say(number=number, within_s=ANSWERS_S, doing="asking for its name")
    try:
        _ask(nvml, number, facts, path, watch_s)
    except MeterUnavailableError as error:
        facts["refused"] = str(error)
    except Exception as error:  # noqa: BLE001  # a driver may answer what pynvml or we cannot read: the others go on
        facts["refused"] = _unreadable(error)
    _keep(path, facts)
    return facts


def _ask(nvml: Any, number: int, facts: dict[str, Any], path: Path, watch_s: float) -> None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        facts["uuid"], facts["name"] = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError as error:
        raise MeterUnavailableError(f"it tells neither its name nor its UUID: {error}") from error
    _keep(path, facts)
    facts["answers"], facts["call_cost_us"] = ask_everything(nvml, handle, _alive)
    _keep(path, facts)
    _alive("power and energy")
    meter = NvmlMeter((facts["uuid"],))
    try:
        facts["described"] = meter.describe()[0]
        for rate in RATES_HZ:
            _alive(f"power {rate} times a second")
            facts["sampler_core_ratio"][str(rate)] = _core_ratio(meter, rate, watch_s)
    finally:
        meter.close()


def _unreadable(error: Exception) -> str:
    return f"the driver answered what cannot be read ({type(error).__name__}: {error})"


def _alive(asked: str) -> None:
    _say(within_s=ANSWERS_S, doing=f"asking for {asked}")


def _core_ratio(meter: NvmlMeter, rate_hz: int, seconds: float) -> float:
    """Share of a core that reading at a rate takes."""
    began_ns, began_cpu_s = time.monotonic_ns(), time.thread_time()
    for number in range(max(int(seconds * rate_hz), 1)):
        meter.read()
        if time.monotonic_ns() > began_ns + 4 * seconds * 1e9:  # a slow driver
            break
        _sleep_until(began_ns + (number + 1) * 1_000_000_000 // rate_hz)
    return (time.thread_time() - began_cpu_s) / ((time.monotonic_ns() - began_ns) / 1e9)


def _check(
    facts: dict[str, Any], seconds: float, begins_after_s: float, readings: TextIO, path: Path
) -> None:
    _say(within_s=LONGEST_START_S, doing="starting the load")
    load = open_load(facts["uuid"], facts["name"], begins_after_s)
    try:
        _alive("power and energy")
        meter = NvmlMeter((facts["uuid"],))
        try:
            for phase in _played(facts, plan(seconds), load, meter, readings):
                facts["phases"].append(phase)
                facts["load"], facts["load_note"] = load.kind, load.note
                _keep(path, facts)
        finally:
            meter.close()
    except MeterUnavailableError as error:
        facts["lost"] = str(error)
    except Exception as error:  # noqa: BLE001  # a driver may answer what pynvml or we cannot read: the others go on
        facts["lost"] = _unreadable(error)
    finally:
        load.close()
        facts["load"], facts["load_note"] = load.kind, load.note


def _played(
    facts: dict[str, Any], phases: tuple[Phase, ...], load: BoardLoad, meter: NvmlMeter, readings: TextIO
) -> Iterator[dict[str, Any]]:
    """Play the plan; each phase when it is over."""
    origin_ns = load.begin_ns()
    if (late_s := (time.monotonic_ns() - origin_ns) / 1e9) > _LATE_S:
        load.note += f" It had begun {late_s:.1f} s before the first reading."
    for phase in phases:
        if phase.name == "context":
            _say(within_s=LONGEST_START_S, doing="making a context")
            load.context()
        if load.kind != "scripted":  # what took longer than planned moves all that follows
            origin_ns = time.monotonic_ns() - int(phase.begin_s * 1e9)
        begin_ns, end_ns = (origin_ns + int(at_s * 1e9) for at_s in (phase.begin_s, phase.end_s))
        due_s = max(begin_ns - time.monotonic_ns(), 0) / 1e9 + ANSWERS_S
        _say(
            uuid=facts["uuid"], phase=phase.name, done_ratio=phase.begin_s / phases[-1].end_s, within_s=due_s
        )
        load.start(phase, origin_ns)
        facts["lost"] = _read_until(meter, begin_ns, end_ns, readings)
        facts["edges"] += [{"phase": phase.name, "on_ns": on, "off_ns": off} for on, off in load.done()]
        yield {"name": phase.name, "begin_ns": begin_ns, "end_ns": end_ns}
        if facts["lost"]:
            return


def _read_until(meter: NvmlMeter, begin_ns: int, end_ns: int, readings: TextIO) -> str:
    """Read as often as the plan says; the error that ended it, or nothing."""
    failed, told_ns = 0, begin_ns
    _sleep_until(begin_ns)
    while (now_ns := time.monotonic_ns()) < end_ns:
        (reading,) = meter.read()
        readings.write(reading.line())
        failed = failed + 1 if reading.error and reading.energy_mj is None else 0
        if failed > _GIVEN_UP:
            return str(reading.error)
        if now_ns > told_ns + _TOLD_EVERY_NS:
            told_ns = now_ns
            readings.flush()
            _say(within_s=ANSWERS_S, doing="reading")
        _sleep_until(now_ns + _SPACING_NS)
    _say(within_s=LONGEST_ANSWER_S, doing="waiting for the load")
    return ""


def _sleep_until(at_ns: int) -> None:
    time.sleep(max((at_ns - time.monotonic_ns()) / 1e9, 0.0))


def _keep(path: Path, facts: dict[str, Any]) -> None:
    # Whole or not at all for who reads it, but not synced: a busy disk would keep the readings waiting for seconds.
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(facts), encoding="utf-8")
    aside.replace(path)


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


_ASKED = 21
_ASKED_S = 0.5
"""A slow driver is asked less often."""
FIELDS = {
    "field_186_power_instant": 186,
    "field_185_power_average": 185,
    "field_83_energy": 83,
    "field_82_memory_temperature": 82,
}


def ask_everything(
    nvml: Any, handle: Any, on_question: Callable[[str], None]
) -> tuple[dict[str, str], dict[str, float]]:
    """To each question ``ok`` or the name of NVML's error; and its median duration in microseconds where it is ok.

    Args:
        nvml: The module pynvml, with its driver library loaded.
        handle: The board.
        on_question: Called with the name of each question before it is asked.
    """
    answers: dict[str, str] = {}
    cost_us: dict[str, float] = {}
    for name, ask in _questions(nvml, handle).items():
        on_question(name)
        try:
            ask()
        except nvml.NVMLError as error:
            answers[name] = type(error).__name__.replace("NVMLError_", "")
            continue
        answers[name] = "ok"
        took_ns: list[int] = []
        while len(took_ns) < _ASKED and sum(took_ns) < _ASKED_S * 1e9:
            began_ns = time.monotonic_ns()
            try:
                ask()
            except nvml.NVMLError:
                break
            took_ns.append(time.monotonic_ns() - began_ns)
        if took_ns:
            cost_us[name] = statistics.median(took_ns) / 1e3
    return answers, cost_us


def _questions(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
    def field(number: int) -> Callable[[], None]:
        def ask() -> None:
            value = nvml.nvmlDeviceGetFieldValues(handle, [(number, 0)])[0]
            if value.nvmlReturn:  # a field that fails comes back inside a successful call
                raise nvml.NVMLError(value.nvmlReturn)

        return ask

    return {
        **{name: field(number) for name, number in FIELDS.items()},
        "power_usage": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
        "total_energy": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "power_limit": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        "clock_events": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        "sm_clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle),
        "memory": lambda: nvml.nvmlDeviceGetMemoryInfo(handle),
        "mig_mode": lambda: nvml.nvmlDeviceGetMigMode(handle),
        "processes": lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
