"""Containers on a real engine, with small programs in the bundle's place."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import pytest
from docker.types import Mount

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Collected
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.docker import ContainerPlace, DockerRunner
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.gc import find_leftovers
from tests.runners.conftest import RunContainer, left_of
from tests.runners.programs import HASH, RESULT, SPEC, attempt, in_container, program, within_reach

pytestmark = pytest.mark.docker

FOREVER = """
signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))
print('up', flush=True)
while True: time.sleep(0.1)
"""
CANARY = "hf_canary1234567890"


def test_success_brings_files_and_log_out_and_leaves_nothing(run_container: RunContainer) -> None:
    lines: list[str] = []
    collected = run_container(
        "print('hello'); open(out + '/power.csv', 'w').write('x'); result()", lines=lines
    )
    assert lines == ["hello"]
    assert collected.log.read_text() == "hello\n"
    names = {path.name for path in collected.folder.iterdir()}
    assert names == {f"{HASH}_result.json", "power.csv", "container.log"}
    assert (collected.exit_code, collected.adopted, collected.gpus) == (0, False, ())
    assert collected.image_digest is not None
    assert collected.host["cpus"] > 0


def test_a_log_that_came_whole_is_not_read_a_second_time(
    run_container: RunContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine takes 20 s to look through 200 MB; whether something is missing the last line's time tells."""
    asked: list[tuple[Any, Any]] = []
    logs = docker.APIClient.logs

    def recorded(api: docker.APIClient, container: str, **asking: Any) -> Any:
        asked.append((asking.get("follow"), asking.get("tail")))
        return logs(api, container, **asking)

    monkeypatch.setattr(docker.APIClient, "logs", recorded)
    lines: list[str] = []
    run_container("[print(n) for n in range(1000)]; time.sleep(0.5); result()", lines=lines)
    assert lines == [str(n) for n in range(1000)]
    assert asked == [(True, None), (None, 1)]


def test_a_valid_result_is_success_whatever_the_exit_code(run_container: RunContainer) -> None:
    assert run_container("result(); sys.exit(7)").exit_code == 7


def test_a_result_that_is_not_valid_is_a_failure(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="not JSON"):
        run_container("result('{')")


def test_a_result_of_another_cycle_is_a_failure(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="cycle 2; expected"):
        run_container("result(RESULT.replace('\"cycle\": 1', '\"cycle\": 2'))")


def test_the_program_sees_its_spec_and_its_bundle(run_container: RunContainer) -> None:
    lines: list[str] = []
    run_container(
        "print(json.load(open(os.environ['LLEM_CONFIG_PATH']))['slug'], sys.argv[0], os.getuid()); result()",
        lines=lines,
    )
    assert lines == ["tiny /run/llem/llem.pyz 65532"]


def test_an_exit_without_result_says_code_and_last_lines(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError) as caught:
        run_container("print('the last words'); sys.exit(3)")
    assert caught.value.exit_code == 3
    assert "exit code 3" in str(caught.value)
    assert "the last words" in str(caught.value)
    assert caught.value.failure.category == "unknown"


def test_the_attempts_own_error_is_the_headline(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="failed in phase 'load': ValueError: bad batch") as caught:
        run_container("error(message='bad batch', category='bad_parameter'); sys.exit(1)")
    assert caught.value.failure.category == "config"
    assert caught.value.failure.retryable is False


def test_running_out_of_memory_is_told_and_kept_evidence(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match=r"ran out of memory \(limit: 64m; ") as caught:
        run_container(
            "open(out + '/power.csv', 'w').write('seen')\n"
            "open(out + '/events.jsonl', 'w').write(json.dumps({'phase': 'load'}) + chr(10) + '{\"pha')\n"
            "x = bytearray(200_000_000)",
            mem_limit="64m",
        )
    assert caught.value.failure.category == "out_of_memory_host"
    assert (caught.value.folder / "power.csv").read_text() == "seen"
    assert json.loads((caught.value.folder / "inspect.json").read_text())["State"]["OOMKilled"] is True
    error = json.loads((caught.value.folder / "a1b2c3d4e5f60718_error.json").read_text())
    assert (error["type"], error["phase"], error["category"]) == (
        "EndedOutOfMemoryHost",
        "load",
        "out_of_memory_host",
    )
    assert caught.value.failure.hint in error["message"]


