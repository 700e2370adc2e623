"""What every meter keeps, ours and third parties': ``python -m tests.measurement.meter_contract <MeterSpec as JSON>``.

It is a process of its own, as a meter's driver library is found by the environment that a process was started with.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence

from llem_airflow.measurement.meters.choose import open_meter
from llem_airflow.measurement.meters.contract import Meter, Reading
from llem_airflow.protocol.spec import MeterSpec
from llem_airflow.protocol.typed_json import from_json

ENERGY_KINDS = ("measured", "attributed", "estimate", "none")
BOUNDARIES = ("board", "module", "cpu-package", "estimate", "none")


def breaches(spec: MeterSpec) -> list[str]:
    """What a meter does not keep of the contract of ``Meter``, each as one sentence."""
    meter = open_meter(spec)
    try:
        return [*_of_facts(meter, spec), *_of_readings(meter), *_of_description(meter)]
    finally:
        meter.close()


def _of_facts(meter: Meter, spec: MeterSpec) -> Iterator[str]:
    facts = meter.facts
    if facts.kind != spec.kind:
        yield f"it is called {spec.kind} and calls itself {facts.kind}"
    if facts.energy_kind not in ENERGY_KINDS:
        yield f"energy_kind {facts.energy_kind}"
    if facts.boundary not in BOUNDARIES:
        yield f"boundary {facts.boundary}"
    if len(set(facts.devices)) != len(facts.devices) or any("," in name for name in facts.devices):
        yield f"devices {facts.devices} are not unique names without commas"
    if not facts.note.endswith(".") or "\n" in facts.note:
        yield f"the note is not one sentence: {facts.note!r}"


def _of_readings(meter: Meter) -> Iterator[str]:
    earlier: dict[str, Reading] = {}
    for _ in range(3):
        for what, ask in (("read", meter.read), ("counters", meter.counters)):
            begin_ns = time.monotonic_ns()
            rows = ask()
            yield from _of_rows(what, rows, meter.facts.devices, begin_ns, time.monotonic_ns())
            for row in rows:
                before = earlier.get(row.gpu)
                if before and (row.energy_mj or 0) < (before.energy_mj or 0):
                    yield f"{what}: the counter of {row.gpu} fell"
                earlier[row.gpu] = row
        time.sleep(0.12)  # longer than the register period of most boards
    if meter.facts.energy_kind != "none" and not all(row.energy_mj for row in earlier.values()):
        yield "a counter that says nothing, or 0, after a quarter of a second"


def _of_rows(
    what: str, rows: Sequence[Reading], devices: tuple[str, ...], begin_ns: int, end_ns: int
) -> Iterator[str]:
    if tuple(row.gpu for row in rows) != devices:
        yield f"{what}: rows of {[row.gpu for row in rows]}, devices {devices}"
    for row in rows:
        if not begin_ns <= row.t_before_mono_ns <= row.t_after_mono_ns <= end_ns:
            yield f"{what}: times of {row.gpu} do not lie around the question, on the monotonic clock"
        if any(not isinstance(cell, int) for cell in row[3:13] if cell is not None):
            yield f"{what}: a value of {row.gpu} is not a whole number: {row}"
        if row.power_instant_mw is not None and not 0 <= row.power_instant_mw < 5_000_000:
            yield f"{what}: {row.power_instant_mw} mW"
        if row.error is not None:
            yield f"{what}: {row.gpu} failed: {row.error}"
        if what == "read" and not row.has_power:
            yield f"read: {row.gpu} tells no power"


def _of_description(meter: Meter) -> Iterator[str]:
    told = meter.describe()
    json.dumps(told, allow_nan=False)
    if any(not one.get("uuid") for one in told):
        yield "describe: a device without a uuid"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(breaches(from_json(MeterSpec, json.loads(sys.argv[1]), "meter"))))
