"""Study files and what is said of them.

A case is the text of a study and the lines ``=> `` that follow it::

    offline: {warmup: {n_prompts: 0}}
    => study.yaml:4:31: offline.warmup.n_prompts: found 0 (whole number); allowed: a whole number, 1 or more.

The text follows ``HEAD``, three lines that are right. Lines that begin with ``%%%`` are for the reader of this format:
``%%% without task`` (HEAD without its line of that key), ``%%% server`` (the head of a study of a server instead),
``%%% whole`` (no head), ``%%% bytes`` (the same, and ``\\x00``, ``\\t`` and the like stand for bytes),
``%%% file NAME`` (what follows is another file beside the study), ``%%% # …`` (a comment).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from llem_airflow.cli import main
from llem_airflow.study import StudyFileError, load_study
from tests.study.texts import HEAD

FOLDER = Path(__file__).parent
OTHER_KINDS = ("schema", "plan-terminal", "plan-json")
FILES = tuple(sorted(path for path in FOLDER.glob("*.txt") if path.stem not in OTHER_KINDS))
STUDY = "study.yaml"
SERVER_HEAD = HEAD.replace("offline", "server") + "engine: vllm\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        lines: Its lines as they stand in the golden file, without the answer.
        expected: The answer that was kept.
        line: Its line of the golden file, from 1.
    """

    lines: list[str]
    expected: list[str]
    line: int

    def files(self) -> dict[str, bytes]:
        """The study and what lies beside it, by name."""
        head, name, texts = HEAD, STUDY, {STUDY: ""}
        for line in self.lines:
            mark, _, said = line.partition(" ")
            verb, _, what = said.partition(" ")
            if mark != "%%%":
                texts[name] += f"{line}\n"
            elif verb == "file":
                name = what
                texts[name] = ""
            elif verb != "#":
                head = _head(head, verb, what)
        texts[STUDY] = head + texts[STUDY]
        escaped = "%%% bytes" in self.lines
        return {name: _bytes(text) if escaped else text.encode() for name, text in texts.items()}


def _head(head: str, verb: str, key: str) -> str:
    if verb == "without":
        return "".join(line for line in head.splitlines(keepends=True) if not line.startswith(f"{key}:"))
    return {"server": SERVER_HEAD, "whole": "", "bytes": ""}[verb]


def _bytes(text: str) -> bytes:
    return text.removesuffix("\n").encode().decode("unicode_escape").encode("latin-1")


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of a golden file."""
    lines: list[str] = []
    expected: list[str] = []
    begin = 1
    for number, line in enumerate([*path.read_text("utf-8").removesuffix("\n").split("\n"), ""], start=1):
        if line.startswith("=> "):
            expected.append(line.removeprefix("=> "))
            continue
        if expected:
            yield Case(lines, expected, begin)
            lines, expected = [], []
        if not lines:
            begin = number
        if line or lines:
            lines.append(line)
    if any(lines):
        yield Case(lines, [], begin)


def written(cases: Iterable[tuple[Case, list[str]]]) -> str:
    """The text of a golden file with these answers."""
    return "\n".join(
        "".join([*(f"{line}\n" for line in case.lines), *(f"=> {line}\n" for line in answer)])
        for case, answer in cases
    )


def answers(path: Path) -> Iterator[tuple[Case, list[str]]]:
    """Each case of a golden file with what is said of it now."""
    answer = validated if path.stem.startswith("validate") else loaded
    for case in read_cases(path):
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            for name, data in case.files().items():
                Path(name).write_bytes(data)
            yield case, answer()


def loaded() -> list[str]:
    """What ``load_study`` says of the study in this folder."""
    try:
        study = load_study(STUDY)
    except StudyFileError as error:
        return str(error).split("\n")
    except Exception as error:  # noqa: BLE001  # told as an answer, so that the other cases are asked all the same
        return [f"TRACEBACK {error!r}"]
    count = f"{len(study.experiments)} experiments, {len(study.plan.planned_cycles)} runs"
    return [f"accepted: {count}", *(f"note: {notice}" for notice in study.warnings)]


def validated() -> list[str]:
    """What the verb ``validate`` says of it."""
    result = CliRunner().invoke(main, ["validate", STUDY], env={"COLUMNS": "160"})
    return [f"exit code {result.exit_code}", *result.output.removesuffix("\n").split("\n")]
