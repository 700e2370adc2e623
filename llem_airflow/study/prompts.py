"""The prompt set of an experiment: the builtin set, a file, a dataset of the hub, or prompts made from token ids.

Lengths of the last are fixed, or drawn with a seed: the same in every experiment that has that seed.
Everything that can be wrong with a file is told with file and row, before anything starts.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

from llem_airflow.protocol.spec import Prompts, Synthetic
from llem_airflow.study.config.base import Config
from llem_airflow.study.config.experiment import BUILTIN, BUILTIN_FILE, STANDING_IN, SYNTHETIC
from llem_airflow.study.names import HUB_DATASET, PROMPT_FILES, names_dataset
from llem_airflow.study.plan.identity import canonical_json
from llem_airflow.study.plan.model import Study
from llem_airflow.study.problems import Problem, PromptsError
from llem_airflow.text.wording import counted


def load_prompts(dataset: Config, *, seed: int, folder: Path | None) -> Prompts:
    """Choose and order the prompts.

    Args:
        dataset: ``task.dataset`` of an experiment. Its order is ``interleaved`` (as in the file), ``grouped`` (by the
            record's ``source``) or ``shuffled``.
        seed: Seed of the shuffle, and of synthetic lengths.
        folder: What a relative path is relative to.

    Raises:
        PromptsError: No such source, not readable, or too few prompts in it.
    """
    source, n_prompts = dataset["source"], dataset["n_prompts"]
    made = synthetic(dataset, seed)
    if made is not None:
        return Prompts(source, _sha256(_described(made, seed)), (), n_prompts, made)
    path, resolved = _file(source, folder)
    records = read_prompts(path, source, n_prompts, multi_turn=bool(dataset.get("multi_turn")))
    items = _ordered(records, n_prompts, dataset["order"], seed)
    return Prompts(resolved, _sha256(canonical_json(list(items))), items, n_prompts)


def _described(made: Synthetic, seed: int) -> str:
    """What a synthetic set is made from; what it does not have is left out, so that older sets keep their hash."""
    always = {"input_tokens": made.input_tokens, "output_tokens": made.output_tokens, "seed": seed}
    drawn = {
        "prefix_tokens": made.prefix_tokens,
        "input_lengths_tokens": made.input_lengths_tokens,
        "output_lengths_tokens": made.output_lengths_tokens,
    }
    return canonical_json(always | {key: value for key, value in drawn.items() if value})


def prompt_problems(study: Study) -> list[Problem]:
    """What is wrong with the prompts of a study, as far as the files are here: nothing is fetched.

    A dataset of the hub, and an absolute path that does not exist on this machine, are left to the worker.
    """
    needed: dict[tuple[str, bool], int] = {}
    for experiment in study.experiments:
        dataset = experiment.config["task"]["dataset"]
        which = dataset["source"], bool(dataset.get("multi_turn"))
        needed[which] = max(dataset["n_prompts"], needed.get(which, 0))
    problems = []
    for (source, multi_turn), n_prompts in needed.items():
        if SYNTHETIC.match(source) or names_dataset(source):
            continue
        try:
            path, _ = _file(source, study.folder)
            if path.is_absolute() and source == str(path) and not os.path.lexists(path):
                continue
            read_prompts(path, source, n_prompts, multi_turn=multi_turn)
        except PromptsError as error:
            where, _, found = f"{error}".partition(": ")
            value = source if where.endswith("source") else n_prompts
            problems.append(study.problem(tuple(where.split(".")), found, "", value=value))
    return problems


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _file(source: str, folder: Path | None) -> tuple[Path, str]:
    """The file, and the source's full name: of the hub's, with its commit."""
    if source == BUILTIN or source in STANDING_IN:
        return BUILTIN_FILE, source
    if names_dataset(source):
        return fetch(source, MAX_FILE_BYTES)
    path = Path(os.path.expanduser(source))  # noqa: PTH111  # Path.expanduser() raises for an unknown ~name
    return (path if path.is_absolute() or folder is None else folder / path), source


def _ordered(records: list[Record], n_prompts: int, order: str, seed: int) -> tuple[str, ...]:
    if order == "shuffled":
        random.Random(seed).shuffle(records)  # noqa: S311  # an order, not a secret
    elif order == "grouped":
        records.sort(key=lambda pair: str(pair[0].get("source", "")))
    return tuple(prompt for _, prompt in records[:n_prompts])


COLUMNS = ("prompt", "text", "instruction", "input", "question")
"""Fields of a record that may hold the prompt, in the order in which they are tried."""
MESSAGES = ("messages",)
"""Field of a record that holds a conversation."""
_EACH_MESSAGE = (
    "a conversation is a system message or none, then user and assistant in turn, each with a content"
)
MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
_MOST_UNPACKED_BYTES = 4 * MAX_FILE_BYTES

Record = tuple[dict[str, Any], str]
"""A record of the file and its prompt."""

_BEGINS = {
    b"version https://git-lfs": ("is a Git LFS pointer, not the file", "fetch it: git lfs pull"),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it: gunzip"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unpack it: unzstd"),
    b"BZh": ("is compressed with bzip2", "unpack it: bunzip2"),
    b"\xfd7zXZ": ("is compressed with xz", "unpack it: unxz"),
    b"PK\x03\x04": ("is a ZIP archive", "unpack it"),
    b"\xff\xfe": ("is UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("is UTF-16", "save it as UTF-8"),
}


def read_prompts(path: Path, source: str, n_prompts: int, *, multi_turn: bool = False) -> list[Record]:
    """Every record that holds a prompt, or a conversation (as the JSON of its messages), with it.

    Records without one, and header lines (keys that begin with ``_``), are left out.

    Args:
        path: The file: JSON lines, or Parquet.
        source: What the study calls it.
        n_prompts: How many there must be at least.
        multi_turn: Whether its records are conversations.

    Raises:
        PromptsError: It cannot be read, a prompt cannot be used, or there are too few; with the row, from 1.
    """
    left_out: dict[str, list[int]] = {}
    try:
        rows = _rows(path, source, MESSAGES if multi_turn else COLUMNS)
        take = _conversation_of if multi_turn else _prompt_of
        records = [found for row, record in rows if (found := take(record, source, row, left_out))]
    except FileNotFoundError:
        raise _wrong(source, f"no such file: {path}", "paths are relative to the study file") from None
    except OSError as error:
        raise _wrong(source, f"cannot be read: {error.strerror or error}", "check the file") from error
    if len(records) >= n_prompts:
        return records
    rest = ", ".join(f"{len(rows)} {why}, the first in row {rows[0]}" for why, rows in left_out.items())
    rest = f" ({rest})" if rest else ""
    if not records:
        what, column = "prompts", f"one of the columns {', '.join(COLUMNS)} with a text in it"
        if multi_turn:
            what, column = "conversations", "the column messages"
        raise PromptsError(f"task.dataset.source: {source!r} has no {what}: no record has {column}{rest}")
    what = counted(len(records), "conversation" if multi_turn else "usable prompt")
    raise PromptsError(
        f"task.dataset.n_prompts: {source!r} has {what}{rest} "
        f"but n_prompts is {n_prompts}; set n_prompts to {len(records)} or less, or name a larger file"
    )


def _rows(path: Path, source: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.is_dir():
        raise _wrong(source, "is a folder", "name a .jsonl or .parquet file")
    if path.exists() and not path.is_file():  # opening a pipe waits for ever
        raise _wrong(source, "is no regular file", "name a .jsonl or .parquet file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _wrong(source, f"is larger than {MAX_FILE_BYTES // 1024**2} MiB", "use a sample of it")
    with path.open("rb") as file:
        begin = file.read(32)
    if not begin:
        raise _wrong(source, "is empty", "each line is one JSON object with a prompt")
    for sign, (what, hint) in _BEGINS.items():
        if begin.startswith(sign):
            raise _wrong(source, what, hint)
    is_parquet = begin.startswith(b"PAR1")
    if is_parquet != (path.suffix == ".parquet"):
        what = "is Parquet" if is_parquet else "is no Parquet file"
        raise _wrong(source, what, "rename it, or save it as it is named")
    return _parquet(path, source, columns) if is_parquet else _lines(path, source)


def _lines(path: Path, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                most = f"the line is longer than {MAX_LINE_BYTES // 1024**2} MiB"
                raise _at(f"{source}:{number}", most, "shorten it")
            record = _json(line, f"{source}:{number}", first=number == 1)
            if record is not None and not any(key.startswith("_") for key in record):
                yield number, record


def _json(line: bytes, place: str, *, first: bool) -> dict[str, Any] | None:
    """The record of a line, or None for an empty one."""
    each = "each line is one JSON object"
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
        record = json.loads(text) if text.strip() else {}
    except UnicodeDecodeError as error:
        found = f"cannot be read: byte 0x{line[error.start]:02x} is not UTF-8"
        raise _at(place, found, "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise _at(place, f"not JSON: {error}", each) from error
    if not isinstance(record, dict):
        raise _at(place, "not an object", each)
    return record if text.strip() else None


def _parquet(path: Path, source: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa  # noqa: PLC0415  # reading a study loads no Arrow
    import pyarrow.parquet as pq  # noqa: PLC0415  # as above

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            known = file.schema_arrow.names
            wanted = [name for name in (*columns, "source") if known.count(name) == 1]
            if not set(wanted) & set(columns):
                has = f"none of its columns ({', '.join(known[:20])}) is one of {', '.join(columns)}"
                raise _wrong(source, f"has no prompts: {has}", "rename the column that holds them")
            unpacked = sum(file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups))
            if unpacked > _MOST_UNPACKED_BYTES:
                raise _wrong(source, f"unpacks to {unpacked / 1024**3:.1f} GiB", "use a sample of it")
            for batch in file.iter_batches(columns=wanted, batch_size=1024):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except PromptsError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        after = f" after row {row}" if row else ""
        reason = f"{error}".strip().partition("\n")[0][:200]
        what = f"is a broken or cut-off Parquet file{after}: {reason}"
        raise _wrong(source, what, "copy or make it again") from error


def _prompt_of(
    record: dict[str, Any], source: str, row: int, left_out: dict[str, list[int]]
) -> Record | None:
    there = [name for name in COLUMNS if name in record]
    for column in there:
        prompt = record[column]
        if isinstance(prompt, str) and prompt.strip():
            return record, _usable(prompt.strip(), f"{source}:{row}", column)
    why = "without such a column" if not there else "empty"
    if there and not (record[there[0]] is None or isinstance(record[there[0]], str)):
        why = "of another type than text"
    left_out.setdefault(why, []).append(row)
    return None


def _conversation_of(
    record: dict[str, Any], source: str, row: int, left_out: dict[str, list[int]]
) -> Record | None:
    """A record and the JSON of its messages; an answer at the end, which nothing follows, is left out."""
    messages = record.get("messages")
    if messages is None:
        left_out.setdefault("without messages", []).append(row)
        return None
    place = f"{source}:{row}"
    if not isinstance(messages, list) or not messages:
        raise _at(place, "messages is no list with messages in it", _EACH_MESSAGE)
    found: list[dict[str, str]] = []
    for number, message in enumerate(messages, 1):
        found.append(_message(message, found, place, number))
    if found[-1]["role"] == "assistant":
        found.pop()
    if found[-1]["role"] != "user":
        raise _at(place, "no message is the user's", _EACH_MESSAGE)
    return record, canonical_json(found)


def _message(message: Any, before: list[dict[str, str]], place: str, number: int) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _at(place, f"message {number} is no object", _EACH_MESSAGE)
    role, content = message.get("role"), message.get("content")
    due = ("user",) if before else ("system", "user")
    if before and before[-1]["role"] == "user":
        due = ("assistant",)
    if role not in due:
        what = f"message {number} has the role {role!r} where {' or '.join(due)} is due"
        raise _at(place, what, _EACH_MESSAGE)
    if not isinstance(content, str) or not content.strip():
        raise _at(place, f"message {number} has no text in its content", _EACH_MESSAGE)
    return {"role": str(role), "content": _usable(content, place, f"message {number}")}


def _usable(prompt: str, place: str, column: str) -> str:
    """The prompt, which an engine's tokenizer and the files of the evidence can hold."""
    if "\0" in prompt:
        raise _at(place, f"{column} has the character U+0000", "delete it")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        half = f"{column} has U+{ord(prompt[error.start]):04X}, half of a character"
        raise _at(place, half, "write the whole character, or delete it") from error
    return prompt


def _wrong(source: str, what: str, hint: str) -> PromptsError:
    return PromptsError(f"task.dataset.source: {source!r}: {what}; {hint}")


def _at(place: str, what: str, hint: str) -> PromptsError:
    return PromptsError(f"task.dataset.source: {place}: {what}; {hint}")


_TIMEOUT_S = 30.0


def fetch(source: str, most_bytes: int) -> tuple[Path, str]:
    """Bring a dataset's file into the cache; without a hub, take it from there.

    Args:
        source: ``owner/name[@revision][:file]``; without a file, the dataset's only one.
        most_bytes: Largest file that is fetched.

    Returns:
        Where it lies, and its name with the commit, so that the same prompts can be had again.

    Raises:
        PromptsError: It cannot be had; the text says why and what to do.
    """
    try:
        import huggingface_hub as hub  # noqa: PLC0415  # optional, and wanted by such studies only
        from huggingface_hub import errors  # noqa: PLC0415  # as above
    except ModuleNotFoundError:
        missing = "needs the hub's client, which is not installed here"
        raise _wrong(source, missing, "pip install 'llem-airflow[hub]'") from None
    match = HUB_DATASET.match(source)
    if match is None:
        raise ValueError(source)
    name, revision, file = match.groups()
    client = hub.HfApi()
    # What its HTTP client raises by itself is no OSError; its class differs between versions.
    own = (one for one in errors.HfHubHTTPError.__bases__ if issubclass(one, Exception))
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *own)
    try:
        facts = client.dataset_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
        file = _chosen(source, file, facts.siblings or [], most_bytes)
        path = Path(client.hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except PromptsError:
        raise
    except errors.GatedRepoError as error:
        hint = "accept its terms on the hub and give the worker a token (HF_TOKEN)"
        raise _wrong(source, "is gated", hint) from error
    except errors.RevisionNotFoundError as error:
        raise _wrong(source, f"has no revision {revision!r}", "name a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name; a private dataset needs HF_TOKEN"
        raise _wrong(source, f"is not on the hub {client.endpoint}", hint) from error
    except failures as error:
        cached = file and hub.try_to_load_from_cache(name, file, revision=revision, repo_type="dataset")
        if not isinstance(cached, str):
            raise _unreachable(source, client.endpoint, error) from error
        path = Path(cached)
    commit = path.parts[path.parts.index("snapshots") + 1]
    return path, f"{name}@{commit}:{file}"


def _chosen(source: str, wanted: str | None, files: list[Any], most_bytes: int) -> str:
    sizes = {one.rfilename: one.size or 0 for one in files if one.rfilename.endswith(PROMPT_FILES)}
    listed = ", ".join(sorted(sizes)[:8]) + (", …" if len(sizes) > 8 else "")
    if not sizes:
        raise _wrong(source, "has no .jsonl or .parquet file", "save its prompts as a .jsonl file")
    if wanted is None and len(sizes) > 1:
        raise _wrong(source, "has several files", f"name one, as in owner/name:file; it has {listed}")
    chosen = wanted or next(iter(sizes))
    if chosen not in sizes:
        raise _wrong(source, "has no such file to read", f"it has {listed}")
    if sizes[chosen] > most_bytes:
        raise _wrong(source, f"{chosen} is larger than {most_bytes // 1024**2} MiB", "use a sample of it")
    return chosen


def _unreachable(source: str, endpoint: str, error: Exception) -> PromptsError:
    said = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
    return _wrong(
        source,
        f"the hub {endpoint} cannot be asked ({said}), and the file is not in this worker's cache",
        "save the prompts as a .jsonl file beside the study, or fetch them once where the hub can be reached "
        "and name the file, as in owner/name:file",
    )


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of one kind, of prompts or of answers.

    Attributes:
        tokens: The length that the source names, in tokens.
        range_ratio: Uniform over tokens x (1 -/+ this), whole numbers, both ends included, at least 1: as
            `--random-range-ratio` of ``vllm bench serve`` (``vllm/benchmarks/datasets``). 0 is none.
        stddev_tokens: Normal with this standard deviation, rounded up, drawn again until it is above 0: as
            `--synthetic-input-tokens-stddev` of AIPerf (``sample_positive_normal_integer``). 0 is none.
    """

    tokens: int
    range_ratio: float = 0
    stddev_tokens: float = 0

    @property
    def bounds(self) -> tuple[int, int]:
        """Shortest and longest of the uniform distribution, in tokens."""
        ratio = Fraction(str(self.range_ratio))  # 100 x (1 + 0.1) is 110, and not a little more
        return max(1, math.floor(self.tokens * (1 - ratio))), math.ceil(self.tokens * (1 + ratio))

    def draw(self, n: int, seed: str) -> tuple[int, ...]:
        """So many lengths; none where they are all the same."""
        source = random.Random(seed)  # noqa: S311  # the same seed must give the same lengths, on every machine
        if self.range_ratio:
            low, high = self.bounds
            return tuple(source.randint(low, high) for _ in range(n))
        if self.stddev_tokens:
            return tuple(self._normal(source.gauss) for _ in range(n))
        return ()

    def _normal(self, gauss: Callable[[float, float], float]) -> int:
        while (length := gauss(self.tokens, self.stddev_tokens)) <= 0:
            pass
        return max(1, math.ceil(length))

    def told(self) -> str:
        """The distribution in words."""
        if self.range_ratio:
            low, high = self.bounds
            return f"{low} to {high} (uniform)"
        if self.stddev_tokens:
            return f"mean {self.tokens}, standard deviation {self.stddev_tokens:g} (normal, above 0)"
        return f"{self.tokens}"


def lengths_of(dataset: Config) -> tuple[Lengths, Lengths] | None:
    """How long the prompts and the answers of a synthetic set are; None when it is another."""
    match = SYNTHETIC.match(dataset["source"])
    if match is None:
        return None
    ratio = dataset.get("range_ratio") or 0
    return (
        Lengths(int(match[1]), ratio, dataset.get("input_tokens_stddev") or 0),
        Lengths(int(match[2]), ratio, dataset.get("output_tokens_stddev") or 0),
    )


def synthetic(dataset: Config, seed: int) -> Synthetic | None:
    """The synthetic set of ``task.dataset``, drawn; None when it names another source.

    Lengths of prompts and answers do not depend on each other's distribution.
    """
    found = lengths_of(dataset)
    if found is None:
        return None
    prompts, answers = found
    return Synthetic(
        input_tokens=prompts.tokens,
        output_tokens=answers.tokens,
        prefix_tokens=dataset.get("prefix_tokens") or 0,
        input_lengths_tokens=prompts.draw(dataset["n_prompts"], f"{seed} input"),
        output_lengths_tokens=answers.draw(dataset["n_prompts"], f"{seed} output"),
    )
