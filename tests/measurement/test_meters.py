from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llem_airflow.measurement.meters.choose import open_meter
from llem_airflow.measurement.meters.contract import MeterUnavailableError, Reading
from llem_airflow.measurement.meters.cpu_estimate import CgroupCpuTime, CpuEstimateMeter, HostCpuTime
from llem_airflow.measurement.meters.rapl import RaplMeter, _Package
from llem_airflow.protocol.files import POWER_COLUMNS
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
    with pytest.raises(MeterUnavailableError, match="'wall' is not known; known: auto, nvml, amdsmi, rapl"):
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


def test_the_busy_time_of_the_host_is_what_no_core_waited_for(tmp_path: Path) -> None:
    """proc(5): user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice; guests are in user."""
    path = tmp_path / "stat"
    path.write_text(
        "cpu  100 20 3000 70000 600000 5 4 9000000 80000000 700000000\ncpu0 1\ncpu1 1\ncpu2 1\nintr 5\n"
    )
    ticks = os.sysconf("SC_CLK_TCK")
    assert HostCpuTime(path).read() == ((100 + 20 + 3000 + 5 + 4) / ticks, 3)
    path.write_text("cpu  1 2 3 4 5 6 7\ncpu0 1\n")
    assert HostCpuTime(path).read() == ((1 + 2 + 3 + 6 + 7) / ticks, 1)


@pytest.mark.parametrize("text", ["", "cpu  1 2 3 4 5 6\n", "cpu  0 0 0 0 0 0 0\n", "cpu a b\n"])
def test_a_masked_host_tells_no_busy_time(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    assert HostCpuTime(tmp_path / "stat").read() is None


def test_a_cgroup_without_its_own_cpu_time_tells_none(tmp_path: Path) -> None:
    assert CgroupCpuTime(tmp_path).read() is None
    (tmp_path / "cpu.stat").write_text("nr_periods 5\nusage_usec 1500000\n")
    assert CgroupCpuTime(tmp_path).read() == (1.5, os.cpu_count())
    (tmp_path / "cpu.stat").write_text("nr_periods 5\n")
    (tmp_path / "cpuacct").mkdir()
    (tmp_path / "cpuacct/cpuacct.usage").write_text("2000000000")
    assert CgroupCpuTime(tmp_path).read() == (2.0, os.cpu_count())


def test_an_estimate_lies_between_the_wattages_by_the_share_of_busy_cores(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    meter = CpuEstimateMeter(10.0, 65.0, (proc_stat(tmp_path / "stat", 0, 1, cores=4),))
    meter._last_ns -= 1000 * 10**9
    proc_stat(tmp_path / "stat", 1000 * ticks, 1, cores=4)
    (reading,) = meter.read()
    assert reading.power_instant_mw == pytest.approx(10_000 + 55_000 / 4, rel=1e-3)
    assert reading.energy_mj == pytest.approx(1000 * (10_000 + 55_000 / 4), rel=1e-3)
    assert reading.utilisation_percent == 25
    (idle,) = meter.counters()
    assert (idle.power_instant_mw, idle.utilisation_percent) == (10_000, 0)


def test_an_estimate_whose_source_is_lost_tells_an_error(tmp_path: Path) -> None:
    meter = CpuEstimateMeter(10.0, 65.0, (proc_stat(tmp_path / "stat", 0, 1),))
    (tmp_path / "stat").unlink()
    (reading,) = meter.read()
    assert (reading.error, reading.has_power) == ("CpuTimeUnreadable", False)
    assert reading.t_before_mono_ns <= reading.t_after_mono_ns


@pytest.mark.parametrize(
    ("used_uj", "elapsed_s", "known"),
    [
        (2_000_000_000, 1.0, True),
        (2_000_000_001, 1.0, False),
        (20_000_000, 0.0, True),
        (20_000_001, 0.0, False),
    ],
)
def test_a_package_draws_at_most_two_kilowatts(
    tmp_path: Path, used_uj: int, elapsed_s: float, known: bool
) -> None:
    """Within a hundredth of a second a register may show more at once."""
    package = _Package("cpu-package-0", tmp_path, wraps_at_uj=10**12, last_uj=7, last_ns=5)
    now_ns = 5 + round(elapsed_s * 1e9)
    assert package.advance(7 + used_uj, now_ns) == (used_uj if known else None)
    assert (package.total_uj, package.last_uj, package.last_ns) == (used_uj * known, 7 + used_uj, now_ns)


def test_a_package_s_counter_wraps_where_it_says(tmp_path: Path) -> None:
    package = _Package("cpu-package-0", tmp_path, wraps_at_uj=1000, last_uj=990, last_ns=0)
    assert package.advance(990, 10**9) == 0
    assert package.advance(5, 2 * 10**9) == 15
    assert package.total_uj == 15


def test_rapl_tells_the_mean_power_since_the_last_reading(tmp_path: Path) -> None:
    powercap(tmp_path, package_0=5_000_000)
    meter = RaplMeter((tmp_path,))
    meter._packages[0].last_ns -= 1000 * 10**9
    powercap(tmp_path, package_0=105_000_000)
    (reading,) = meter.counters()
    assert reading.power_instant_mw == pytest.approx(100, rel=0.01)
    assert (reading.gpu, reading.energy_mj) == ("cpu-package-0", 100_000)


def test_only_whole_packages_are_read(tmp_path: Path) -> None:
    powercap(tmp_path, package_0=1, package_1=1)
    (tmp_path / "intel-rapl:0").rename(tmp_path / "intel-rapl:0:0")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("5")
    assert RaplMeter((tmp_path,)).facts.devices == ("cpu-package-1",)


def test_what_tells_no_power() -> None:
    assert Reading(1, 2, "x", power_instant_mw=0).has_power
    assert Reading(1, 2, "x", power_average_mw=0).has_power
    assert not Reading(1, 2, "x", energy_mj=5).has_power
