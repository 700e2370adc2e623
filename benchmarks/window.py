"""One tool measures one window on the stand-in GPUs; started once for each tool by accuracy.py.

    window.py TOOL GPUS WINDOWS    TOOL: llem-airflow | zeus | codecarbon | llenergymeasure

It says ``ready``, waits for the epoch second at which to begin on stdin, and prints what it measured of
each GPU with the window's edges as it saw them: after its begin call returned, before its end call was
made. In the end this project says how many of its samples were lost.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Measured = dict[str, Any]
Measure = Callable[[float, float], Measured]

TAIL_S = 1.1
"""What an attempt goes on sampling after its window, at least."""


def llem_airflow(gpus: int, windows: int) -> Measure:
    """The window as an attempt opens and closes it; one sampler runs all the time, as in an attempt."""
    from benchmarks.on_gpu.checks import columns
    from llem_airflow.analysis.energy import window_energy
    from llem_airflow.measurement.sampler import start_sampler
    from llem_airflow.protocol.result import Meter, Window
    from llem_airflow.protocol.spec import MeterSpec

    power_csv = Path("power.csv")
    left, uuids = windows, _uuids(gpus)
    spec = MeterSpec(kind="nvml", gpus=uuids)
    sampler = start_sampler(spec, power_csv)
    facts = sampler.facts
    meter = Meter(
        facts.kind,
        facts.energy_kind,
        facts.boundary,
        facts.devices,
        spec.power_hz,
        None,
        0,
        0,
        None,
        None,
        "",
    )

    def measure(begin_epoch_s: float, seconds: float) -> Measured:
        nonlocal left
        left -= 1
        sleep_until(begin_epoch_s)
        tick_ns = sampler.wait_for_tick()
        begin_ns = tick_ns if tick_ns is not None else time.monotonic_ns()
        time.sleep(seconds)
        end_ns = time.monotonic_ns()
        sampler.wait_for_tick()
        time.sleep(TAIL_S)
        offset_ns = time.time_ns() - time.monotonic_ns()
        energy = window_energy(columns(power_csv), meter, Window(begin_ns, end_ns, 1, 1, 1, 1))
        by_gpu = {gpu.gpu: gpu for gpu in energy.gpus}
        found = [by_gpu[uuid] for uuid in uuids]
        measured = {
            "begin_epoch_ns": begin_ns + offset_ns,
            "end_epoch_ns": end_ns + offset_ns,
            "joules": [gpu.energy_j for gpu in found],
            "integral_joules": [gpu.instant_j for gpu in found],
        }
        return measured if left else measured | {"sampled": _sampled(sampler.stop(), gpus)}

    return measure


def _sampled(meter: Any, gpus: int) -> dict[str, float]:
    """How many samples of each device were due and lost."""
    sweeps = meter.samples / gpus
    due = (sweeps - 1) / meter.achieved_hz * meter.requested_hz + 1
    return {"due": due * gpus, "lost": (due - sweeps) * gpus}


def zeus(gpus: int, windows: int) -> Measure:  # noqa: ARG001  # as for every tool
    """ZeusMonitor: two reads of the energy counter."""
    from zeus.monitor import ZeusMonitor  # type: ignore[import-not-found]

    monitor = ZeusMonitor(gpu_indices=list(range(gpus)), cpu_indices=[])

    def begin() -> None:
        monitor.begin_window("window", sync_execution=False)

    def end() -> list[float]:
        return list(monitor.end_window("window", sync_execution=False).gpu_energy.values())

    return _between(begin, end)


def codecarbon(gpus: int, windows: int) -> Measure:
    """OfflineEmissionsTracker at its fastest rate: differences of the energy counter.

    A tracker is for one window, and looks for the hardware when it is made, for seconds: all are made at the start.
    """
    from codecarbon import OfflineEmissionsTracker  # type: ignore[import-not-found]
    from codecarbon.external.hardware import GPU  # type: ignore[import-not-found]

    def tracker_and_card() -> tuple[Any, Any]:
        tracker = OfflineEmissionsTracker(
            country_iso_code="DEU",
            measure_power_secs=1,
            tracking_mode="machine",
            save_to_file=False,
            log_level="critical",
            gpu_ids=list(range(gpus)),
        )
        tracker.get_detected_hardware()
        (card,) = [part for part in tracker._hardware if isinstance(part, GPU)]  # noqa: SLF001  # its only list
        return tracker, card

    ready = [tracker_and_card() for _ in range(windows)]

    def measure(begin_epoch_s: float, seconds: float) -> Measured:
        tracker, card = ready.pop()
        counters: list[float] = []

        def begin() -> None:
            tracker.start()
            counters.extend(device.last_energy.kWh for device in card.devices.devices[:gpus])

        def end() -> list[float]:
            tracker.stop()
            after = [device.last_energy.kWh for device in card.devices.devices[:gpus]]
            joules = [(now - then) * 3.6e6 for then, now in zip(counters, after, strict=True)]
            said = tracker.final_emissions_data.gpu_energy * 3.6e6
            if abs(said - sum(joules)) > 0.05 * sum(joules):
                raise RuntimeError(f"CodeCarbon reports {said} J, its devices {sum(joules)} J")
            return joules

        return _between(begin, end)(begin_epoch_s, seconds)

    return measure


def llenergymeasure(gpus: int, windows: int) -> Measure:  # noqa: ARG001  # as for every tool
    """The NVML sampler of the peer; its Zeus backend is Zeus."""
    from llenergymeasure.energy.nvml import NVMLSampler  # type: ignore[import-not-found]

    sampler = NVMLSampler(list(range(gpus)))
    tracker: list[Any] = []

    def end() -> list[float]:
        measured = sampler.stop_tracking(tracker.pop())
        return [(measured.per_gpu_j or {})[i] for i in range(gpus)]

    return _between(lambda: tracker.append(sampler.start_tracking()), end)


TOOLS = {
    "llem-airflow": llem_airflow,
    "zeus": zeus,
    "codecarbon": codecarbon,
    "llenergymeasure": llenergymeasure,
}


def _between(begin: Callable[[], None], end: Callable[[], list[float]]) -> Measure:
    def measure(begin_epoch_s: float, seconds: float) -> Measured:
        sleep_until(begin_epoch_s)
        begin()
        begin_ns = time.time_ns()
        time.sleep(seconds)
        end_ns = time.time_ns()
        return {"joules": end(), "begin_epoch_ns": begin_ns, "end_epoch_ns": end_ns}

    return measure


def sleep_until(epoch_s: float) -> None:
    """Sleep until a moment of the wall clock."""
    time.sleep(max(epoch_s - time.time_ns() / 1e9, 0))


def _uuids(gpus: int) -> tuple[str, ...]:
    import pynvml

    pynvml.nvmlInit()
    return tuple(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(gpus))


def main() -> None:
    """Measure windows when told to: one line of input for each, its begin in epoch seconds and its length."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    measure = TOOLS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    print("ready", flush=True)
    for line in sys.stdin:
        begin_epoch_s, seconds = map(float, line.split())
        print(json.dumps(measure(begin_epoch_s, seconds)), flush=True)


if __name__ == "__main__":
    main()
