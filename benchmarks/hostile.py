"""Series that a broken driver, sensor or clock leaves behind, and what the analysis makes of them.

    python -m benchmarks.hostile

Each is a window of 30 s at a constant 250 W on a board with a limit of 400 W (7,500 J), with one thing wrong. A row is
right when the number is within 1 % of the true one, or when there is none and its reason stands in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llem_airflow.analysis.energy import EnergyOfWindow, window_energy
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.result import Meter, Window

POWER_W, WINDOW_S, LIMIT_W = 250.0, 30.0, 400.0
TRUE_J = POWER_W * WINDOW_S
RIGHT_RATIO = 0.01
BOARD = "GPU-00000000-0000-0000-0000-000000000000"
T0_NS = 5_000_000_000_000

Row = dict[str, Any]


@dataclass(frozen=True)
class Hostile:
    """One thing that is wrong.

    Attributes:
        name: What it is.
        change: Takes a good row and its time in seconds since the window's begin; gives the rows in its place.
        columns: Which of instant, average and counter the device tells.
        true_j: Energy that was really used, in joules.
    """

    name: str
    change: Callable[[Row, float], list[Row]]
    columns: tuple[str, ...] = ("instant", "counter")
    true_j: float = TRUE_J


def cases() -> list[Hostile]:
    """Every hostile series."""
    found = []
    for said_w in (65_535, 2_147_483, 4_294_967, 0, -1, 800):
        for columns in (("instant", "counter"), ("instant",), ("average", "counter"), ("average",)):
            name = f"one sample of {said_w:,} W, {' and '.join(columns)}"
            found.append(Hostile(name, _power(said_w, 10.0, 10.05), columns))
    for columns in (("instant", "counter"), ("instant",)):
        told = " and ".join(columns)
        found += [
            Hostile(f"10 s of exactly 0 W, {told}", _power(0, 10, 20), columns),
            Hostile(f"0 W throughout, {told}", _power(0, -9, 99), columns),
            Hostile(f"two values at one instant, {told}", _twice, columns),
        ]
    for columns in (("instant", "counter"), ("average", "counter"), ("counter",)):
        told = " and ".join(columns)
        found += [
            Hostile(f"counter jumps by 500 kJ, {told}", _counter(lambda j, t: j + 5e5 * (t > 12)), columns),
            Hostile(
                f"counter freezes midway, {told}", _counter(lambda j, t: j if t < 15 else _j(15)), columns
            ),
            Hostile(f"counter stands still for 4 s, {told}", _counter(_still), columns),
            Hostile(f"counter frozen from the start, {told}", _counter(lambda _j, _t: 1e4), columns),
            Hostile(f"counter in microjoules, {told}", _counter(lambda j, _: j * 1000), columns),
            Hostile(f"counter in joules, {told}", _counter(lambda j, _: j / 1000), columns),
            Hostile(f"counter set back to 0, {told}", _counter(lambda j, t: j - _j(7) * (t > 7)), columns),
            Hostile(f"one counter reading of 2^62 mJ, {told}", _counter(_spike), columns),
        ]
    for factor in (2.0, 1.35, 0.7):
        found.append(Hostile(f"counter x {factor:g}", _counter(partial(_scaled, factor))))
    found.append(Hostile("clock jumps forward by 5 s", _clock, true_j=POWER_W * (WINDOW_S - 5)))
    return found


def measured(case: Hostile) -> EnergyOfWindow:
    """What the analysis makes of a hostile series."""
    rows = []
    for i in range(round((WINDOW_S + 3) * 10) + 1):
        t_s = -1.5 + i / 10
        row = {"power_instant_mw": 250_000, "power_average_mw": 250_000, "energy_mj": round(_j(t_s) * 1e3)}
        kept = {name: value for name, value in row.items() if any(c in _NAMES[name] for c in case.columns)}
        rows += case.change(_timed(kept, t_s), t_s)
    columns = {name: [row.get(name) for row in rows] for name in POWER_COLUMNS}
    meter = Meter("nvml", "measured", "board", (BOARD,), 10.0, 10.0, len(rows), 0, 0.0005, 0.1, "")
    window = Window(T0_NS, T0_NS + round(WINDOW_S * 1e9), 10, 10, 100, 1000)
    return window_energy(columns, meter, window, limits_w={BOARD: LIMIT_W})


def right(case: Hostile, energy: EnergyOfWindow) -> bool:
    """Whether the number is right, or withheld with its reason."""
    if energy.energy_j is None:
        return bool(energy.withheld)
    return abs(energy.energy_j / case.true_j - 1) <= RIGHT_RATIO


_NAMES = {"power_instant_mw": "instant", "power_average_mw": "average", "energy_mj": "counter"}


def _j(t_s: float) -> float:
    """The true counter: its register is written every 100 ms."""
    return 1e4 + POWER_W * (round(t_s * 1e3) // 100) / 10


def _timed(row: Row, t_s: float) -> Row:
    t_ns = T0_NS + round(t_s * 1e9)
    return {"t_before_mono_ns": t_ns, "t_after_mono_ns": t_ns, "gpu": BOARD, **row}


def _power(said_w: float, begin_s: float, end_s: float) -> Callable[[Row, float], list[Row]]:
    def change(row: Row, t_s: float) -> list[Row]:
        if not begin_s - 0.01 <= t_s <= end_s:
            return [row]
        said = {name: said_w * 1000 for name in row if name.startswith("power_")}
        return [row | said]

    return change


def _counter(of: Callable[[float, float], float]) -> Callable[[Row, float], list[Row]]:
    return lambda row, t_s: [row | {"energy_mj": round(of(row["energy_mj"] / 1e3, t_s) * 1e3)}]


def _scaled(factor: float, j: float, _t_s: float) -> float:
    return j * factor


def _still(j: float, t_s: float) -> float:
    """A register that is not written for 4 s and then goes on from where it stood."""
    return j if t_s < 10 else _j(10) if t_s < 14 else j - 4 * POWER_W


def _spike(j: float, t_s: float) -> float:
    return 2**62 / 1e3 if 11.95 < t_s < 12.05 else j


def _twice(row: Row, t_s: float) -> list[Row]:
    return [row, row | {"power_instant_mw": 390_000}] if 5 < t_s < 6 else [row]


def _clock(row: Row, t_s: float) -> list[Row]:
    if 12 < t_s < 17:
        return []
    return [row | {"energy_mj": round(_j(t_s - 5) * 1e3)}] if t_s >= 17 else [row]


def main() -> None:
    """Print the table."""
    print("| series | energy | error | in its place |\n|---|---|---|---|")
    for case in cases():
        energy = measured(case)
        number = "-" if energy.energy_j is None else f"{energy.energy_j:,.1f} J ({energy.source})"
        error = "" if energy.energy_j is None else f"{energy.energy_j / case.true_j - 1:+.2%}"
        codes = ", ".join(f"`{reason.code}`" for reason in energy.withheld)
        print(f"| {case.name} | {number} | {error}{'' if right(case, energy) else ' WRONG'} | {codes} |")


if __name__ == "__main__":
    main()
