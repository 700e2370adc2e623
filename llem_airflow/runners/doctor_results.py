"""What the doctor says of the results root: whether this machine can list, write and remove there."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from llem_airflow.results.folder import Folder, why_store_fails

_PATIENCE = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
"""Of the client of S3, whose own takes minutes to say that nobody answers."""


def root_of(environ: Mapping[str, str]) -> str:
    """The results root that variables of the environment name."""
    return environ.get("AIRFLOW__LLEM__RESULTS_ROOT") or environ.get("LLEM_RESULTS_ROOT") or "results"


def look_at(root: str) -> tuple[bool, str, str]:
    """Whether results can be kept there, what was found, and what to do."""
    if "://" in root and not root.startswith("file://"):
        return _store(root)
    path = Path(root.removeprefix("file://")).absolute()
    try:
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError:
        return False, f"{path} cannot be written", "correct the rights, or set LLEM_RESULTS_ROOT"
    return True, f"{path}, {shutil.disk_usage(nearest).free / 1e9:.0f} GB free", ""


def _store(url: str) -> tuple[bool, str, str]:
    """By an object of its own, written and removed: who may list may still be refused at the first commit."""
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        root = Folder.at(url, **({"config_kwargs": _PATIENCE} if url.startswith("s3") else {}))
        root.folders()
        root.write(name, b"")
        root.fs.rm_file(f"{root.path}/{name}")
    except Exception as error:  # noqa: BLE001  # an object store has errors of its own, and the doctor never raises
        said, _, fix = why_store_fails(error, url).rpartition("; ")
        fallback = "correct LLEM_RESULTS_ROOT, its credentials or the network"
        return False, f"{url} cannot be used: {said or fix}", fix if said else fallback
    return True, f"{url}, listed and written", ""
