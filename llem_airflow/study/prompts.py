"""The prompt set of an experiment: the builtin set, a JSONL file, or prompts made from token ids."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from llem_airflow.protocol.spec import Prompts, Synthetic
from llem_airflow.study.identity import canonical_json
from llem_airflow.study.keys import BUILTIN, STANDING_IN

BUILTIN_FILE = Path(__file__).parent / "data" / "prompts.jsonl"
COLUMNS = ("prompt", "text", "instruction", "input", "question")
"""Fields of a JSONL record that may hold the prompt, in the order in which they are tried."""

MAX_JSONL_BYTES = 256 * 1024 * 1024

_SYNTHETIC = re.compile(r"synthetic:(\d{1,7})x(\d{1,7})\Z")


class PromptsError(ValueError):
    """The prompts of an experiment cannot be had; the text says why and what to do."""


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
    records = list(_records(_file(source, folder), source))
    if len(records) < n_prompts:
        raise PromptsError(
            f"task.dataset: {source!r} has {len(records)} usable prompts but n_prompts is {n_prompts}; "
            f"set n_prompts to {len(records)} or less, or name a larger file"
        )
    items = _ordered(records, n_prompts, order, seed)
    return Prompts(source, _sha256(canonical_json(list(items))), items, n_prompts)


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _file(source: str, folder: Path | None) -> Path:
    if source == BUILTIN or source in STANDING_IN:
        return BUILTIN_FILE
    if source.startswith("synthetic:"):
        raise PromptsError(
            f"task.dataset.source: {source!r}: write synthetic:<input tokens>x<output tokens>, "
            "for example synthetic:512x128"
        )
    if not source.endswith(".jsonl"):
        raise PromptsError(
            f"task.dataset.source: {source!r} is not supported yet; use {BUILTIN!r}, synthetic:<in>x<out> "
            "or a .jsonl file with a 'prompt' in each line (save the prompts of a hub dataset as one)"
        )
    path = Path(source).expanduser()
    return path if path.is_absolute() or folder is None else folder / path


def _records(path: Path, source: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Records that hold a prompt, each with it; header lines (keys that begin with ``_``) are left out."""
    try:
        if path.stat().st_size > MAX_JSONL_BYTES:
            raise PromptsError(
                f"task.dataset.source: {source!r} is larger than {MAX_JSONL_BYTES // 1024**2} MiB; "
                "use a sample of it"
            )
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
    if any(key.startswith("_") for key in record):
        return
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
