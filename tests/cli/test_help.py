"""The help of every verb: whole sentences that are not cut, a text for each option, each argument explained."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from llem_airflow.cli import main


def verbs(
    group: click.Group = main, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb with the words that call it; also the groups."""
    yield above, group
    for name, verb in group.commands.items():
        if isinstance(verb, click.Group):
            yield from verbs(verb, (*above, name))
        else:
            yield (*above, name), verb


ALL = {" ".join(words): (words, verb) for words, verb in verbs()}


def helped(words: tuple[str, ...]) -> str:
    return CliRunner().invoke(main, [*words, "--help"], terminal_width=80, prog_name="llem-airflow").output


@pytest.mark.parametrize("name", ALL)
def test_no_line_of_a_list_of_verbs_is_cut_at_80_columns(name: str) -> None:
    assert "..." not in helped(ALL[name][0]).replace("STUDY...", "").replace("CANDIDATE...", "").replace(
        "[ARGS]...", ""
    )


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_what_it_does(name: str) -> None:
    options = [one for one in ALL[name][1].params if isinstance(one, click.Option)]
    assert [one.name for one in options if not (one.help or "").endswith(".")] == []


@pytest.mark.parametrize("name", ALL)
def test_every_argument_is_explained_in_the_text(name: str) -> None:
    verb = ALL[name][1]
    context = click.Context(verb)
    arguments = [one for one in verb.params if isinstance(one, click.Argument)]
    plain = [
        one.make_metavar(context).strip("[].") for one in arguments if not isinstance(one.type, click.Choice)
    ]
    assert [word for word in plain if word not in (verb.help or "")] == []


def test_the_verbs_stand_in_sections_in_the_order_of_use() -> None:
    titles = [
        line.rstrip(":")
        for line in helped(()).splitlines()
        if line.endswith(":") and not line.startswith(" ")
    ]
    assert titles == ["Options", "Study files", "Runs", "Results", "Hosts"]
    assert set(main.commands) == {name.split()[0] for name in ALL if name}
