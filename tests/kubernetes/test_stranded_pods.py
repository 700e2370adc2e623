"""A finished result in a pod that no task comes back for is stored, or its pod stays and says why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from kubernetes.client import CoreV1Api

from llem_airflow.cli import main
from llem_airflow.operators import LLEMCollectGarbageOperator, maintenance
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.cluster_gc import leftovers_among, things_in
from llem_airflow.runners.gc import Leftover
from llem_airflow.runners.pod_spec import KEEPER
from llem_airflow.runners.stranded import Stranded
from llem_airflow.runners.stranded_pods import PodRecovery
from tests.chaos.world import wait_for
from tests.kubernetes.cluster import Fault, Object, StandInCluster
from tests.kubernetes.fixtures import RunnerOf
from tests.kubernetes.test_clusters import asked_here, connected
from tests.runners.programs import HASH, SPEC, see_through

__all__ = ["asked_here", "connected"]
EXPERIMENT = f"tiny-{HASH[:8]}"
PRIVATE = "hidden-9f8e7d6c5b4a"
SAYS_SO = "print('said', os.environ.get('WORDS'), flush=True); result()"


def left_in(api: CoreV1Api) -> list[Leftover]:
    return leftovers_among(
        things_in(api, "default"), alive=lambda _: False, older_than_s=0.0, installation=None, running="disowned"
    )  # fmt: skip


@pytest.fixture
def finished(api: CoreV1Api, runner: RunnerOf, this_attempt: Attempt, tmp_path: Path) -> str:
    """A pod with a result, whose worker was killed."""

    class KilledError(Exception):
        """What ends a worker before it has stored anything."""

    def killed(_: object) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        see_through(runner(SAYS_SO, private_environment={"WORDS": PRIVATE}), tmp_path, store=killed)
    (left,) = left_in(api)
    assert left.holds_result
    return this_attempt.container_name


@pytest.fixture
def root(tmp_path: Path) -> ResultsRoot:
    return ResultsRoot(tmp_path / "results")


def test_a_finished_result_is_stored_and_its_pod_goes(
    cluster: StandInCluster, api: CoreV1Api, finished: str, this_attempt: Attempt, root: ResultsRoot
) -> None:
    name = f"programs/{this_attempt.run_id} {EXPERIMENT} cycle 1"
    (seen,) = PodRecovery(api, "default", root, store=False).results(left_in(api))
    assert seen == Stranded(finished, name, kind="pod")
    (stored,) = PodRecovery(api, "default", root).results(left_in(api))
    ref = root.run(SPEC.study, this_attempt.run_id).cycle(EXPERIMENT, 1)
    assert ref is not None
    assert stored == Stranded(finished, name, stored=ref.folder.url, kind="pod")
    assert ref.result().experiment_hash == HASH
    said = ref.provenance()
    for each in ("dag_id", "run_id", "task_id", "map_index", "try_number"):
        assert said[each] == getattr(this_attempt, each)
    assert (said["runner"], said["adopted"], said["exit_code"]) == ("kubernetes", True, 0)
    assert said["host"] == {"name": "node-1", "namespace": "default", "pod": finished}
    assert ref.folder.read("config.json").decode() == SPEC.dumps()
    assert ref.folder.read("container.log").split() == [b"said", b"[redacted]"]
    wait_for(lambda: not cluster.names(), 60)


def test_one_that_cannot_be_stored_or_brought_out_stays_in_its_pod(
    cluster: StandInCluster, api: CoreV1Api, finished: str, root: ResultsRoot, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (one,) = PodRecovery(api, "default", ResultsRoot(tmp_path / "file")).results(left_in(api))
    assert "Not a directory" in one.why_not
    cluster.faults = [Fault("create", "pods/exec", status=403)]
    (one,) = PodRecovery(api, "default", root).results(left_in(api))
    assert one.why_not.startswith("its files could not be brought out: the command could not be started: ")
    assert finished in cluster.names("pods")


def test_one_whose_secrets_its_keeper_does_not_know_is_not_stored(
    cluster: StandInCluster, api: CoreV1Api, finished: str, root: ResultsRoot
) -> None:
    """Of a pod that an older version has made."""
    variable = {"name": "ANOTHER", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    cluster.change(finished, lambda pod: pod["spec"]["containers"][0]["env"].append(variable))
    (one,) = PodRecovery(api, "default", root).results(left_in(api))
    assert one.why_not == ("the values of ANOTHER cannot be kept out of the store, as it does not tell them")
    assert root.runs() == []


def test_a_pod_whose_keeper_has_ended_has_nothing_any_more(
    cluster: StandInCluster, api: CoreV1Api, finished: str, root: ResultsRoot
) -> None:
    def end(pod: Object) -> None:
        (keeper,) = [each for each in pod["status"]["containerStatuses"] if each["name"] == KEEPER]
        keeper["state"] = {"terminated": {"exitCode": 0}}

    cluster.change(finished, end)
    (left,) = left_in(api)
    assert left.goes()
    assert list(PodRecovery(api, "default", root).results([left])) == []


def test_the_commands_keep_a_result_and_say_how_to_store_it(
    cluster: StandInCluster,
    api: CoreV1Api,
    finished: str,
    this_attempt: Attempt,
    asked_here: None,
    root: ResultsRoot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whether this process has a database depends on the tests before.
    silent = {"installation": this_attempt.installation, "alive": None, "why": "no such table"}
    monkeypatch.setattr(maintenance, "answer", lambda _labels: silent)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(
            main, [*arguments, "--cluster", "lab", "--older-than", "0"], env={"COLUMNS": "200"}
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    listed = run("gc", "--yes")
    assert f"lab: {finished} may hold a result and is not touched: tiny-a1b2c3d4 cycle 1, dag " in listed
    assert "`llem-airflow results recover --cluster lab` stores it, and --with-result llem-" in listed
    assert finished in run("gc", "--yes", "--force")
    assert f"lab: pod {finished}  ended, " in run("gc", "--with-result", finished)
    assert listed.endswith("Removed 0.\n") or "Nothing of ours is older" in listed
    recover = ("results", "recover", "--results-root", root.url)
    named = f"lab: programs/{this_attempt.run_id} {EXPERIMENT} cycle 1: "
    would = run(*recover, "--dry-run")
    assert f"{named}lies in pod {finished}\n" in would
    assert "Airflow cannot be asked who is alive (no such table)" in would
    assert would.endswith("On clusters: 1 result would be stored.\n")
    done = run(*recover)
    ref = root.run(SPEC.study, this_attempt.run_id).cycle(EXPERIMENT, 1)
    assert ref is not None
    assert f"{named}stored in {ref.folder.url}\n" in done
    assert done.endswith("On clusters: 1 result stored, 0 left.\n")
    assert run(*recover).endswith("On clusters: 0 results stored, 0 left.\n")
    assert PRIVATE not in listed + would + done


def test_the_maintenance_task_stores_it_before_it_removes_the_pod(
    cluster: StandInCluster,
    finished: str,
    this_attempt: Attempt,
    connected: None,
    root: ResultsRoot,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def states_of(*, run_ids: list[str], task_ids: list[str], **_: Any) -> dict[str, dict[str, str]]:
        return {run_ids[0]: {task_ids[0]: "failed"}}

    context: Any = {"ti": SimpleNamespace(get_task_states=states_of)}
    task = LLEMCollectGarbageOperator(task_id="gc", cluster="lab")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "file"))
    assert task.execute(context) == 0
    assert finished in cluster.names("pods")
    monkeypatch.setenv("LLEM_RESULTS_ROOT", root.url)
    task.execute(context)
    assert root.run(SPEC.study, this_attempt.run_id).cycle(EXPERIMENT, 1) is not None
    wait_for(lambda: not cluster.names(), 60)
