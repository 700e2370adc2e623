from __future__ import annotations

import time
from pathlib import Path

import pytest

from llem_airflow.measurement.meters.choose import open_meter
from llem_airflow.measurement.meters.cpu_estimate import CgroupCpuTime, CpuEstimateMeter, HostCpuTime
from llem_airflow.measurement.meters.rapl import RaplMeter
from llem_airflow.measurement.meters.reading import MeterUnavailableError, Reading
from llem_airflow.protocol.records import POWER_COLUMNS
from llem_airflow.protocol.spec import MeterSpec


def proc_stat(path: Path, user: int, idle: int, cores: int = 2) -> HostCpuTime:
    lines = [f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0"] + [f"cpu{i} 0 0 0 0 0 0 0 0 0 0" for i in range(cores)]
    path.write_text("\n".join(lines))
    return HostCpuTime(path)


def test_a_reading_has_the_columns_of_the_power_file() -> None:
    assert Reading._fields == POWER_COLUMNS
    assert Reading(1, 2, "cpu", power_instant_mw=3).line() == "1,2,cpu,3,,,,,,,,,,\n"


def test_an_idle_host_is_estimated_at_the_stated_idle_power(tmp_path: Path) -> None:
    meter = CpuEstimateMeter(10.0, 65.0, (proc_stat(tmp_path / "stat", 100, 1000),))
    time.sleep(0.01)
    (reading,) = meter.read()
    assert (reading.power_instant_mw, reading.utilisation_percent) == (10_000, 0)


def test_a_busy_host_is_estimated_at_most_at_the_stated_maximum(tmp_path: Path) -> None:
    meter = CpuEstimateMeter(10.0, 65.0, (proc_stat(tmp_path / "stat", 100, 1000),))
    proc_stat(tmp_path / "stat", 100_000, 1000)
    (reading,) = meter.read()
    assert (reading.power_instant_mw, reading.utilisation_percent) == (65_000, 100)


def test_the_estimated_counter_is_the_sum_of_the_estimated_power(tmp_path: Path) -> None:
    meter = CpuEstimateMeter(10.0, 65.0, (proc_stat(tmp_path / "stat", 100, 1000),))
    readings: list[Reading] = []
    for _ in range(3):
        time.sleep(0.02)
        readings += meter.read()
    power_mw = [reading.power_instant_mw for reading in readings]
    assert power_mw == [10_000] * 3
    used_mj = (readings[2].energy_mj or 0) - (readings[0].energy_mj or 0)
    elapsed_s = (readings[2].t_after_mono_ns - readings[0].t_after_mono_ns) / 1e9
    assert used_mj == pytest.approx(10_000 * elapsed_s, abs=2)


def test_a_masked_proc_stat_gives_way_to_the_cgroup_and_the_note_says_so(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\n")
    meter = CpuEstimateMeter(10.0, 65.0, (HostCpuTime(tmp_path / "stat"), CgroupCpuTime(tmp_path)))
    assert "this container only (cgroup)" in meter.facts.note


def test_the_cpu_time_of_a_version_1_cgroup_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpuacct").mkdir()
    (tmp_path / "cpuacct" / "cpuacct.usage").write_text("2500000000\n")
    found = CgroupCpuTime(tmp_path).read()
    assert found is not None
    assert found.busy_s == 2.5


def test_no_cpu_time_anywhere_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailableError, match=r"neither /proc/stat nor a cgroup.*use meter: none"):
        CpuEstimateMeter(10.0, 65.0, (HostCpuTime(tmp_path / "no"), CgroupCpuTime(tmp_path)))


def test_an_estimate_says_its_wattages_in_its_note() -> None:
    facts = open_meter(MeterSpec(kind="cpu-estimate", cpu_idle_w=12, cpu_max_w=90)).facts
    assert (facts.energy_kind, facts.boundary) == ("estimate", "estimate")
    assert "12 W idle to 90 W with all" in facts.note


def powercap(root: Path, **energy_uj: int) -> None:
    for number, (name, value) in enumerate(energy_uj.items()):
        zone = root / f"intel-rapl:{number}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(name.replace("_", "-") + "\n")
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text("1000000000\n")


def test_rapl_reads_the_packages_and_not_the_platform_that_contains_them(tmp_path: Path) -> None:
    powercap(tmp_path, package_0=5_000_000, psys=9_000_000, package_1=1)
    meter = RaplMeter((tmp_path,))
    assert meter.facts.devices == ("cpu-package-0", "cpu-package-1")
    assert (meter.facts.energy_kind, meter.facts.boundary) == ("measured", "cpu-package")
    powercap(tmp_path, package_0=7_000_000, psys=9_000_000, package_1=500_001)
    assert [reading.energy_mj for reading in meter.read()] == [2000, 500]


def test_a_rapl_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    powercap(tmp_path, package_0=999_000_000)
    meter = RaplMeter((tmp_path,))
    powercap(tmp_path, package_0=1_000_000)
    assert [reading.energy_mj for reading in meter.read()] == [2000]


def test_rapl_is_found_where_the_host_folder_was_mounted(tmp_path: Path) -> None:
    powercap(tmp_path / "mounted", package_0=1)
    assert RaplMeter((tmp_path / "masked", tmp_path / "mounted")).facts.devices == ("cpu-package-0",)


def test_a_rapl_zone_that_becomes_unreadable_gives_its_error(tmp_path: Path) -> None:
    powercap(tmp_path, package_0=1)
    meter = RaplMeter((tmp_path,))
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    (reading,) = meter.read()
    assert (reading.error, reading.has_power, reading.energy_mj) == ("FileNotFoundError", False, None)


def test_without_rapl_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailableError, match=r"no readable CPU package counter.*Run as root"):
        RaplMeter((tmp_path,))


def test_an_unknown_meter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MeterUnavailableError, match="'wall' is not known; known: auto, nvml, rapl"):
        open_meter(MeterSpec(kind="wall"))


def test_the_meter_none_reads_nothing() -> None:
    meter = open_meter(MeterSpec(kind="none"))
    assert (meter.read(), meter.counters(), meter.describe()) == ((), (), [])
    assert (meter.facts.kind, meter.facts.energy_kind) == ("none", "none")


def test_a_rapl_counter_that_steps_back_is_a_reset_and_no_wrap(tmp_path: Path) -> None:
    powercap(tmp_path, package_0=50_000_000)
    meter = RaplMeter((tmp_path,))
    powercap(tmp_path, package_0=50_010_000)
    meter.read()
    powercap(tmp_path, package_0=50_005_000)
    (reading,) = meter.read()
    assert (reading.error, reading.has_power, reading.energy_mj) == ("CounterReset", False, 0)
    powercap(tmp_path, package_0=50_025_000)
    (reading,) = meter.read()
    assert (reading.error, reading.energy_mj) == (None, 20)


def test_a_rapl_counter_that_leaps_is_a_reset(tmp_path: Path) -> None:
    powercap(tmp_path, package_0=50_000_000)
    meter = RaplMeter((tmp_path,))
    powercap(tmp_path, package_0=550_000_000)
    assert [reading.error for reading in meter.read()] == ["CounterReset"]
