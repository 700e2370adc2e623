"""The meter of AMD's GPUs on a stand-in library, and both against the signatures recorded of the real one."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from llem_airflow.measurement.meters.amdsmi import AmdSmiMeter
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.spec import MeterSpec
from tests.measurement.test_meter_seam import breaches
from tests.parts import REPOSITORY
from tests.standins.gpus import read_columns

STANDIN = REPOSITORY / "tests" / "standins" / "amdsmi" / "amdsmi.py"
METERS = REPOSITORY / "llem_airflow" / "measurement" / "meters"
RECORD: dict[str, Any] = json.loads((REPOSITORY / "tests" / "recorded" / "amdsmi-7.0.2.json").read_text())
UUIDS = ("d2ff74a1-0000-1000-80aa-000000000000", "d2ff74a1-0000-1000-80aa-000000000001")
BOARDS: list[dict[str, Any]] = [
    {"uuid": UUIDS[0], "power_w": 700, "generation": "mi300"},
    {"uuid": UUIDS[1], "power_w": 94, "generation": "mi200"},
]


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's script; processes started from now on find the library."""
    script = tmp_path / "boards.json"
    script.write_text(json.dumps(BOARDS))
    path = os.pathsep.join(filter(None, [str(STANDIN.parent), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("STANDIN_AMDSMI", str(script))
    monkeypatch.setenv("PYTHONPATH", path)
    return script


def refusal(kind: str = "amdsmi", gpus: tuple[str, ...] = ()) -> str:
    code = (
        "import sys; from llem_airflow.measurement.meters.choose import open_meter\n"
        "from llem_airflow.protocol.spec import MeterSpec\n"
        "open_meter(MeterSpec(kind=sys.argv[1], gpus=tuple(sys.argv[2:])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, kind, *gpus], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert "MeterUnavailableError" in done.stderr
    return done.stderr.splitlines()[-1]


def test_the_meter_keeps_the_contract(boards: Path) -> None:
    environment = {"STANDIN_AMDSMI": str(boards)}
    assert breaches(MeterSpec(kind="amdsmi"), path=STANDIN.parent, **environment) == []


def test_both_generations_are_sampled_in_milliwatts_and_millijoules(boards: Path, tmp_path: Path) -> None:
    sampler = start_sampler(MeterSpec(kind="amdsmi"), tmp_path / "power.csv")
    (first, _) = sampler.describe_gpus()
    time.sleep(0.6)
    meter = sampler.stop()
    power = read_columns(tmp_path / "power.csv")
    assert meter.devices == UUIDS
    assert "never run on hardware" in meter.note
    assert (first["enforced_power_limit_w"], first["memory_total_bytes"]) == (750, 196_592 * 2**20)
    rows = list(zip(power["gpu"], power["power_instant_mw"], power["power_average_mw"], strict=True))
    sampled = {row for row in rows if row[1] is not None or row[2] is not None}
    assert sampled == {(UUIDS[0], 700_000, None), (UUIDS[1], None, 94_000)}
    for uuid, power_w in zip(UUIDS, (700, 94), strict=True):
        columns = (power[name] for name in ("t_before_mono_ns", "t_after_mono_ns", "energy_mj"))
        told = [row for gpu, *row in zip(power["gpu"], *columns, strict=True) if gpu == uuid]
        (begun_ns, begun_by_ns, first_mj), (ended_ns, ended_by_ns, last_mj) = told[0], told[-1]
        # Each value was read at some moment of its call, which takes as long as the host lets it.
        shortest_s, longest_s = (ended_ns - begun_by_ns) / 1e9, (ended_by_ns - begun_ns) / 1e9
        assert 0.95 * power_w * shortest_s <= (last_mj - first_mj) / 1e3 <= 1.05 * power_w * longest_s


def test_only_the_boards_that_were_given_are_read_and_an_absent_one_is_named(
    boards: Path, tmp_path: Path
) -> None:
    sampler = start_sampler(MeterSpec(kind="amdsmi", gpus=UUIDS[1:]), tmp_path / "power.csv")
    assert sampler.stop().devices == UUIDS[1:]
    assert f"meter amdsmi: another is not visible here; visible: {', '.join(UUIDS)}" in refusal(
        gpus=("another",)
    )


def test_what_is_missing_is_told_with_what_to_do(boards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards.write_text("[]")
    assert "no AMD driver answers here (AMDSMI_STATUS" in refusal()
    boards.write_text(
        json.dumps([{**BOARDS[0], "fails": ["amdsmi_get_power_info", "amdsmi_get_energy_count"]}])
    )
    assert "tells neither its power nor its energy (AMDSMI_STATUS_NOT_SUPPORTED" in refusal()
    boards.write_text(json.dumps([{**BOARDS[0], "fails": ["amdsmi_get_gpu_device_uuid"]}]))
    assert "the driver refused: AMDSMI_STATUS_NOT_SUPPORTED" in refusal()
    monkeypatch.setenv("PYTHONPATH", "")
    assert "the Python package amdsmi does not load here" in refusal()


def test_every_call_key_and_name_of_the_meter_is_in_the_record_of_the_library() -> None:
    tree = ast.parse((METERS / "amdsmi.py").read_text())
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    calls = {name for name in attributes if name.startswith("amdsmi_")}
    assert calls == set(RECORD["functions"])
    types = {name for name in attributes if name.startswith("AmdSmi")}
    assert types <= {*RECORD["enums"], *RECORD["exceptions"]}
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.Call)
            or not isinstance(node.func, ast.Attribute)
            or node.func.attr not in calls
        ):
            continue
        said = RECORD["functions"][node.func.attr]
        if not any(isinstance(argument, ast.Starred) for argument in node.args):
            most = len(said["required"]) + len(said["optional"])
            assert len(said["required"]) <= len(node.args) <= most, node.func.attr
    text = (METERS / "amdsmi.py").read_text()
    keys = {key for said in RECORD["functions"].values() for key in said["keys"]}
    asked = set(filter(None, map(_key_asked_for, ast.walk(tree))))
    assert asked <= keys
    assert all(f'"{name}"' in text and name in RECORD["enums"]["AmdSmiClkType"] for name in ("GFX", "MEM"))
    assert {"HOTSPOT", "VRAM"} <= set(RECORD["enums"]["AmdSmiTemperatureType"])


def _key_asked_for(node: ast.AST) -> str | None:
    """``"clk"`` of ``told.get("clk")``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "get":
        return None
    first = node.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def test_the_stand_in_has_the_recorded_signatures_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boards.json").write_text(json.dumps(BOARDS))
    monkeypatch.setenv("STANDIN_AMDSMI", str(tmp_path / "boards.json"))
    spec = importlib.util.spec_from_file_location("standin_amdsmi", STANDIN)
    assert spec is not None
    assert spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    kinds = {"clock_type": library.AmdSmiClkType.GFX, "sensor_type": library.AmdSmiTemperatureType.HOTSPOT}
    for name, said in RECORD["functions"].items():
        function = getattr(library, name)
        parameters = inspect.signature(function).parameters
        assert list(parameters) == [*said["required"], *said["optional"]], name
        answer = function(*(kinds.get(wanted, 0) for wanted in said["required"]))
        for one in answer if isinstance(answer, list) else [answer]:
            assert not isinstance(one, dict) or set(one) <= set(said["keys"]), name


def test_every_name_that_the_nvml_meter_takes_from_pynvml_is_there() -> None:
    for file in ("nvml.py", "calls.py"):
        for node in ast.walk(ast.parse((METERS / file).read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            if name.startswith(("nvmlDevice", "nvmlSystem", "nvmlInit", "nvmlShut", "NVML", "c_nvml")):
                assert hasattr(pynvml, name), name


@pytest.fixture
def library(boards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in's script, where this process finds the library, too."""
    monkeypatch.syspath_prepend(STANDIN.parent)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    yield boards
    sys.modules.pop("amdsmi", None)


def test_clocks_temperatures_and_use_are_told_once_a_second(library: Path) -> None:
    meter = AmdSmiMeter()
    first, older = meter.read()
    assert (first.sm_clock_mhz, first.mem_clock_mhz, first.utilisation_percent) == (2100, 1300, 97)
    assert (first.temperature_c, first.mem_temperature_c) == (61, 54)
    assert first.memory_used_bytes == older.memory_used_bytes == 283 * 2**20
    again = meter.read()[0]  # within a second, unless this machine stands still
    if again.t_after_mono_ns < first.t_after_mono_ns + 950_000_000:
        assert (again.sm_clock_mhz, again.temperature_c, again.memory_used_bytes) == (None, None, None)
        time.sleep(max(0.0, 0.951 - (time.monotonic_ns() - first.t_after_mono_ns) / 1e9))
        assert meter.read()[0].sm_clock_mhz == 2100
    meter.close()


def test_a_board_describes_itself_in_watts_and_bytes(library: Path) -> None:
    meter = AmdSmiMeter(UUIDS[:1])
    assert meter.describe() == [
        {
            "uuid": UUIDS[0],
            "name": "AMD Instinct (STAND-IN)",
            "pci_bus_id": "0000:01:00.0",
            "driver_version": "6.14.0",
            "power_limit_w": 750,
            "enforced_power_limit_w": 750,
            "default_power_limit_w": 750,
            "memory_total_bytes": 196_592 * 2**20,
            "memory_used_bytes": 283 * 2**20,
            "temperature_c": 61,
            "processes": [{"pid": 4321, "memory_used_bytes": 1 << 30}],
        }
    ]
    assert meter.facts.note == "1 x AMD Instinct (STAND-IN) by amdsmi; this meter was never run on hardware."
    meter.close()


def test_a_counter_is_told_in_millijoules_and_what_fails_is_not_known(library: Path) -> None:
    meter = AmdSmiMeter()
    before_s = time.monotonic() - 0.01
    (counter, _) = meter.counters()
    assert counter.energy_mj is not None
    assert 700e3 * before_s - 1 <= counter.energy_mj <= 700e3 * time.monotonic() + 1
    assert counter.power_instant_mw is None
    library.write_text(json.dumps([{**BOARDS[0], "fails": ["amdsmi_get_power_info"]}, BOARDS[1]]))
    failed, good = meter.read()
    assert failed.error == "AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported"
    assert (failed.power_instant_mw, failed.energy_mj is not None) == (None, True)
    assert (good.error, good.power_average_mw) == (None, 94_000)
    meter.close()


def test_a_board_that_says_it_has_no_power_is_an_error_of_its_own(library: Path) -> None:
    library.write_text(json.dumps([{**BOARDS[0], "power_w": True}, BOARDS[1]]))  # no number
    meter = AmdSmiMeter()
    silent, _ = meter.read()
    assert (silent.error, silent.power_instant_mw) == ("NoPower", None)
    library.write_text(json.dumps([{**BOARDS[0], "fails": ["amdsmi_get_gpu_asic_info"]}]))
    assert "1 x AMD GPU by amdsmi" in AmdSmiMeter().facts.note
