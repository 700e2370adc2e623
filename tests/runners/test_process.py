"""The process runner keeps the same promises as that of containers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.protocol.live import LivePhase
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Collected
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.process import ProcessRunner, ProcessSettings
from tests.runners.programs import HASH, attempt, program, see_through, within_reach

FOREVER = "print('up', flush=True)\nwhile True: time.sleep(0.1)\n"


def run(
    folder: Path, text: str, *, lines: list[str] | None = None, who: Attempt | None = None, **settings: Any
) -> Collected:
    runner = ProcessRunner(
        who or attempt(),
        replace(ProcessSettings(), **settings),
        folder=folder / "collected",
        on_line=(lines if lines is not None else []).append,
        bundle=program(folder, text),
    )
    return see_through(runner, folder / "collected")


def test_success_brings_files_and_log_out(tmp_path: Path) -> None:
    lines: list[str] = []
    collected = run(
        tmp_path, "print('hello'); open(out + '/power.csv', 'w').write('x'); result()", lines=lines
    )
    assert lines == ["hello"]
    assert {path.name for path in collected.folder.iterdir()} == {
        f"{HASH}_result.json",
        "power.csv",
        "container.log",
    }
    assert (collected.exit_code, collected.image, collected.adopted) == (0, None, False)


def test_the_temporary_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    run(tmp_path, "result()")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_failure_says_code_and_last_lines(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailedError, match="exit code 3") as caught:
        run(tmp_path, "print('the last words'); sys.exit(3)")
    assert "the last words" in str(caught.value)


def test_the_attempts_own_error_is_the_headline(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailedError, match="failed in phase 'load': ValueError: boom"):
        run(tmp_path, "error(); sys.exit(1)")


def test_wall_clock_and_silence_end_it(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailedError, match=r"wall clock limit of 0\.5 s"):
        run(tmp_path, FOREVER, wall_clock_s=0.5)
    with pytest.raises(AttemptFailedError, match=r"silence limit of 0\.5 s"):
        run(tmp_path, FOREVER, silence_s=0.5)


def test_what_the_sampler_tells_those_who_watch_is_heard_and_is_no_sign_of_life(tmp_path: Path) -> None:
    lines: list[str] = []
    heard: list[Any] = []
    record = '{"t":1,"phase":"load"}'
    telling = f"""
print("hello", flush=True)
while True:
    os.write(2, b'\\x1e{record}\\n')
    time.sleep(0.05)
"""
    runner = ProcessRunner(
        attempt(),
        ProcessSettings(silence_s=4.0),
        folder=tmp_path / "collected",
        on_line=lines.append,
        on_live=heard.append,
        bundle=program(tmp_path, telling),
    )
    with pytest.raises(AttemptFailedError, match="silence limit of 4 s"):
        see_through(runner, tmp_path / "collected")
    assert lines == ["hello"]
    assert set(heard) == {LivePhase(1, "load")}
    assert (tmp_path / "collected" / "container.log").read_text() == "hello\n"


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER

    def ended(limit_s: float, lines: list[str]) -> int | None:
        with pytest.raises(AttemptFailedError) as caught:
            run(tmp_path, ignoring, wall_clock_s=limit_s, stop_grace_s=0.3, lines=lines)
        return caught.value.exit_code

    assert within_reach(ended) == -9


def test_children_do_not_outlive_it(tmp_path: Path) -> None:
    lines: list[str] = []
    child = "import subprocess\nprint(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid, flush=True)\n"
    run(tmp_path, child + "result()", lines=lines)
    assert ends(int(lines[0]))


WORKER = """
import sys
from pathlib import Path
from tests.runners.test_process import run, FOREVER
class Lines(list):
    def append(self, line): print(line, flush=True)
run(Path(sys.argv[1]), "print(os.getpid(), flush=True)\\n" + FOREVER, lines=Lines())
"""


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """Whether a process that was sent SIGKILL ends; a loaded machine needs a moment for it."""
    for _ in range(200):
        if not running(pid):
            return True
        time.sleep(0.05)
    return False


def test_a_killed_worker_takes_it_along(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        cwd=Path(__file__).parent.parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    worker.kill()
    worker.wait()
    worker.stdout.close()
    assert ends(pid)


def test_an_interpreter_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailedError, match="/nonexistent/python cannot be started"):
        run(tmp_path, "result()", python="/nonexistent/python")


TOKEN = "tok/en+with'\"odd=characters"  # not one


def test_a_secret_is_in_no_file_and_no_message_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "c2VjcmV0LWtleS1vZi1haXJmbG93")
    text = (
        "import base64, urllib.parse\n"
        "t = os.environ['HF_TOKEN'].strip()\n"
        "forms = [t, urllib.parse.quote(t, safe=''), json.dumps(t), repr(t), os.environ['AIRFLOW__CORE__FERNET_KEY']]\n"
        "print(*forms, base64.b64encode(b'user:' + t.encode()).decode())\n"
        "open(out + '/events.jsonl', 'w').write(json.dumps({'said': forms}) + '\\n')\n"
        "open(out + '/engine.log', 'w').write('x' * 70_000_000 + t)\n"
        "error(message='bad token ' + t, traceback=repr(t)); sys.exit(1)"
    )
    lines: list[str] = []
    with pytest.raises(AttemptFailedError) as caught:
        run(tmp_path, text, lines=lines, private_environment={"HF_TOKEN": f"{TOKEN}\n"})
    files = [path.read_text() for path in caught.value.folder.iterdir()]
    for form in (TOKEN, urllib.parse.quote(TOKEN, safe=""), json.dumps(TOKEN)[1:-1], repr(TOKEN)[1:-1]):
        assert not [
            text for text in (*files, *lines, str(caught.value), caught.value.headline) if form in text
        ]
    whole = "\n".join([*files, *lines])
    assert base64.b64encode(TOKEN.encode()).decode()[:20] not in whole
    assert "c2VjcmV0LWtleS1vZi1haXJmbG93" not in whole
    assert whole.count("[redacted]") > 10


def test_a_secret_over_the_cut_of_a_long_line_is_blanked(tmp_path: Path) -> None:
    lines: list[str] = []
    text = "sys.stdout.write('x' * 8185); sys.stdout.flush(); print(os.environ['HF_TOKEN'] * 3); result()"
    run(tmp_path, text, lines=lines, private_environment={"HF_TOKEN": "hf-canary-1234567890"})
    assert "canary" not in "".join(lines)
    assert "1234567890" not in "".join(lines)


def test_secrets_are_blanked_in_the_log(tmp_path: Path) -> None:
    lines: list[str] = []
    collected = run(
        tmp_path,
        "print('token', os.environ['HF_TOKEN']); result()",
        lines=lines,
        private_environment={"HF_TOKEN": "hf_canary1234567890"},
    )
    assert lines == ["token [redacted]"]
    assert "canary" not in collected.log.read_text()
    assert "HF_TOKEN" not in os.environ