def test_a_crash_by_signal_is_a_crash(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError) as caught:
        run_container("os.kill(os.getpid(), signal.SIGSEGV)")
    assert (caught.value.failure.category, caught.value.exit_code) == ("crash", 139)


def test_wall_clock_ends_the_container_and_brings_out_what_it_wrote(run_container: RunContainer) -> None:
    def run(limit_s: float, lines: list[str]) -> AttemptFailedError:
        with pytest.raises(AttemptFailedError, match=f"wall clock limit of {limit_s:.0f} s") as caught:
            run_container(
                "open(out + '/power.csv', 'w').write('seen')\n" + FOREVER, wall_clock_s=limit_s, lines=lines
            )
        return caught.value

    ended = within_reach(run)
    assert ended.failure.category == "timeout_wall_clock"
    assert (ended.folder / "power.csv").read_text() == "seen"


def test_silence_ends_the_container(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="printed nothing for its silence limit of 1 s") as caught:
        run_container(FOREVER, silence_s=1.0)
    assert caught.value.failure.retryable is True


def test_output_keeps_the_silence_watchdog_quiet(run_container: RunContainer) -> None:
    for unit_s in (0.25, 2.0):  # a busy host may take long to start Python, which is silence too
        text = f"for i in range(8): print(i, flush=True); time.sleep({unit_s})\nresult()"
        with contextlib.suppress(AttemptFailedError):
            run_container(text, silence_s=6 * unit_s)
            return
    pytest.fail("ended for its silence, although it printed")


def test_a_program_that_ignores_sigterm_is_killed(run_container: RunContainer) -> None:
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True); time.sleep(600)"

    def run(limit_s: float, lines: list[str]) -> AttemptFailedError:
        with pytest.raises(AttemptFailedError) as caught:
            run_container(ignoring, wall_clock_s=limit_s, stop_grace_s=1.0, lines=lines)
        return caught.value

    ended = within_reach(run)
    assert ended.exit_code == 137
    assert ended.failure.category == "timeout_wall_clock"


def test_a_result_that_was_written_before_the_limit_counts(run_container: RunContainer) -> None:
    def run(limit_s: float, lines: list[str]) -> Collected | None:
        try:
            return run_container("result()\n" + FOREVER, wall_clock_s=limit_s, lines=lines)
        except AttemptFailedError:
            if "up" in lines:  # it had written its result
                raise
            return None

    collected = within_reach(run)
    assert collected is not None
    assert collected.exit_code == 143


def test_a_progress_bar_is_one_line(run_container: RunContainer) -> None:
    lines: list[str] = []
    run_container(
        "for i in range(1000): sys.stderr.write(f'\\r{i}/1000')\nprint('', file=sys.stderr)\nresult()",
        lines=lines,
    )
    assert lines == ["999/1000"]


def test_a_line_without_end_is_cut(run_container: RunContainer) -> None:
    lines: list[str] = []
    collected = run_container("print('x' * 100_000)\nresult()", lines=lines)
    assert sum(len(line) for line in lines) == 100_000
    assert max(len(line) for line in lines) <= 8192
    assert collected.log.stat().st_size < 101_000


def test_a_flood_is_complete_for_the_callback_and_bounded_in_the_file(run_container: RunContainer) -> None:
    lines: list[str] = []
    collected = run_container(
        "for i in range(20_000): print('line', i)\nresult()", lines=lines, log_bytes=10_000
    )
    assert lines == [f"line {i}" for i in range(20_000)]
    assert collected.log.stat().st_size < 10_200
    assert "the log was cut here" in collected.log.read_text()


