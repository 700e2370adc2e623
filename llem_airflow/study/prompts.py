"""The prompt set of an experiment: the builtin set, a file, a dataset of the hub, or prompts made from token ids."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from llem_airflow.protocol.spec import Prompts, Synthetic
from llem_airflow.study.hub import SUFFIXES, fetch, names_dataset, parquet_records
from llem_airflow.study.identity import canonical_json
from llem_airflow.study.keys import BUILTIN, STANDING_IN
from llem_airflow.study.mistakes import PromptsError

BUILTIN_FILE = Path(__file__).parent / "data" / "prompts.jsonl"
COLUMNS = ("prompt", "text", "instruction", "input", "question")
"""Fields of a record that may hold the prompt, in the order in which they are tried."""

MAX_FILE_BYTES = 256 * 1024 * 1024

_SYNTHETIC = re.compile(r"synthetic:(\d{1,7})x(\d{1,7})\Z")


def synthetic(source: str) -> Synthetic | None:
    """``synthetic:512x128`` as token counts, or None when the source is something else."""
    match = _SYNTHETIC.match(source)
    if match is None or "0" in {match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"}:
        return None
    return Synthetic(input_tokens=int(match[1]), output_tokens=int(match[2]))


def load_prompts(source: str, n_prompts: int, order: str, *, seed: int, folder: Path | None) -> Prompts:
    """Choose and order the prompts.

    Args:
        source: What the study names.
        n_prompts: How many make one pass.
        order: ``interleaved`` (as in the file), ``grouped`` (by the record's ``source``) or ``shuffled``.
        seed: Seed of the shuffle.
        folder: What a relative path is relative to.

    Raises:
        PromptsError: No such source, not readable, or too few prompts in it.
    """
    made = synthetic(source)
    if made is not None:
        text = canonical_json(
            {"input_tokens": made.input_tokens, "output_tokens": made.output_tokens, "seed": seed}
        )
        return Prompts(source, _sha256(text), (), n_prompts, made)
    path, resolved = _file(source, folder)
    records = list(_records(path, source))
    if len(records) < n_prompts:
        raise PromptsError(
            f"task.dataset: {source!r} has {len(records)} usable prompts but n_prompts is {n_prompts}; "
            f"set n_prompts to {len(records)} or less, or name a larger file"
            if records
            else f"task.dataset: {source!r} has no prompts: no record has one of the columns {', '.join(COLUMNS)}"
        )
    items = _ordered(records, n_prompts, order, seed)
    return Prompts(resolved, _sha256(canonical_json(list(items))), items, n_prompts)


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _file(source: str, folder: Path | None) -> tuple[Path, str]:
    """The file, and the source's full name: of the hub's, with its commit."""
    if source == BUILTIN or source in STANDING_IN:
        return BUILTIN_FILE, source
    if source.startswith("synthetic:"):
        raise PromptsError(
            f"task.dataset.source: {source!r}: write synthetic:<input tokens>x<output tokens>, "
            "for example synthetic:512x128"
        )
    if names_dataset(source):
        found = fetch(source, MAX_FILE_BYTES)
        return found.path, found.source
    if not source.endswith(SUFFIXES):
        raise PromptsError(
            f"task.dataset.source: {source!r} is no source of prompts; use {BUILTIN!r}, synthetic:<in>x<out>, "
            "a .jsonl or .parquet file with a column 'prompt', or a dataset of the hub as owner/name"
        )
    path = Path(source).expanduser()
    return (path if path.is_absolute() or folder is None else folder / path), source


def _records(path: Path, source: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Records that hold a prompt, each with it; header lines (keys that begin with ``_``) are left out."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PromptsError(
                f"task.dataset.source: {source!r} is larger than {MAX_FILE_BYTES // 1024**2} MiB; "
                "use a sample of it"
            )
        if path.suffix == ".parquet":
            for record in parquet_records(path, (*COLUMNS, "source")):
                yield from _prompt_of(record)
            return
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield from _record(line, source, number)
    except FileNotFoundError:
        raise PromptsError(
            f"task.dataset.source: {source!r}: no such file: {path}; paths are relative to the study file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"task.dataset.source: {source!r} cannot be read: {error}") from error


def _record(line: str, source: str, number: int) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptsError(
            f"task.dataset.source: {source}:{number}: not JSON: {error}; each line is one JSON object"
        ) from error
    if not isinstance(record, dict):
        raise PromptsError(
            f"task.dataset.source: {source}:{number}: not an object; each line is one JSON object"
        )
    if not any(key.startswith("_") for key in record):
        yield from _prompt_of(record)


def _prompt_of(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for column in COLUMNS:
        prompt = record.get(column)
        if isinstance(prompt, str) and prompt.strip():
            yield record, prompt.strip()
            return


def _ordered(
    records: list[tuple[dict[str, Any], str]], n_prompts: int, order: str, seed: int
) -> tuple[str, ...]:
    if order == "shuffled":
        random.Random(seed).shuffle(records)  # noqa: S311  # an order, not a secret
    elif order == "grouped":
        records.sort(key=lambda pair: str(pair[0].get("source", "")))
    return tuple(prompt for _, prompt in records[:n_prompts])
