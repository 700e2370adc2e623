"""Prompts of a dataset on the Hugging Face hub: one file of it, at one commit, through the client's own cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.study.mistakes import PromptsError

SUFFIXES = (".jsonl", ".parquet")

_NAMED = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([^:@]+))?(?::(.+))?\Z")
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a dataset.

    Attributes:
        path: Where it lies in the cache.
        source: Its name with the commit, so that the same prompts can be had again.
    """

    path: Path
    source: str


def names_dataset(source: str) -> bool:
    """Whether a prompt source is ``owner/name``, with ``@revision`` and ``:file`` where wanted, and no local file."""
    match = _NAMED.match(source)
    return match is not None and (match[3] is not None or not source.endswith(SUFFIXES))


def fetch(source: str, most_bytes: int) -> HubFile:
    """Bring the file into the cache; without a hub, take it from there.

    Args:
        source: ``owner/name[@revision][:file]``; without a file, the dataset's only one.
        most_bytes: Largest file that is fetched.

    Raises:
        PromptsError: It cannot be had; the text says why and what to do.
    """
    try:
        import huggingface_hub as hub  # noqa: PLC0415  # optional, and wanted by such studies only
        from huggingface_hub import errors  # noqa: PLC0415  # as above
    except ModuleNotFoundError:
        raise _wrong(
            source, "needs the hub's client, which is not installed here", "pip install 'llem-airflow[hub]'"
        ) from None
    name, revision, file = _parts(source)
    client = hub.HfApi()
    # What its HTTP client raises by itself is no OSError; its class differs between versions.
    own = (one for one in errors.HfHubHTTPError.__bases__ if issubclass(one, Exception))
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *own)
    try:
        facts = client.dataset_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
        file = _chosen(source, file, facts.siblings or [], most_bytes)
        path = client.hf_hub_download(name, file, repo_type="dataset", revision=revision)
    except PromptsError:
        raise
    except errors.GatedRepoError as error:
        raise _wrong(
            source, "is gated", "accept its terms on the hub and give the worker a token (HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _wrong(source, f"has no revision {revision!r}", "name a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name; a private dataset needs HF_TOKEN"
        raise _wrong(source, f"is not on the hub {client.endpoint}", hint) from error
    except failures as error:
        cached = (
            hub.try_to_load_from_cache(name, file, revision=revision, repo_type="dataset") if file else None
        )
        if not isinstance(cached, str):
            raise _unreachable(source, client.endpoint, error) from error
        path = cached
    commit = Path(path).parts[Path(path).parts.index("snapshots") + 1]
    return HubFile(Path(path), f"{name}@{commit}:{file}")


def _parts(source: str) -> tuple[str, str | None, str | None]:
    match = _NAMED.match(source)
    if match is None:
        raise ValueError(source)
    return match[1], match[2], match[3]


def _chosen(source: str, wanted: str | None, files: list[Any], most_bytes: int) -> str:
    sizes = {one.rfilename: one.size or 0 for one in files if one.rfilename.endswith(SUFFIXES)}
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


def _wrong(source: str, what: str, hint: str) -> PromptsError:
    return PromptsError(f"task.dataset.source: {source!r}: {what}; {hint}")