def test_no_network_no_capabilities_no_writing_outside_tmp(run_container: RunContainer) -> None:
    lines: list[str] = []
    run_container(
        "import socket\n"
        "status = open('/proc/self/status').read()\n"
        "print([l for l in status.splitlines() if l.startswith(('CapEff', 'NoNewPrivs'))])\n"
        "print(os.listdir('/sys/class/net'))\n"
        "for path in ('/x', '/run/llem/x', '/etc/x'):\n"
        "    try: open(path, 'w'); print('WROTE', path)\n"
        "    except OSError as e: print('refused', path)\n"
        "open('/tmp/x', 'w'); print(os.environ['HOME']); result()",
        lines=lines,
    )
    assert lines == [
        "['CapEff:\\t0000000000000000', 'NoNewPrivs:\\t1']",
        "['lo']",
        "refused /x",
        "refused /run/llem/x",
        "refused /etc/x",
        "/tmp",
    ]


@pytest.mark.parametrize("user", [None, "0", "root", "1000:1000"])
def test_any_user_can_write_its_results(run_container: RunContainer, user: str | None) -> None:
    assert run_container("result()", user=user).exit_code == 0


def test_a_cache_in_a_new_volume_can_be_written_by_any_user(
    run_container: RunContainer, docker_api: docker.APIClient
) -> None:
    volume = "llem-test-hub-cache"
    docker_api.create_volume(volume)
    try:
        run_container(
            "open('/hub/cache/file', 'w').write('x'); result()",
            mounts=(Mount("/hub", volume, type="volume"),),
            caches=(PurePosixPath("/hub/cache"),),
        )
        run_container(
            "print(open('/hub/cache/file').read()); result()",
            mounts=(Mount("/hub", volume, type="volume"),),
            caches=(PurePosixPath("/hub/cache"),),
        )
    finally:
        docker_api.remove_volume(volume, force=True)


def test_what_is_not_a_plain_file_in_out_is_not_taken(run_container: RunContainer) -> None:
    collected = run_container(
        "os.symlink('/etc/passwd', out + '/link'); os.mkdir(out + '/folder'); open(out + '/folder/f', 'w')\n"
        "os.mkfifo(out + '/pipe'); os.link(out + '/folder/f', out + '/hard'); result()"
    )
    assert "link" not in {path.name for path in collected.folder.iterdir()}
    assert all(path.is_file() and not path.is_symlink() for path in collected.folder.iterdir())


def test_a_missing_image_is_said_with_what_to_do(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError) as caught:
        run_container("result()", image="127.0.0.1:9/llem/nosuch:1")
    assert caught.value.failure.category == "image_pull"
    assert "127.0.0.1:9/llem/nosuch:1 cannot be pulled" in str(caught.value)


def test_a_missing_image_that_may_not_be_pulled_is_said(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="No such image") as caught:
        run_container("result()", image="llem/nosuch:1", pull="never")
    assert (caught.value.failure.category, caught.value.failure.retryable) == ("image_pull", False)


def test_an_image_without_python_is_said(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="exit code 127") as caught:
        run_container("result()", entrypoint=("nosuchpython",))
    assert caught.value.failure.category == "image_config"


def test_a_user_that_the_image_does_not_know_is_said(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="unable to find user nosuch") as caught:
        run_container("result()", user="nosuch")
    assert caught.value.failure.category == "image_config"


def test_a_mount_that_is_not_there_is_said(run_container: RunContainer) -> None:
    missing = docker.types.Mount("/models", "/nonexistent/models", type="bind")
    with pytest.raises(AttemptFailedError, match="engine's\\* host") as caught:
        run_container("result()", mounts=(missing,))
    assert caught.value.failure.category == "config"


def test_a_network_that_is_not_there_is_said(run_container: RunContainer) -> None:
    with pytest.raises(AttemptFailedError, match="nosuch-network"):
        run_container("result()", network_mode="nosuch-network")


