"""Which code measures: a hash of the bundle that runs."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path


def bundle_sha256() -> str | None:
    """Hash of the members of the bundle that this runs from; None outside one.

    Formula: sha256 over the lines "name CRC-32 size", sorted. The names and contents decide, not how they were packed.
    """
    bundle = Path(__file__).parents[2]  # the folder of the package, or llem.pyz itself
    if not bundle.is_file():
        return None
    with zipfile.ZipFile(bundle) as archive:
        lines = sorted(f"{one.filename} {one.CRC:08x} {one.file_size}\n" for one in archive.infolist())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
