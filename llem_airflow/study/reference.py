"""The key reference of the README, from the tables: ``python -m llem_airflow.study.reference``."""

from __future__ import annotations

from collections.abc import Iterator

from llem_airflow.study.engine_names import ENGINE_ALIASES
from llem_airflow.study.fields import KINDS, Leaf, Section, What
from llem_airflow.study.keys import EXPERIMENT
from llem_airflow.study.study_keys import STUDY_ONLY


def key_reference() -> str:
    """Two Markdown tables: keys of an experiment, keys of the study."""
    parts = []
    for title, section in (("Keys of an experiment", EXPERIMENT), ("Keys of the study", STUDY_ONLY)):
        rows = "\n".join(_rows(section, ()))
        parts.append(
            f"### {title}\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n{rows}\n"
        )
    return "\n".join(parts)


def _rows(section: Section, path: tuple[str, ...]) -> Iterator[str]:
    for name, what in section.keys.items():
        if name in ENGINE_ALIASES:
            continue
        key = ".".join((*path, name))
        if isinstance(what, Section) and not what.open:
            yield from _rows(what, (*path, name))
        elif isinstance(what, Leaf):
            yield _row(key, _value(what), _default(what), what)
        elif isinstance(what, Section):
            yield _row(key, "a mapping", "{}", what)
        else:
            yield from _rows(what.row, (*path, f"{name}[]"))


def _row(key: str, value: str, default: str, what: What) -> str:
    return f"| `{key}` | {value} | {default} | {what.doc} |"


def _value(leaf: Leaf) -> str:
    value = ", ".join(leaf.choices) if leaf.choices else KINDS[leaf.kind]
    return f"{value}, or null" if leaf.nullable or leaf.null_is is not None else value


def _default(leaf: Leaf) -> str:
    if leaf.required:
        return "**required**"
    if leaf.default is None:
        return ""
    return str(leaf.default).lower() if isinstance(leaf.default, bool) else f"{leaf.default}"


if __name__ == "__main__":
    print(key_reference())  # noqa: T201  # a page for the README
