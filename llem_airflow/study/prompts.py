"""The prompt set of an experiment: the builtin set, a file, a dataset of the hub, or prompts made from token ids."""

from __future__ import annotations

import os
import random
import re
from hashlib import sha256
from pathlib import Path

from llem_airflow.protocol.spec import Prompts, Synthetic
from llem_airflow.study.hub import SUFFIXES, fetch, names_dataset
from llem_airflow.study.identity import canonical_json
from llem_airflow.study.keys import BUILTIN, STANDING_IN
from llem_airflow.study.mistakes import Mistake, PromptsError
from llem_airflow.study.prompt_files import MAX_FILE_BYTES, Record, read_prompts
from llem_airflow.study.study import Study

BUILTIN_FILE = Path(__file__).parent / "data" / "prompts.jsonl"
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
    items = _ordered(read_prompts(path, source, n_prompts), n_prompts, order, seed)
    return Prompts(resolved, _sha256(canonical_json(list(items))), items, n_prompts)


def prompt_mistakes(study: Study) -> list[Mistake]:
    """What is wrong with the prompts of a study, as far as the files are here: nothing is fetched.

    A dataset of the hub, and an absolute path that does not exist on this machine, are left to the worker.
    """
    needed: dict[str, int] = {}
    for experiment in study.experiments:
        dataset = experiment.config["task"]["dataset"]
        needed[dataset["source"]] = max(dataset["n_prompts"], needed.get(dataset["source"], 0))
    mistakes = []
    for source, n_prompts in needed.items():
        if synthetic(source) is not None or names_dataset(source):
            continue
        try:
            path, _ = _file(source, study.folder)
            if path.is_absolute() and source == str(path) and not os.path.lexists(path):
                continue
            read_prompts(path, source, n_prompts)
        except PromptsError as error:
            where, _, found = f"{error}".partition(": ")
            mistakes.append(study.mistake(tuple(where.split(".")), found, ""))
    return mistakes


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
    path = Path(os.path.expanduser(source))  # noqa: PTH111  # Path.expanduser() raises for an unknown ~name
    return (path if path.is_absolute() or folder is None else folder / path), source


def _ordered(records: list[Record], n_prompts: int, order: str, seed: int) -> tuple[str, ...]:
    if order == "shuffled":
        random.Random(seed).shuffle(records)  # noqa: S311  # an order, not a secret
    elif order == "grouped":
        records.sort(key=lambda pair: str(pair[0].get("source", "")))
    return tuple(prompt for _, prompt in records[:n_prompts])