def test_secrets_reach_the_program_and_nothing_else(
    run_container: RunContainer, docker_api: docker.APIClient, this_attempt: Attempt
) -> None:
    lines: list[str] = []
    seen: dict[str, Any] = {}

    def look() -> None:
        listed = docker_api.containers(all=True, filters={"name": this_attempt.container_name})
        seen.update(docker_api.inspect_container(listed[0]["Id"]) if listed else {})

    class Lines(list[str]):
        def append(self, line: str) -> None:
            look()
            super().append(line)

    lines = Lines()
    with pytest.raises(AttemptFailedError) as caught:
        run_container(
            "print('token', os.environ['HF_TOKEN'], flush=True)\n"
            "open(out + '/environment.json', 'w').write(os.environ['HF_TOKEN'])\n"
            "error(message='bad token ' + os.environ['HF_TOKEN']); sys.exit(1)",
            lines=lines,
            private_environment={"HF_TOKEN": CANARY},
        )
    assert lines == ["token [redacted]"]
    assert CANARY not in str(caught.value)
    for path in caught.value.folder.rglob("*"):
        assert CANARY not in path.read_text(), path
    assert CANARY not in json.dumps(seen["Config"]["Labels"])
    assert CANARY not in json.dumps([seen["Path"], seen["Args"], seen["HostConfig"], seen["Name"]])
    assert f"HF_TOKEN={CANARY}" in seen["Config"]["Env"]


def test_settings_do_not_show_secrets() -> None:
    assert CANARY not in repr(ContainerSettings("image", private_environment={"HF_TOKEN": CANARY}))


@pytest.fixture
def running(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path, this_attempt: Attempt
) -> Iterator[dict[str, Any]]:
    """An attempt whose container runs, in a thread of its own; ends with a result when /tmp/go is there."""
    text = """
print('begin', flush=True)
for _ in range(300):
    time.sleep(0.1)
    if os.path.exists('/tmp/go'): break
print('end'); result()
"""
    state: dict[str, Any] = {"lines": []}
    up = threading.Event()

    def on_line(line: str) -> None:
        state["lines"].append(line)
        up.set()

    def run() -> None:
        try:
            state["collected"] = in_container(
                docker_api,
                this_attempt,
                ContainerSettings(python_image),
                tmp_path / "first",
                program(tmp_path, text),
                on_line=on_line,
            )
        except AttemptFailedError as error:
            state["error"] = error

    thread = state["thread"] = threading.Thread(target=run)
    thread.start()
    assert up.wait(120)
    yield state
    thread.join(60)


def let_go(api: docker.APIClient, who: Attempt) -> None:
    job = api.exec_create(who.container_name, ["python3", "-c", "open('/tmp/go', 'w')"], user="65532")
    api.exec_start(job["Id"])


def test_a_later_try_takes_the_running_container_over(
    docker_api: docker.APIClient,
    python_image: str,
    tmp_path: Path,
    this_attempt: Attempt,
    running: dict[str, Any],
    clean: None,
) -> None:
    second = attempt(2, this_attempt)
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "begin":
            runner_of(docker_api, this_attempt, tmp_path).kill()  # dies late, and must not hurt its successor
            let_go(docker_api, second)

    with docker.APIClient() as api:
        collected = in_container(
            api,
            second,
            ContainerSettings(python_image),
            tmp_path / "second",
            program(tmp_path, "sys.exit('a second program must not be started')"),
            on_line=on_line,
        )
    assert collected.adopted
    assert lines == [f"Taking over container {this_attempt.container_name} of an earlier try", "begin", "end"]
    running["thread"].join(30)
    assert "a later try has taken over" in str(running["error"])
    assert running["error"].failure.retryable is False


def test_kill_removes_container_and_volume(
    docker_api: docker.APIClient,
    this_attempt: Attempt,
    running: dict[str, Any],
    tmp_path: Path,
    clean: None,
) -> None:
    with docker.APIClient() as api:
        runner_of(api, this_attempt, tmp_path).kill()
        assert left_of(api, this_attempt) == []
    running["thread"].join(30)
    assert running["error"].failure.category == "cancelled", str(running["error"])
    assert "removed from outside" in str(running["error"])


class WorkerDiedError(BaseException):
    """Stands for a worker that vanishes: nothing after it runs."""


