"""Keys that are probably slips of known ones, in the parts of a study that pass through to an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llem_airflow.study.engine_names import ENGINES
from llem_airflow.study.mistakes import Notice
from llem_airflow.study.mistakes import Path as KeyPath
from llem_airflow.study.vocabulary import PARTS, known_keys
from llem_airflow.study.written import Written


def slips(written: Written) -> Iterator[Notice]:
    """Notices of keys that nothing is known of, or that are probably slips of known ones, each with its line."""
    for engine, part, name, path in _free_keys(written):
        known = known_keys(engine, part)
        if name in known or not known:  # nothing is recorded of an installed engine
            continue
        meant = _close(name, known)
        line = written.source.place(path, of_key=True)[0]
        text = f"{engine}.{part}.{name[:60]} is not a known key and passes through; "
        if meant is not None:
            yield Notice("slip", f"{text}did you mean {meant!r}?", line)
        else:
            yield Notice("unknown-key", f"{text}an engine that does not know it fails when it starts", line)


def _close(name: str, known: tuple[str, ...]) -> str | None:
    from difflib import get_close_matches  # noqa: PLC0415  # only an unknown key pays for it

    found = get_close_matches(name, known, n=1, cutoff=0.8) if len(name) < 100 else []
    return found[0] if found else None


def _free_keys(written: Written) -> Iterator[tuple[str, str, str, KeyPath]]:
    yield from _names(written.fixed, ())
    for dimension in written.sweep.dimensions:
        for variant in dimension.variants:
            for key, _ in variant:
                if len(key) >= 3 and key[0] in ENGINES and key[1] in PARTS:
                    yield key[0], key[1], key[2], ("sweep", dimension.name)
    for index, entry in enumerate(written.entries):
        yield from _names(entry, ("experiments", index))


def _names(config: dict[str, Any], before: KeyPath) -> Iterator[tuple[str, str, str, KeyPath]]:
    for engine in ENGINES:
        for part in PARTS:
            for name in (config.get(engine) or {}).get(part) or ():
                yield engine, part, name, (*before, engine, part, name)
