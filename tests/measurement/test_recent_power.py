from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llem_airflow.measurement.recent_power import Recent, recent
from llem_airflow.protocol.records import POWER_COLUMNS


def write(
    path: Path, rows: list[tuple[float, str, int | None]], celsius: Callable[[float], int] | None = None
) -> None:
    lines = [",".join(POWER_COLUMNS)]
    for t_s, gpu, power_mw in rows:
        cells = dict.fromkeys(POWER_COLUMNS, "")
        cells |= {"t_before_mono_ns": str(int(t_s * 1e9)), "gpu": gpu}
        cells["power_instant_mw"] = "" if power_mw is None else str(power_mw)
        cells["temperature_c"] = str(celsius(t_s)) if celsius else ""
        lines.append(",".join(cells[name] for name in POWER_COLUMNS))
    path.write_text("\n".join(lines) + "\n")


def test_the_mean_of_the_last_two_spans_is_summed_over_gpus(tmp_path: Path) -> None:
    rows: list[tuple[float, str, int | None]] = [
        (t / 10, gpu, (100_000 if t <= 50 else 110_000)) for t in range(101) for gpu in ("GPU-a", "GPU-b")
    ]
    write(tmp_path / "power.csv", rows)
    assert recent(tmp_path / "power.csv") == Recent(200.0, 220.0)


def test_the_temperature_is_that_of_the_last_half_minute(tmp_path: Path) -> None:
    rows: list[tuple[float, str, int | None]] = [(t / 10, "GPU-a", 1000) for t in range(1000)]
    write(tmp_path / "power.csv", rows, lambda t_s: 40 + 20 * (t_s >= 20) + (t_s >= 90))
    assert recent(tmp_path / "power.csv") == Recent(1.0, 1.0, temperature_moved_c=1.0)


def test_too_short_a_series_says_nothing(tmp_path: Path) -> None:
    write(tmp_path / "power.csv", [(t / 10, "GPU-a", 1000) for t in range(50)])
    assert recent(tmp_path / "power.csv") is None


def test_readings_that_failed_are_left_out_and_not_taken_as_zero(tmp_path: Path) -> None:
    write(tmp_path / "power.csv", [(t / 10, "GPU-a", None if t % 2 else 1000) for t in range(110)])
    assert recent(tmp_path / "power.csv") == Recent(1.0, 1.0)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    write(path, [(t / 10, "GPU-a", 1000) for t in range(110)])
    path.write_text(path.read_text() + "11000000000,110001")
    assert recent(path) == Recent(1.0, 1.0)


def test_without_a_file_or_rows_it_says_nothing(tmp_path: Path) -> None:
    assert recent(tmp_path / "power.csv") is None
    write(tmp_path / "power.csv", [])
    assert recent(tmp_path / "power.csv") is None
