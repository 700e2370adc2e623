"""The measuring path on a model with random weights: its numbers by hand, and the whole of it on a stand-in."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.gpu_check.path import path_of, walk
from llem_airflow.gpu_check.verdicts import path_findings
from llem_airflow.measurement.board import path as measuring
from llem_airflow.measurement.board import peer
from llem_airflow.measurement.board.peer import Peers
from llem_airflow.measurement.engines.contract import Prompt
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.gpu_profile import GpuProfile, MeasuringPath
from tests.standins.gpus import built, use_script

UUID = "GPU-5741d000-0000-0000-0000-000000000000"
PROFILE = GpuProfile(1, UUID, "NVIDIA H100 (STAND-IN)", "measured")
WATTS = 200.0
METER = {
    "kind": "nvml",
    "energy_kind": "measured",
    "boundary": "board",
    "devices": [UUID],
    "requested_hz": 10.0,
    "achieved_hz": 10.0,
    "samples": 400,
    "failed_reads": 0,
    "call_p50_s": 1e-5,
    "sampler_cpu_s": 0.1,
    "note": "",
}


def readings(path: Path, *, counter: bool = True) -> Path:
    """Forty seconds of 200 W, read each 20 ms from a register that is written each 100 ms."""
    lines = [",".join(POWER_COLUMNS)]
    for number in range(2000):
        t_ns = number * 20_000_000
        told = dict.fromkeys(POWER_COLUMNS, "")
        told |= {"t_before_mono_ns": str(t_ns), "t_after_mono_ns": str(t_ns + 1000), "gpu": UUID}
        told["power_instant_mw"] = str(int(WATTS * 1e3)) if counter else ""
        told["energy_mj"] = str(int(WATTS * 100) * (number // 5)) if counter else ""
        lines.append(",".join(told.values()))
    path.write_text("\n".join(lines) + "\n")
    return path


def found(tokens: list[int]) -> dict[str, object]:
    windows = [
        {
            "begin_ns": int((2 + 6 * i) * 1e9),
            "end_ns": int((6 + 6 * i) * 1e9),
            "output_tokens": tokens[i],
            "peers": {
                "zeus": {
                    "joules": 816.0,
                    "begin_ns": int((2 + 6 * i) * 1e9),
                    "end_ns": int((6 + 6 * i) * 1e9),
                }
            },
        }
        for i in range(5)
    ]
    model = {"n_parameters": 110_000_000, "dtype": "bfloat16", "device": "cuda:0"}
    return {
        "model": model,
        "meter": METER,
        "windows": windows,
        "harness_to_bare": [0.99, 0.98, 1.0],
        "peer_problems": {"codecarbon": "not installed", "nvidia-smi": "it did not answer in time"},
    }


def test_joules_per_token_have_an_interval_of_students_t_and_the_meters_uncertainty(tmp_path: Path) -> None:
    path = path_of(found([100, 98, 102, 101, 99]), readings(tmp_path / "power.csv"), PROFILE)
    each_j = [800 / tokens for tokens in (100, 98, 102, 101, 99)]
    assert path.windows == 5
    assert path.energy_per_token_j == pytest.approx(sum(each_j) / 5, rel=2e-3)
    assert path.energy_per_token_uncertainty_j is not None
    # 2.776 x 0.1266 / sqrt(5) = 0.157 J of spread; the meter's own comes on top
    assert 0.157 <= path.energy_per_token_uncertainty_j < 0.157 + 0.1
    assert path.harness_to_bare_ratio == 0.99
    assert path.harness_to_bare_uncertainty_ratio == pytest.approx(2 * 1.253 * 1.483 * 0.01 / 3**0.5)
    assert path.counter_to_integral_ratio == pytest.approx(1.0, abs=2e-3)
    assert path.peer_ratios == {"zeus": pytest.approx(1.02, abs=2e-3)}
    said = {line.what: (line.verdict, line.value, line.why) for line in path_findings(path)}
    assert said["zeus / this meter, in the same windows"][0] == "expected"
    assert said["codecarbon / this meter, in the same windows"] == ("unknown", "", "not installed")
    assert said["nvidia-smi / this meter, in the same windows"][2] == "it did not answer in time"


def test_a_meter_that_tells_nothing_leaves_no_energy_and_says_so(tmp_path: Path) -> None:
    path = path_of(found([100] * 5), readings(tmp_path / "power.csv", counter=False), PROFILE)
    assert (path.windows, path.energy_per_token_j, path.peer_ratios) == (0, None, {})
    verdicts = {line.verdict for line in path_findings(path) if "harness" not in line.what}
    assert verdicts == {"unknown"}
    assert all(line.why for line in path_findings(path) if line.verdict == "unknown")


@pytest.mark.parametrize("path", [None, MeasuringPath(problem="PyTorch sees no CUDA device")])
def test_a_path_that_was_not_walked_is_one_line_with_its_reason(path: MeasuringPath | None) -> None:
    (line,) = path_findings(path)
    assert (line.verdict, bool(line.why)) == ("unknown", True)


TOOLS = {
    "good": "#!/bin/sh\nwhile echo 200.0; do sleep 0.05; done\n",
    "bad": "#!/bin/sh\necho 'No devices were found'\n",
    "ends": "#!/bin/sh\necho 200.0\n",
}


def tools(monkeypatch: pytest.MonkeyPatch, folder: Path, smi: str, **modules: str) -> None:
    """An nvidia-smi, and other tools as modules that do as they are told."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(TOOLS[smi])
    program.chmod(0o755)
    for name, text in modules.items():
        (folder / "site" / name).mkdir(parents=True)
        (folder / "site" / name / "__init__.py").write_text(text)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(folder / "site")