def runner_of(api: docker.APIClient, who: Attempt, folder: Path, image: str = "any") -> DockerRunner:
    """The runner of a try in this process."""
    lines: list[str] = []
    return DockerRunner(api, who, ContainerSettings(image), folder=folder / "of", on_line=lines.append)


def leave_behind(api: docker.APIClient, image: str, folder: Path, who: Attempt, text: str) -> str:
    """A container as a worker that was killed -9 leaves it: created, filled, started, nobody's."""
    runner = DockerRunner(
        api,
        who,
        ContainerSettings(image),
        folder=folder / "left",
        on_line=lambda _: None,
        bundle=program(folder, text),
    )
    place = runner.place(SPEC)
    assert isinstance(place, ContainerPlace)
    runner._start(place, SPEC)
    runner._sink.close()
    return place.container


def test_what_an_earlier_try_finished_is_collected_not_run_again(
    run_container: RunContainer,
    docker_api: docker.APIClient,
    python_image: str,
    tmp_path: Path,
    this_attempt: Attempt,
) -> None:
    left = leave_behind(docker_api, python_image, tmp_path, this_attempt, "print('measured'); result()")
    docker_api.wait(left)
    lines: list[str] = []
    collected = run_container("sys.exit('run again')", who=attempt(2, this_attempt), lines=lines)
    assert collected.adopted
    assert lines[-1] == "measured"
    assert (collected.folder / f"{HASH}_result.json").read_text() == RESULT


def test_a_result_that_could_not_be_stored_is_collected_by_the_next_try(
    docker_api: docker.APIClient, python_image: str, this_attempt: Attempt, tmp_path: Path
) -> None:
    bundle = program(tmp_path, "print('measured', flush=True); result()")
    settings = ContainerSettings(image=python_image)

    def full_disk(_collected: object) -> None:
        raise OSError(28, "No space left on device")

    def try_to_store(who: Attempt, store: Callable[[object], None]) -> list[str]:
        lines: list[str] = []
        in_container(
            docker_api,
            who,
            settings,
            tmp_path / who.container_name,
            bundle,
            on_line=lines.append,
            store=store,
        )
        return lines

    with pytest.raises(OSError, match="No space left"):
        try_to_store(this_attempt, full_disk)
    assert left_of(docker_api, this_attempt)
    stored: list[object] = []
    lines = try_to_store(replace(this_attempt, try_number=2), stored.append)
    assert len(stored) == 1
    assert any("Taking over" in line for line in lines)
    assert left_of(docker_api, this_attempt) == []


def test_what_the_tries_of_a_stored_result_left_is_cleared(
    docker_api: docker.APIClient, python_image: str, this_attempt: Attempt, tmp_path: Path
) -> None:
    leave_behind(docker_api, python_image, tmp_path, this_attempt, "result()")
    assert left_of(docker_api, this_attempt)
    runner_of(docker_api, replace(this_attempt, try_number=2), tmp_path).release()
    assert left_of(docker_api, this_attempt) == []


def test_what_an_earlier_try_failed_at_is_kept_and_run_again(
    run_container: RunContainer,
    docker_api: docker.APIClient,
    python_image: str,
    tmp_path: Path,
    this_attempt: Attempt,
) -> None:
    left = leave_behind(
        docker_api, python_image, tmp_path, this_attempt, "print('lost words'); error(); sys.exit(1)"
    )
    docker_api.wait(left)
    lines: list[str] = []
    collected = run_container("result()", who=attempt(2, this_attempt), lines=lines)
    assert not collected.adopted
    assert "  | lost words" in lines
    assert (collected.folder / f"earlier-{this_attempt.container_name}" / f"{HASH}_error.json").is_file()


def test_a_container_that_was_never_started_is_replaced(
    run_container: RunContainer, docker_api: docker.APIClient, python_image: str, this_attempt: Attempt
) -> None:
    docker_api.create_volume(this_attempt.volume_name, labels=this_attempt.labels)
    docker_api.create_container(
        python_image, "true", name=this_attempt.container_name, labels=this_attempt.labels
    )
    assert run_container("result()", who=attempt(2, this_attempt)).adopted is False


