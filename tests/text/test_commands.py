"""Every command in a block of a page is in the list of commands, which says how each was run, or why it was not."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import parts

LIST = Path(__file__).with_name("commands.txt")
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LANGUAGES = {"", "bash", "bash backup", "bash restore"}
PROGRAMS = {
    *(
        "airflow",
        "cp",
        "createdb",
        "createuser",
        "curl",
        "docker",
        "dropdb",
        "eval",
        "export",
        "kubectl",
        "llem-airflow",
    ),
    *("make", "mkdir", "pg_dump", "pg_restore", "pip", "python", "python3", "ssh", "sudo", "tar", "uv"),
}
ASSIGNED = re.compile(r"[A-Z_]+=\S*\s*")
ASIDE = re.compile(r"\s{3,}#.*|\s+# .*|\s{4,}[^\s'-].*")
"""What stands beside a command: a comment, or what it does."""
REFERENCE = re.compile(r"(tests/\S+\.py)::(\w+)|(\.ci/run)")


def commands_in(text: str) -> list[str]:
    """The commands of a page's blocks, each on one line without what stands beside it."""
    found: list[str] = []
    for language, block in BLOCK.findall(text):
        if language not in LANGUAGES:
            continue
        begun = ""
        for line in block.splitlines():
            begun = f"{begun} {line.strip()}" if begun else ASIDE.sub("", line.rstrip())
            if is_open(begun):
                continue
            words = ASSIGNED.sub("", begun) if ASSIGNED.match(begun) else begun
            first = re.match(r"[\w-]*", words)
            if (first and first[0] in PROGRAMS) or begun.startswith("TOKEN=$("):
                found.append(" ".join(begun.replace("\\ ", " ").split()))
            begun = ""
    return found


def is_open(text: str) -> bool:
    """Whether a command goes on in the next line."""
    if text.endswith(("\\", "|")):
        return True
    try:
        shlex.split(text)
    except ValueError:
        return text.count("'") % 2 == 1 or text.count('"') % 2 == 1
    return False


def documented() -> list[tuple[str, str]]:
    """Each command of each page: the page and the command."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=parts.REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    pages = [name for name in sorted(listed) if not name.startswith("tests/") and name != "CHANGELOG.md"]
    return [(page, each) for page in pages for each in commands_in((parts.REPOSITORY / page).read_text())]


def known() -> dict[tuple[str, str], str]:
    """Of each command of the list how it was run."""
    found: dict[tuple[str, str], str] = {}
    page = how = ""
    for line in LIST.read_text().splitlines():
        if line.startswith("## "):
            page = line.removeprefix("## ")
        elif line.startswith("- "):
            how = line.removeprefix("- ")
        elif line.startswith("    "):
            found[page, line.strip()] = how
    return found


def test_every_command_of_a_page_is_in_the_list_and_no_other() -> None:
    assert sorted(set(documented()) ^ set(known())) == []


@pytest.mark.parametrize("how", sorted(set(known().values())))
def test_the_list_says_how_a_command_was_run_or_why_it_was_not(how: str) -> None:
    assert how.startswith(("run by ", "run by hand on ", "not run: "))
    for file, name, _ in REFERENCE.findall(how):
        if file:
            assert f"def {name}(" in (parts.REPOSITORY / file).read_text(), how


@pytest.mark.parametrize(
    ("page", "command"), [key for key, how in known().items() if how.startswith("not run: ")]
)
def test_a_page_says_of_a_command_that_was_not_run_that_it_was_not(page: str, command: str) -> None:
    sections = re.split(r"^##+ ", (parts.REPOSITORY / page).read_text(), flags=re.MULTILINE)
    (section,) = [each for each in sections if command in commands_in(each)]
    assert re.search(r"not run", section, re.IGNORECASE)