ZEUS = """
class monitor:
    class ZeusMonitor:
        def __init__(self, gpu_indices, cpu_indices): self.gpu_indices = gpu_indices
        def begin_window(self, key, sync_execution): print("a word of its own")
        def end_window(self, key, sync_execution):
            return type("Measurement", (), {"gpu_energy": {self.gpu_indices[0]: 12.5}})
import sys; sys.modules["zeus.monitor"] = monitor
"""


def test_a_tool_that_fails_hangs_or_ends_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_script(monkeypatch, tmp_path, "gpus = 1")
    tools(monkeypatch, tmp_path, "bad", zeus=ZEUS, codecarbon="import os; os._exit(3)")
    peers = Peers(UUID)
    try:
        peers.answers(lambda: None)
        peers.tell("begin")
        assert peers.answers(lambda: None) == {"zeus": {"began": True}}
        peers.tell("end")
        told = peers.answers(lambda: None)
        assert told["zeus"]["joules"] == 12.5
        assert told["zeus"]["begin_ns"] < told["zeus"]["end_ns"]
    finally:
        peers.close()
    assert peers.problems == {
        "nvidia-smi": "RuntimeError: nvidia-smi said 'No devices were found'",
        "codecarbon": "it ended without a word",
    }


def test_a_tool_that_does_not_answer_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llem_airflow.measurement.board.peer.START_S", 0.0)
    tools(monkeypatch, tmp_path, "good", zeus="import time; time.sleep(600)")
    peers = Peers(UUID)
    assert "zeus" not in peers.answers(lambda: None)
    peers.close()
    assert peers.problems["zeus"] == "it did not answer in time"


@pytest.mark.engine
def test_the_whole_path_on_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_script(monkeypatch, tmp_path, f"gpus = 1\ngpu.0.power = const {WATTS:g}")
    tools(monkeypatch, tmp_path, "good", zeus="raise OSError('no such device')")
    (tmp_path / "work").mkdir()
    # A busy machine may take minutes to import PyTorch, keep a tool from answering, or hide a window from the meter.
    monkeypatch.setattr("llem_airflow.gpu_check.path._STARTS_S", 500.0)
    path = walk(PROFILE, 6.0, tmp_path / "work")
    assert (path.problem, path.device) == ("", "cpu")
    assert path.windows >= 2
    assert path.n_parameters is not None
    assert path.energy_per_token_j is not None
    assert path.harness_to_bare_ratio is not None
    assert path.counter_to_integral_ratio == pytest.approx(1.0, abs=0.1)
    for tool, says in (("nvidia-smi", ""), ("zeus", "OSError: no such device")):
        problem = path.peer_problems.get(tool, "")
        assert problem in (says, "it did not answer in time")
        assert problem or path.peer_ratios[tool] == pytest.approx(1.0, abs=0.2)
    said = {line.what: (line.verdict, line.why) for line in path_findings(path)}
    assert said["energy of a token of that model"][0] == "unknown"
    assert "on the CPU" in said["energy of a token of that model"][1]


