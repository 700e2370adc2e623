"""What the pages say of the command, of files and of settings is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import click
import pytest

from llem_airflow.analysis.verdict import Verdict
from llem_airflow.cli import main
from llem_airflow.cli.edge import EXIT_CODES
from llem_airflow.cli.results import results_group
from llem_airflow.frames.tables import FORMATS
from llem_airflow.operators.settings import Settings
from tests import parts

README = (parts.REPOSITORY / "README.md").read_text()
PAGES = sorted(
    parts.REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=parts.REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
)
COMMAND = re.compile(r"`llem-airflow ([a-z][^`\n]*)`|^llem-airflow ([a-z][^\n#]*)", re.MULTILINE)


def examples() -> list[tuple[str, str]]:
    found = [(page, match[1] or match[2]) for page in PAGES for match in COMMAND.finditer(page.read_text())]
    return sorted({(page.relative_to(parts.REPOSITORY).as_posix(), text.strip()) for page, text in found})


@pytest.mark.parametrize(("page", "text"), examples())
def test_a_command_in_a_page_is_one_that_there_is(page: str, text: str) -> None:
    command: click.Command = main
    words = shlex.split(text.partition(" > ")[0].partition(" | ")[0])
    while isinstance(command, click.Group) and words and words[0].isalpha() | ("-" in words[0]):
        assert words[0] in command.commands, f"{page}: {text}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{page}: {text}"


def rows(header: str) -> dict[str, str]:
    """The rows of the table below a header line, by their first cell."""
    table = README.partition(header)[2].split("\n\n")[0]
    cells = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    return {line[0].strip().strip("`"): " | ".join(line[1:]) for line in cells}


def test_the_table_of_verbs_has_each_verb_and_options_that_they_have() -> None:
    table = rows("| verb | does |")
    named = {name.split()[1]: text for name, text in table.items()}
    assert set(named) == set(main.commands)
    for verb, text in named.items():
        command = main.commands[verb]
        commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]
        known = {option for one in commands for parameter in one.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", text)) <= known, verb
    assert set(re.findall(r"`([a-z]+)`", named["results"])) == set(results_group.commands)
    assert all(form in named["results"] for form in FORMATS)
    assert [verdict for verdict in Verdict if str(verdict) not in named["compare"]] == []
    choice = main.commands["engine-check"].params[0].type
    assert isinstance(choice, click.Choice)
    assert set(choice.choices) == set(re.findall(r"`(\w+)`", named["engine-check"]))


def test_exit_codes_are_stated_as_in_the_help() -> None:
    assert EXIT_CODES in " ".join(README.split())


def test_the_settings_of_the_table_are_read() -> None:
    named = set(rows("| option | meaning | default |"))
    source = "".join(
        path.read_text() for path in (parts.REPOSITORY / "llem_airflow" / "operators").glob("*.py")
    )
    assert {name for name in named if f'"{name}"' not in source} == set()
    assert set(Settings.__dataclass_fields__) - {"layers"} <= named | {"runner_layers", "runners"}


def links(page: Path) -> list[Path]:
    """Where the links of a page lead within the repository."""
    found = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    return [(page.parent / link).resolve() for link in found]


def test_every_link_leads_to_a_file() -> None:
    broken = [f"{page.name}: {there}" for page in PAGES for there in links(page) if not there.exists()]
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    todo = [parts.REPOSITORY.resolve() / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            linked = (there / "README.md" if there.is_dir() else there for there in links(page))
            todo += [there for there in linked if there.suffix == ".md" and there.is_file()]
    pages = {page.resolve() for page in PAGES if "tests" not in page.relative_to(parts.REPOSITORY).parts}
    assert pages - reached == set()


def test_the_extras_of_the_page_are_those_of_the_package() -> None:
    line = README.partition("Extras: ")[2].partition("\n\n")[0]
    extras = tomllib.loads((parts.REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r"`([a-z0-9]+)`", line)) == set(extras) - {"dev"}


def test_make_targets_of_the_page_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (parts.REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)) <= targets


def test_the_wheel_that_the_page_describes_holds_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(parts.REPOSITORY),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("llem_airflow-*.whl")
    with ZipFile(wheel) as inside:
        names = inside.namelist()
    assert "llem_airflow/web/static/app.js" in names
    assert not [name for name in names if name.endswith((".png", ".webp"))]
