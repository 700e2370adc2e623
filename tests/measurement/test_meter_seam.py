"""The interface of meters: one contract for all of them, and a third party's from its wheel to a sampled row."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llem_airflow.protocol.spec import METER_KINDS, MeterSpec
from llem_airflow.protocol.typed_json import to_json
from tests.parts import REPOSITORY
from tests.standins.gpus import built

EXAMPLE = Path(__file__).parent / "meter_plugin_example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds the example as its wheel brings it."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"  # building leaves files beside the sources
    shutil.copytree(EXAMPLE, source)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@contextmanager
def card(folder: Path) -> Iterator[Path]:
    """A hwmon folder of an Intel GPU whose counter rises by 100 W."""
    hwmon = folder / "hwmon3"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("xe\n")
    done, begin_s = threading.Event(), time.monotonic()

    def write() -> None:
        (hwmon / "new").write_text(f"{5_000_000 + round((time.monotonic() - begin_s) * 100e6)}\n")
        (hwmon / "new").replace(hwmon / "energy1_input")

    def rise() -> None:
        while not done.wait(0.002):
            write()

    write()
    thread = threading.Thread(target=rise)
    thread.start()
    try:
        yield folder
    finally:
        done.set()
        thread.join()


def run(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    found = os.pathsep.join(map(str, [REPOSITORY, *([path] if path else [])]))
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": found, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def breaches(spec: MeterSpec, *, path: Path | None = None, **environment: str) -> list[str]:
    done = run("-m", "tests.measurement.meter_contract", json.dumps(to_json(spec)), path=path, **environment)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["nvml", "cpu-estimate", "none"])
def test_every_meter_of_ours_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "gpus.conf"
    script.write_text("gpus = 2\ngpu.0.power = const 250\ngpu.1.power = sine 300 50 1.7\n")
    environment = built().environment(script)
    assert breaches(MeterSpec(kind=kind), path=None, **environment) == []


def test_a_third_party_s_meter_keeps_the_contract(installed: Path, tmp_path: Path) -> None:
    with card(tmp_path) as folder:
        assert breaches(MeterSpec(kind="intel-hwmon"), path=installed, LLEM_HWMON=str(folder)) == []


def test_the_suite_finds_a_meter_that_breaks_the_contract(tmp_path: Path) -> None:
    """Power in watts, a device unnamed, a name of its own: what a first draft gets wrong."""
    (tmp_path / "bad-1.dist-info").mkdir()
    (tmp_path / "bad-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (tmp_path / "bad-1.dist-info" / "entry_points.txt").write_text(
        "[llem_airflow.meters]\nbad = bad_meter:Bad\n"
    )
    (tmp_path / "bad_meter.py").write_text(
        "from llem_airflow.measurement.meters.contract import MeterFacts, Reading\n"
        "class Bad:\n"
        "    facts, ticks = MeterFacts('bad', 'real', 'board', ('a', 'b'), 'a note'), False\n"
        "    def __init__(self, spec): pass\n"
        "    def read(self): return (Reading(0, 0, 'a', power_instant_mw=250.5),)\n"
        "    def counters(self): return self.read()\n"
        "    def describe(self): return [{'name': 'a'}]\n"
        "    def close(self): pass\n"
    )
    told = " | ".join(breaches(MeterSpec(kind="bad"), path=tmp_path))
    for part in (
        "energy_kind real",
        "not one sentence",
        "rows of ['a']",
        "monotonic clock",
        "not a whole number",
    ):
        assert part in told
    (tmp_path / "bad_meter.py").write_text("import no_such_driver\n")
    done = run("-m", "tests.measurement.meter_contract", '{"kind": "bad"}', path=tmp_path)
    assert (
        "meter 'bad': its module 'bad_meter' does not load here (No module named 'no_such_driver')"
        in done.stderr
    )


def test_a_study_names_an_installed_meter_and_a_typo_is_told_the_names(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "import pathlib, sys; from llem_airflow.study import load_study, StudyFileError\n"
        "study = pathlib.Path(sys.argv[1])\n"
        "for key in ('meter', 'energy_sampler'):\n"
        "  for meter in ('intel-hwmon', 'intel-hwmom'):\n"
        "    head = 'serving_mode: offline\\ntask: {model: m}\\n'\n"
        "    study.write_text(f'{head}measurement: {{{key}: {meter}}}\\n')\n"
        "    try: print('is', load_study(study).experiments[0].config['measurement']['meter'])\n"
        "    except StudyFileError as error: print('told', *str(error).split())\n"
    )
    done = run("-c", code, str(tmp_path / "study.yaml"), path=installed)
    taken, told, as_sampler, told_too = done.stdout.splitlines()
    assert (taken, as_sampler) == ("is intel-hwmon", "is intel-hwmon")
    for text in (told, told_too):
        assert all(name in text for name in (*METER_KINDS, "Did you mean 'intel-hwmon'"))


def test_the_bundle_carries_an_installed_meter_to_where_nothing_is_installed(
    installed: Path, tmp_path: Path
) -> None:
    made = run(
        "-c",
        "import sys, pathlib; from llem_airflow.runners.bundle import build_bundle as b; "
        "print(b(pathlib.Path(sys.argv[1])))",
        str(tmp_path / "bundles"),
        path=installed,
    )
    bundle = made.stdout.strip()
    power_csv = tmp_path / "power.csv"
    sample = (
        "import sys, pathlib, time; sys.path.insert(0, sys.argv[1])\n"
        "from llem_airflow.measurement.sampler import start_sampler\n"
        "from llem_airflow.protocol.spec import MeterSpec\n"
        "sampler = start_sampler(MeterSpec(kind=sys.argv[3]), pathlib.Path(sys.argv[2]))\n"
        "time.sleep(0.3); print(sampler.stop().note)"
    )

    def sampled(kind: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", sample, bundle, str(power_csv), kind],
            env={"PATH": os.environ["PATH"], "LLEM_HWMON": str(tmp_path / "hwmon")},
            capture_output=True,
            text=True,
            check=False,
        )

    with card(tmp_path / "hwmon"):
        assert sampled("intel-hwmon").stdout == "1 Intel GPU(s) by hwmon.\n"
    with power_csv.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    powers_w = [int(row["power_instant_mw"]) / 1e3 for row in rows[3:]]
    assert {row["gpu"] for row in rows} == {"hwmon3"}
    assert sum(powers_w) / len(powers_w) == pytest.approx(100, rel=0.4)  # the card is a thread of a busy host
    assert "known: auto, nvml, amdsmi, rapl, cpu-estimate, none, intel-hwmon" in sampled(
        "wall"
    ).stderr.replace("\n", " ")
