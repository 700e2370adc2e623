"""The bundle: what runs inside a container, packed from the installed packages into one zipapp."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import llem_airflow
from llem_airflow.protocol.files import BUNDLE
from llem_airflow.protocol.spec import METERS_GROUP

ENGINES_GROUP = "llem_airflow.engines"
"""Entry points of third parties' engines; what carries one is put into the bundle."""

_MAIN = """\
import sys

if sys.argv[1:2] == ["session"]:  # many short commands, which load nothing of what measures
    from llem_airflow.measurement.session.command import main
else:
    from llem_airflow.measurement.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
"""

_AN = {"engine": "an engine", "meter": "a meter"}

# One fixed time for every member: the same sources give the same bytes, so a bundle is known by its hash.
_MEMBER_TIME = (1980, 1, 1, 0, 0, 0)


def build_bundle(cache_dir: Path | None = None) -> Path:
    """Build ``llem.pyz``, or find the one that was built from the same sources.

    Args:
        cache_dir: Where bundles are kept; default: below the user's cache folder.

    Returns:
        Path of the bundle; the name of its folder is the hash of its bytes.
    """
    content = _pack()
    folder = (cache_dir or _user_cache()) / hashlib.sha256(content).hexdigest()[:16]
    target = folder / BUNDLE
    if not target.is_file() or target.stat().st_size != len(content):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as handle:
            handle.write(content)
        Path(handle.name).chmod(0o644)
        Path(handle.name).replace(target)
    return target


def _pack() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        _add(archive, "__main__.py", _MAIN.encode())
        for name, path in sorted(set(_members())):
            _add(archive, name, path.read_bytes())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _MEMBER_TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


def _members() -> Iterator[tuple[str, Path]]:
    package = Path(llem_airflow.__file__).parent
    yield "llem_airflow/__init__.py", package / "__init__.py"
    for room in ("protocol", "measurement"):
        for path in (package / room).rglob("*"):
            if path.suffix == ".py":
                yield f"llem_airflow/{path.relative_to(package).as_posix()}", path
    yield "pynvml.py", pynvml_file()
    for what, group in (("engine", ENGINES_GROUP), ("meter", METERS_GROUP)):
        for entry in importlib.metadata.entry_points(group=group):
            yield from _plugin(entry, what)


def _plugin(entry: importlib.metadata.EntryPoint, what: str) -> Iterator[tuple[str, Path]]:
    """A third party's engine or meter: the top-level package or module that its entry point names, and its metadata.

    Its metadata is what the entry point is found by inside the container. What it depends on is the image's.
    """
    name = entry.module.partition(".")[0]
    found = importlib.util.find_spec(name)  # a top-level name is found without running its code
    if found is None or found.origin is None or entry.dist is None:
        raise FileNotFoundError(
            f"{what} {entry.name!r}: its module {name!r} is not installed as files: pip install its package again"
        )
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{name}/{path.relative_to(folder).as_posix()}", path
    if not folders:
        yield Path(found.origin).name, Path(found.origin)
    metadata = Path(str(entry.dist.locate_file(""))) / _metadata_folder(entry.dist, what)
    for wanted in ("METADATA", "entry_points.txt"):
        yield f"{metadata.name}/{wanted}", metadata / wanted


def _metadata_folder(distribution: importlib.metadata.Distribution, what: str) -> str:
    for file in distribution.files or ():
        if file.name == "entry_points.txt":
            return file.parts[0]
    raise FileNotFoundError(
        f"{distribution.name} brings {_AN[what]} but has no list of its files (RECORD): pip install it again"
    )


def pynvml_file() -> Path:
    """The one file of nvidia-ml-py. Found by its metadata, as importing it is measurement's business."""
    for file in importlib.metadata.files("nvidia-ml-py") or ():
        if file.as_posix() == "pynvml.py":
            return Path(str(file.locate()))
    raise FileNotFoundError(
        "pynvml.py is not where nvidia-ml-py says: pip install --force-reinstall nvidia-ml-py"
    )


def _user_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(root) / "llem-airflow" / "bundles"
