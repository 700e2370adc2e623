from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llem_airflow.measurement.recent_power import DeviceRow, Recent, last_rows, mean_power_w, recent
from llem_airflow.protocol.files import POWER_COLUMNS


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


def rows_of(last_s: float, gpu: str = "GPU-a") -> list[tuple[float, str, int | None]]:
    """A sample every tenth of a second; each second has its own power, in watts."""
    return [(t / 10, gpu, (t // 10) * 1000) for t in range(round(last_s * 10) + 1)]


def test_a_span_is_five_seconds_and_begins_after_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "power.csv", rows_of(19.9))
    assert recent(tmp_path / "power.csv") == Recent(12.0, 17.0)


@pytest.mark.parametrize(("last_s", "known"), [(9.9, False), (10.1, True)])
def test_two_spans_have_to_be_there(tmp_path: Path, last_s: float, known: bool) -> None:
    write(tmp_path / "power.csv", rows_of(last_s))
    assert (recent(tmp_path / "power.csv") is not None) is known


def test_a_span_without_samples_is_not_known(tmp_path: Path) -> None:
    write(tmp_path / "power.csv", [row for row in rows_of(20) if not 9 < row[0] < 16])
    assert recent(tmp_path / "power.csv") is None


def test_the_temperature_is_that_of_the_device_that_moves_most(tmp_path: Path) -> None:
    both = sorted(rows_of(40) + rows_of(40, "GPU-b"))
    path = tmp_path / "power.csv"
    write(path, both)
    header, *lines = path.read_text().splitlines()
    at = header.split(",").index("temperature_c")
    told = [line.split(",") for line in lines]
    for number, cells in enumerate(told):
        hot = cells[2] == "GPU-b"
        cells[at] = str(70 if hot and number > 700 else 60 if hot else 40) if number >= 200 else "20"
    path.write_text("\n".join([header, *(",".join(cells) for cells in told)]) + "\n")
    found = recent(path, 2)
    assert found is not None
    assert found.temperature_moved_c == 10.0


def test_the_mean_power_of_the_last_seconds(tmp_path: Path) -> None:
    write(tmp_path / "power.csv", sorted(rows_of(19.9) + rows_of(19.9, "GPU-b")))
    assert mean_power_w(tmp_path / "power.csv", 2.0) == pytest.approx(2 * 18.5)
    assert mean_power_w(tmp_path / "power.csv", 1.0) == pytest.approx(2 * 19.0)
    assert mean_power_w(tmp_path / "no.csv", 1.0) is None


def test_averaged_power_stands_in_where_a_board_has_no_other(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    write(path, rows_of(12))
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert lines[0][3:5] == ["power_instant_mw", "power_average_mw"]
    told = [lines[0], *([*one[:3], "", "7000", *one[5:]] for one in lines[1:])]
    path.write_text("\n".join(map(",".join, told)) + "\n")
    assert mean_power_w(path, 5.0) == pytest.approx(7.0)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_tail_that_is_read_holds_half_a_minute_of_all_devices(tmp_path: Path, devices: int) -> None:
    gpus = [f"GPU-{number:036d}" for number in range(devices)]
    rows: list[tuple[float, str, int | None]] = [
        (10_000 + t / 10, gpu, 300_000) for t in range(3000) for gpu in gpus
    ]
    write(tmp_path / "power.csv", rows, lambda t_s: 40 + (t_s >= 10_000 + 271))
    found = recent(tmp_path / "power.csv", devices)
    assert found is not None
    assert found.temperature_moved_c == 1.0


def test_the_last_samples_are_found_however_many_devices_write(tmp_path: Path) -> None:
    gpus = [f"GPU-{number:036d}" for number in range(8)]
    write(tmp_path / "power.csv", [(t / 10, gpu, 1000 + t) for t in range(1001) for gpu in gpus])
    assert mean_power_w(tmp_path / "power.csv", 30.0, 8) == pytest.approx(8 * (2000 - 149.5) / 1e3)
    found = last_rows(tmp_path / "power.csv", 65.0, 8)
    assert [one.t_ns for one in found[::8]] == [int(t / 10 * 1e9) for t in range(351, 1001)]
    assert [one.device for one in found[-8:]] == gpus
    assert found[-1] == DeviceRow(100 * 10**9, gpus[-1], 2000.0, None, None)
    assert last_rows(tmp_path / "power.csv", 1.0, 0)[-1] == found[-1]
    assert last_rows(tmp_path / "none.csv", 1.0) == []


def test_the_first_row_of_a_short_series_counts(tmp_path: Path) -> None:
    write(tmp_path / "power.csv", [(0.0, "GPU-a", 3000), (1.0, "GPU-a", 1000)])
    assert mean_power_w(tmp_path / "power.csv", 5.0) == 2.0
    assert [row.t_ns for row in last_rows(tmp_path / "power.csv", 5.0)] == [0, 1_000_000_000]


def test_the_mean_of_some_devices_is_not_that_of_all(tmp_path: Path) -> None:
    write(tmp_path / "power.csv", [(0.0, "GPU-a", 3000), (1.0, "GPU-a", 1000)])
    assert mean_power_w(tmp_path / "power.csv", 5.0, devices=2) is None
