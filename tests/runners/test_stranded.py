"""A finished result that no task comes back for is stored from its engine, once, and its container goes."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import docker
import pytest
from click.testing import CliRunner

from llem_airflow.cli.host import collect_garbage
from llem_airflow.cli.results import recover_results
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.gc import Leftover
from llem_airflow.runners.session_container import session_of, stop_session
from llem_airflow.runners.stranded import Recovery, Stranded
from tests import parts
from tests.runners.conftest import RunContainer, left_of
from tests.runners.engine_proxy import Call, EngineProxy
from tests.runners.programs import HASH, SPEC, attempt, in_container, program, see_through
from tests.runners.test_session import World

pytestmark = pytest.mark.docker

EXPERIMENT = f"tiny-{HASH[:8]}"
SAYS_SO = "print('said', os.environ.get('WORDS'), flush=True); result()"


class KilledError(Exception):
    """What ends a worker before it has stored anything."""


def killed(_collected: Any) -> None:
    raise KilledError


def left(name: str) -> Leftover:
    return Leftover("container", name, "", "exited", 0.0)


@pytest.fixture
def root(tmp_path: Path) -> ResultsRoot:
    return ResultsRoot(tmp_path / "results")


@pytest.fixture
def finished(run_container: RunContainer, this_attempt: Attempt) -> Leftover:
    """A container with a result, whose worker was killed."""
    with pytest.raises(KilledError):
        run_container(SAYS_SO, store=killed, private_environment={"WORDS": "hidden-9f8e7d6c5b4a"})
    return left(this_attempt.container_name)


def test_a_finished_result_is_stored_and_its_container_goes(
    docker_api: docker.APIClient, this_attempt: Attempt, finished: Leftover, root: ResultsRoot
) -> None:
    run = root.run(SPEC.study, this_attempt.run_id)
    run.write_plan("", {"order": [], "hosts": ["gpu1", "gpu2"]}, {})
    (seen,) = Recovery(docker_api, root, "gpu2", store=False).results([finished])
    assert seen == Stranded(finished.name, f"programs/{this_attempt.run_id} {EXPERIMENT} cycle 1")
    (stored,) = Recovery(docker_api, root, "gpu2").results([finished])
    ref = run.cycle(EXPERIMENT, 1)
    assert ref is not None
    assert stored.stored == ref.folder.url
    assert ref.result().experiment_hash == HASH
    said = ref.provenance()
    for name in ("dag_id", "run_id", "task_id", "map_index", "try_number"):
        assert said[name] == getattr(this_attempt, name)
    assert (said["host_connection"], said["adopted"], said["start_kind"]) == ("gpu2", True, "fresh")
    assert said["host"]["engine_id"] == docker_api.info()["ID"]
    assert ref.folder.read("config.json").decode() == SPEC.dumps()
    assert ref.folder.read("container.log").split() == [b"said", b"[redacted]"]
    assert left_of(docker_api, this_attempt) == []
    assert list(Recovery(docker_api, root).results([finished])) == []


def test_one_that_cannot_be_stored_stays_with_its_container(
    docker_api: docker.APIClient, this_attempt: Attempt, finished: Leftover, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (one,) = Recovery(docker_api, ResultsRoot(tmp_path / "file")).results([finished])
    assert "Not a directory" in one.why_not
    assert this_attempt.container_name in str(left_of(docker_api, this_attempt))
    assert [
        each.why_not for each in Recovery(docker_api, ResultsRoot(tmp_path / "good")).results([finished])
    ] == [""]


def test_one_that_a_proxy_does_not_bring_out_stays_with_its_container(
    docker_api: docker.APIClient, this_attempt: Attempt, finished: Leftover, root: ResultsRoot, tmp_path: Path
) -> None:
    def allowed(call: Call) -> bool:
        return not call.path.endswith("/archive")

    with (
        EngineProxy(tmp_path / "proxy", parts.ENGINE_SOCKET, allowed=allowed) as proxy,
        docker.APIClient(base_url=proxy.url, version="auto") as api,
    ):
        (one,) = Recovery(api, root).results([finished])
    assert one.name == f"{EXPERIMENT} cycle 1"
    assert one.why_not.startswith("the engine refused to bring its files out: 403 ")
    assert len(list(Recovery(docker_api, root).results([finished]))) == 1


def test_a_result_that_the_store_has_is_not_stored_again(
    docker_api: docker.APIClient, this_attempt: Attempt, finished: Leftover, root: ResultsRoot, tmp_path: Path
) -> None:
    collected = tmp_path / "collected"
    run = root.run(SPEC.study, this_attempt.run_id)
    run.commit_cycle(EXPERIMENT, 1, collected, {"try_number": 2})
    assert list(Recovery(docker_api, root).results([finished])) == []
    assert [ref.provenance()["try_number"] for ref in run.cycles(repeats=True)] == [2]
    assert left_of(docker_api, this_attempt) == []


def test_nothing_that_an_attempt_wrote_takes_the_place_of_what_it_was_told(
    docker_api: docker.APIClient, run_container: RunContainer, this_attempt: Attempt, root: ResultsRoot
) -> None:
    forged = f"open(out + '/{HASH}_config.json', 'w').write('forged')"
    with pytest.raises(KilledError):
        run_container(f"{forged}\nos.symlink('/etc/passwd', out + '/link')\nresult()", store=killed)
    assert len(list(Recovery(docker_api, root).results([left(this_attempt.container_name)]))) == 1
    ref = root.run(SPEC.study, this_attempt.run_id).cycle(EXPERIMENT, 1)
    assert ref is not None
    assert ref.folder.read("config.json").decode() == SPEC.dumps()
    assert not ref.folder.exists("link")


def test_the_commands_tell_what_they_find_and_do(
    docker_api: docker.APIClient,
    python_image: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "no-airflow"))
    for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
        monkeypatch.delenv(name)
    who = replace(attempt(), installation=f"tests-{uuid.uuid4().hex[:8]}")
    settings, bundle = ContainerSettings(python_image), program(tmp_path, "result()")
    with pytest.raises(KilledError):
        in_container(docker_api, who, settings, tmp_path / "out", bundle, store=killed)
    # The engine's clock is known to a second or so: what was made just now may look as if it were to come.
    monkeypatch.setattr("llem_airflow.runners.gc.engine_clock_offset_s", lambda _: -30.0)
    mine = ["--host", parts.ENGINE_URL, "--installation", who.installation, "--older-than", "0"]
    one = f"{parts.ENGINE_URL}: programs/{who.run_id} {EXPERIMENT} cycle 1: "
    unsure = "Airflow cannot be asked who is alive (no Airflow is set up here): age alone decides.\n"

    def run(command: click.Command, *words: str) -> tuple[int, str]:
        ended = CliRunner().invoke(command, [*words, *mine], standalone_mode=False)
        assert ended.exception is None
        return ended.return_value, ended.stdout

    there = "--results-root", str(tmp_path / "results")
    holds = (
        f"{parts.ENGINE_URL}: {who.container_name} holds a result and is not touched: {EXPERIMENT} cycle 1, "
    )
    for words in ((), ("--yes",), ("--yes", "--force")):
        said = run(collect_garbage, *there, *words)[1]
        assert holds in said
        assert (
            f"`llem-airflow results recover --engines` stores it, and --with-result {who.container_name} "
            in said
        )
        assert said.endswith("Nothing of ours is older than 0 h and without an owner.\n")
    assert json.loads(run(collect_garbage, *there, "--json")[1]) == []
    lies = f"{one}lies in container {who.container_name}\n"
    assert run(recover_results, *there, "--dry-run") == (
        0,
        f"{lies}{unsure}On engines: 1 result would be stored.\n",
    )
    code, said = run(recover_results, "--to", str(bundle))
    assert said.startswith(f"{one}stays in container {who.container_name}: ")
    assert "Not a directory" in said
    assert (code, said.endswith(f"{unsure}On engines: 0 results stored, 1 left.\n")) == (1, True)
    code, said = run(recover_results, *there)
    (ref,) = ResultsRoot(tmp_path / "results").run(SPEC.study, who.run_id).cycles()
    assert (code, said) == (
        0,
        f"{one}stored in {ref.folder.url}\n{unsure}On engines: 1 result stored, 0 left.\n",
    )
    assert left_of(docker_api, who) == []
    assert run(recover_results, *there)[1] == f"{unsure}On engines: 0 results stored, 0 left.\n"
    again = replace(attempt(), installation=who.installation)
    with pytest.raises(KilledError):
        in_container(docker_api, again, settings, tmp_path / "again", bundle, store=killed)
    assert run(collect_garbage, *there, "--yes", "--with-result", again.container_name)[1].endswith(
        "Removed 2.\n"
    )
    assert left_of(docker_api, again) == []


def test_results_in_a_session_s_container_are_stored_and_it_stays_for_gc(
    docker_api: docker.APIClient, python_image: str, this_attempt: Attempt, tmp_path: Path, root: ResultsRoot
) -> None:
    world = World(docker_api, python_image, this_attempt, tmp_path)
    try:
        world.start()
        with pytest.raises(KilledError):
            see_through(world.runner("one", "print('hello'); result()"), tmp_path, store=killed)
        (stored,) = Recovery(docker_api, root).results([left(world.name)])
        assert not stored.why_not
        ref = root.run(SPEC.study, this_attempt.run_id).cycle(EXPERIMENT, 1)
        assert ref is not None
        said = ref.provenance()
        told = {name: said[name] for name in ("start_kind", "session", "position_in_session")}
        assert told == {"start_kind": "exec", "session": "warm-1", "position_in_session": 0}
        assert ref.folder.read("container.log") == b"hello\n"
        assert list(Recovery(docker_api, root).results([left(world.name)])) == []
        assert left_of(docker_api, session_of(this_attempt, "warm-1"))
    finally:
        stop_session(docker_api, this_attempt, "warm-1")