def test_without_pytorch_or_when_its_process_ends_the_path_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "work").mkdir()
    assert (
        walk(PROFILE, 1.0, tmp_path / "work").problem
        == "PyTorch or transformers is not usable here: No module named 'torch'"
    )
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os; print('segfault', file=__import__('sys').stderr); os._exit(139)"
    )
    (tmp_path / "work" / "path.json").unlink()
    assert walk(PROFILE, 1.0, tmp_path / "work").problem == "its process ended with 139: segfault"


@pytest.mark.parametrize("lines", [[], ["1,2,GPU-x" + "," * 10], ["1,2,3"]])
def test_readings_that_are_not_there_leave_the_energy_unknown(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "power.csv").write_text("\n".join([",".join(POWER_COLUMNS), *lines]) + "\n")
    path = path_of(found([100] * 5), tmp_path / "power.csv", PROFILE)
    assert (path.windows, path.energy_per_token_j, bool(path.problem)) == (0, None, True)


def test_joules_of_a_power_that_is_shown_now_and_then_are_those_of_what_holds() -> None:
    shown = [(10.0, 100.0), (11.0, 200.0), (13.0, 50.0)]
    assert peer._held(shown, 10.0, 14.0) == 100 * 1 + 200 * 2 + 50 * 1
    assert peer._held(shown, 10.5, 12.0) == 100 * 0.5 + 200 * 1
    assert peer._held(shown, 13.5, 15.5) == 50 * 2
    assert peer._held(shown, 9.0, 10.5) == 100 * 0.5  # nothing was shown before
    assert peer._held(shown[:1], 10.0, 20.0) == 1000.0
    assert peer._watts(" 87.5\n") == 87.5


class Model:
    """An engine whose pass takes next to no time."""

    synced = 0

    def sync(self) -> None:
        self.synced += 1

    def bare(self, batch: Any) -> None:
        time.sleep(0.001)


class Clocked:
    """An attempt whose passes each take a millisecond, and a sampler that notes when it rests."""

    def __init__(self) -> None:
        self.rests = 0
        self.ticks: list[int | None] = []

    def passes(self, engine: Any, work: Any, begin_ns: int, wanted_s: float) -> list[Any]:
        done: list[Any] = []
        while not done or time.monotonic_ns() < begin_ns + wanted_s * 1e9:
            time.sleep(0.001)
            done.append(type("Batch", (), {"output_tokens": 7}))
        return done

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        self.rests += 1
        yield

    def wait_for_tick(self) -> int | None:
        return self.ticks.pop(0)


def ready() -> tuple[measuring.Ready, Clocked, Model]:
    clocked, model = Clocked(), Model()
    both: Any = clocked
    return measuring.Ready(model, [(Prompt(0, (1,), 4), Prompt(1, (1,), 4))], both, both), clocked, model


def test_the_harness_and_the_bare_loop_take_turns_while_the_sampler_rests() -> None:
    made, clocked, model = ready()
    assert made.pass_once() == 7
    begun_s = time.monotonic()
    ratios = measuring._against_bare(made, 0.0)  # no time left: the fewest that tell a scatter
    assert time.monotonic() - begun_s >= 3 * 2 * 0.25
    assert (len(ratios), clocked.rests, model.synced) == (3, 3, 3)
    assert all(0 < ratio < 100 for ratio in ratios)


def test_a_window_of_the_path_opens_at_a_tick_and_counts_what_came_in_it() -> None:
    made, clocked, model = ready()
    clocked.ticks = [5, None]
    said: list[str] = []

    class Others:
        def tell(self, word: str) -> None:
            said.append(word)

        def answers(self, meanwhile: Any) -> dict[str, Any]:
            said.append("answers")
            assert meanwhile() == 7
            return {"zeus": {"joules": 1.0}}

    others: Any = Others()
    begun_ns = time.monotonic_ns()
    window = measuring._window(made, others, 0.02)
    assert said == ["begin", "answers", "end", "answers"]
    assert (window["begin_ns"], window["peers"], model.synced) == (5, {"zeus": {"joules": 1.0}}, 1)
    assert window["output_tokens"] % 7 == 0
    assert window["output_tokens"] >= 7
    assert begun_ns + 20_000_000 <= window["end_ns"] <= time.monotonic_ns()
    clocked.ticks = [None, None]
    assert measuring._window(made, others, 0.0)["begin_ns"] >= begun_ns
