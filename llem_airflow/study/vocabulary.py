"""Known keys of the engines, to tell a slip from a new argument. Unknown ones pass through all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llem_airflow.study.engine_names import ENGINES
from llem_airflow.study.mistakes import Notice
from llem_airflow.study.mistakes import Path as KeyPath
from llem_airflow.study.written import Written

_FILE = Path(__file__).parent / "data" / "engine-keys.json"
_PARTS = ("engine_params", "sampling_params")


@cache
def _all() -> Mapping[str, Mapping[str, list[str]]]:
    known: Mapping[str, Mapping[str, list[str]]] = json.loads(_FILE.read_text("utf-8"))
    return known


def slips(written: Written) -> Iterator[Notice]:
    """Notices of keys that are probably slips of known ones, each with its line."""
    for engine, part, name, path in _free_keys(written):
        known = _all()[engine][part]
        if name in known:
            continue
        meant = _close(name, known)
        if meant is not None:
            line = written.source.place(path, of_key=True)[0]
            text = f"{engine}.{part}.{name} is not a known key of {engine} and passes through; did you mean {meant!r}?"
            yield Notice("slip", text, line)


def _close(name: str, known: list[str]) -> str | None:
    from difflib import get_close_matches  # only unknown keys pay for this import

    found = get_close_matches(name, known, n=1, cutoff=0.8) if len(name) < 100 else []
    return found[0] if found else None


def _free_keys(written: Written) -> Iterator[tuple[str, str, str, KeyPath]]:
    for engine in ENGINES:
        for part in _PARTS:
            for name in _names(written.fixed, engine, part):
                yield engine, part, name, (engine, part, name)
    for dimension in written.sweep.dimensions:
        for variant in dimension.variants:
            for key, _ in variant:
                if len(key) >= 3 and key[0] in ENGINES and key[1] in _PARTS:
                    yield key[0], key[1], key[2], ("sweep", dimension.name)
    for index, entry in enumerate(written.entries):
        for engine in ENGINES:
            for part in _PARTS:
                for name in _names(entry, engine, part):
                    yield engine, part, name, ("experiments", index, engine, part, name)


def _names(config: dict[str, Any], engine: str, part: str) -> list[str]:
    return list((config.get(engine) or {}).get(part) or ())