def test_the_age_of_an_adopted_container_counts(
    run_container: RunContainer,
    docker_api: docker.APIClient,
    python_image: str,
    tmp_path: Path,
    this_attempt: Attempt,
) -> None:
    leave_behind(docker_api, python_image, tmp_path, this_attempt, FOREVER)
    time.sleep(1.2)
    with pytest.raises(AttemptFailedError, match="wall clock"):
        run_container("result()", who=attempt(2, this_attempt), wall_clock_s=1.0)


def test_an_interrupt_leaves_nothing(
    docker_api: docker.APIClient, python_image: str, tmp_path: Path, this_attempt: Attempt, clean: None
) -> None:
    def interrupt(line: str) -> None:
        raise WorkerDiedError

    with pytest.raises(WorkerDiedError):
        in_container(
            docker_api,
            this_attempt,
            ContainerSettings(python_image),
            tmp_path / "out",
            program(tmp_path, FOREVER),
            on_line=interrupt,
        )
    assert left_of(docker_api, this_attempt) == []


def test_two_installations_with_the_same_names_do_not_share(this_attempt: Attempt) -> None:
    assert replace(this_attempt, installation="other").key != this_attempt.key


def test_hostile_names_stay_in_their_labels() -> None:
    hostile = Attempt("d\n=x", "../../r", "t;rm -rf /", -1, "e" * 500, HASH, 1, 1, "\x1b[31m")
    assert hostile.container_name.replace("-", "").isalnum()
    assert all(len(value) <= 250 and value.isprintable() for value in hostile.labels.values())


def test_a_failed_container_is_kept_when_asked_and_the_next_try_goes_on_beside_it(
    run_container: RunContainer, docker_api: docker.APIClient, this_attempt: Attempt
) -> None:
    kept = f"{this_attempt.container_name}-kept"
    try:
        with pytest.raises(AttemptFailedError) as caught:
            run_container("print('what was wrong'); sys.exit(3)", keep_failed=True)
        assert f"the container is kept with its volume: `docker logs {kept}`" in str(caught.value)
        state = docker_api.inspect_container(kept)["State"]
        assert (state["Running"], state["ExitCode"]) == (False, 3)
        assert b"what was wrong" in docker_api.logs(kept)
        docker_api.inspect_volume(this_attempt.volume_name)
        young = find_leftovers(docker_api, alive=lambda _: False, older_than_s=3600.0)
        assert not [one for one in young if this_attempt.key in one.name]
        lines: list[str] = []
        assert (
            run_container("result()", who=attempt(2, this_attempt), keep_failed=True, lines=lines).exit_code
            == 0
        )
        assert lines == []  # neither taken over nor removed
        old = find_leftovers(docker_api, alive=lambda _: True, older_than_s=-60.0)
        assert [one.name for one in old if one.name.startswith(kept)] == [kept]
    finally:
        docker_api.remove_container(kept, force=True)
        docker_api.remove_volume(this_attempt.volume_name)


def test_a_container_that_a_limit_ends_is_stopped_before_it_is_kept(
    run_container: RunContainer, docker_api: docker.APIClient, this_attempt: Attempt
) -> None:
    kept = f"{this_attempt.container_name}-kept"
    try:
        with pytest.raises(AttemptFailedError, match="wall clock limit of 1 s"):
            run_container("time.sleep(60)", keep_failed=True, wall_clock_s=1.0, stop_grace_s=1.0)
        assert docker_api.inspect_container(kept)["State"]["Running"] is False
    finally:
        docker_api.remove_container(kept, force=True)
        docker_api.remove_volume(this_attempt.volume_name)


def test_without_being_asked_nothing_is_kept_and_a_privileged_container_says_so(
    run_container: RunContainer,
) -> None:
    with pytest.raises(AttemptFailedError) as caught:
        run_container("sys.exit(3)")
    assert "kept" not in str(caught.value)
    assert run_container("result()", host_options={"privileged": True}).host["privileged"] is True
    assert "privileged" not in run_container("result()").host
