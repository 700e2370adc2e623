"""The sampler on the host: its series counts, the container's checks it; where it cannot, that is said."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from llem_airflow.analysis.checks import compared
from llem_airflow.analysis.energy import window_energy
from llem_airflow.analysis.series import columns
from llem_airflow.measurement.sampler import start_sampler
from llem_airflow.protocol.files import config_name, result_name
from llem_airflow.protocol.result import CycleResult, Window
from llem_airflow.protocol.spec import MeterSpec
from llem_airflow.results import CycleRef, ResultsRoot
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.host_sampler import HostSampler
from tests.measurement.running import HASH, spec_of
from tests.standins.gpus import doubt_ratio, result_of, use_script

GPU = "GPU-5741d000-0000-0000-0000-000000000000"
NVML = MeterSpec(kind="nvml", gpus=(GPU,))
SPEC = spec_of("scripted", {}, power="nvml")


def attempt_beside(folder: Path, *, host_after_s: float = 0.0) -> None:
    """What a container leaves, sampled inside, in ``folder``, while a sampler of the worker runs beside it."""
    inside = start_sampler(NVML, folder / "power.csv")
    if host_after_s:
        time.sleep(host_after_s)
    with HostSampler(NVML, folder, build_bundle()) as host:
        time.sleep(0.0 if host_after_s else 1.2)
        begin_ns = inside.wait_for_tick() or time.monotonic_ns()
        time.sleep(1.0)
        end_ns = time.monotonic_ns()
        window = Window(begin_ns, end_ns, 1, 1, 1, 1)
        meter = inside.stop()
        result = CycleResult(**{**vars(result_of(window, meter)), "experiment_hash": HASH})
        (folder / result_name(HASH)).write_text(result.dumps())
        (folder / config_name(HASH)).write_text(SPEC.dumps())
        assert host.finish(SPEC) is not bool(host_after_s)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> CycleRef:
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        use_script(patch, folder, "gpu.0.power = ramp 200 400 20")
        attempt_beside(folder)
    return stored(folder, folder / "results")


def stored(folder: Path, root: Path) -> CycleRef:
    run = ResultsRoot(str(root)).run("s", "manual__1")
    run.commit_cycle("an-experiment-01234567", 1, folder, {})
    ref = run.cycle("an-experiment-01234567", 1)
    assert ref is not None
    return ref


def test_the_hosts_series_counts_and_the_containers_is_kept_as_its_check(both: CycleRef) -> None:
    result, check = both.result(), both.check()
    assert check is not None
    meter, power = check
    assert result.meter.note.startswith("Sampled on the host, beside the container.")
    assert "beside the container" not in meter.note
    ours = window_energy(columns(both.power()), result.meter, result.window)
    theirs = window_energy(columns(power), meter, result.window)
    assert ours.source == theirs.source == "counter"
    assert ours.energy_j == pytest.approx(theirs.energy_j, rel=doubt_ratio(ours) + doubt_ratio(theirs))
    assert compared(meter, power, result.window, ours) == ()


def test_two_samplers_that_disagree_are_flagged_and_neither_is_averaged(both: CycleRef) -> None:
    result, check = both.result(), both.check()
    assert check is not None
    meter, power = check
    ours = window_energy(columns(both.power()), result.meter, result.window)
    half = (result.window.t_end_mono_ns - result.window.t_begin_mono_ns) // 2
    shorter = Window(result.window.t_begin_mono_ns, result.window.t_begin_mono_ns + half, 1, 1, 1, 1)
    (flag,) = compared(meter, power, shorter, ours)
    assert (flag.code, flag.severity) == ("samplers_disagree", "warning")
    assert "off the one that counts" in flag.message


def test_what_both_say_of_their_uncertainty_explains_a_difference(both: CycleRef) -> None:
    result, check = both.result(), both.check()
    assert check is not None
    ours = window_energy(columns(both.power()), result.meter, result.window)
    assert ours.energy_j is not None
    off = replace(ours, energy_j=1.5 * ours.energy_j, uncertainty_j=0.6 * ours.energy_j)
    assert compared(*check, result.window, off) == ()
    assert len(compared(*check, result.window, replace(off, uncertainty_j=None))) == 1


def test_a_series_that_begins_after_the_window_only_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_script(monkeypatch, tmp_path, "gpu.0.power = const 300")
    attempt_beside(tmp_path, host_after_s=0.3)
    ref = stored(tmp_path, tmp_path / "results")
    assert "beside the container" not in ref.result().meter.note
    check = ref.check()
    assert check is not None
    assert "beside the container" in check[0].note


def test_a_worker_that_does_not_see_the_gpu_says_so_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_script(monkeypatch, tmp_path, "gpu.0.power = const 300")
    elsewhere = MeterSpec(kind="nvml", gpus=("GPU-on-another-host",))
    with pytest.raises(AttemptFailedError) as caught, HostSampler(elsewhere, tmp_path, build_bundle()):
        pass
    said = str(caught.value)
    assert "power.sampling: host needs a worker that sees the experiment's GPUs" in said
    assert "GPU-on-another-host was asked for but is not visible here" in said
    assert "use `power: {sampling: container}`, or a worker on the GPU's host" in said
