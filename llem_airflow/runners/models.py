"""Where a study's models are, asked before anything starts: folders, the hub's cache on this machine, the hub."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from difflib import get_close_matches
from pathlib import Path

_ASK_S = 5.0
_SHOWN = 12
_OF_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_of_the_hub(name: str) -> bool:
    """Whether the name has an owner: the hub knows what it is, which may want a token that only the attempt has."""
    return _OF_THE_HUB.fullmatch(name) is not None


def model_folder(name: str, models_dir: Path | None, study_folder: Path | None) -> Path | None:
    """The directory of a model: below the models folder, else ``name`` as a path (from the study file's folder)."""
    if models_dir is not None:
        below = (models_dir / name).resolve()
        if below.is_relative_to(models_dir) and below != models_dir and (below / "config.json").is_file():
            return below
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser() raises for an unknown ~name
    if not path.is_absolute() and study_folder is not None:
        path = study_folder / path
    return path.resolve() if path.is_dir() and (path / "config.json").is_file() else None


def missing_model(
    name: str, models_dir: Path | None, study_folder: Path | None, *, elsewhere: bool = False
) -> str | None:
    """Why a model is not to be had, with the folders that were searched and what is in them; None when it may be.

    Args:
        name: As the study names it.
        models_dir: Folder of model directories.
        study_folder: Folder of the study's file.
        elsewhere: It may lie in a cache that cannot be seen from here (a volume of the Docker engine).
    """
    if model_folder(name, models_dir, study_folder) is not None or _in_cache(name):
        return None
    why = _asked(name)
    if why is None or (elsewhere and not why.startswith("has no")):
        return None
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return (
        f"the model {name!r} is not to be had: {_searched(name, models_dir)}; it is not in the hub's cache {_cache()}; "
        f"the hub {endpoint} {why}. Correct task.model, or set LLEM_MODELS_DIR to the folder that has it"
    )


def _searched(name: str, models_dir: Path | None) -> str:
    if models_dir is None or not models_dir.is_dir():
        return f"there is no models folder {models_dir or ''}".rstrip()
    there = sorted(
        path.parent.relative_to(models_dir).as_posix() for path in models_dir.glob("**/config.json")
    )
    meant = get_close_matches(name, there, n=1, cutoff=0.7)
    listed = ", ".join(there[:_SHOWN]) + ", …" * (len(there) > _SHOWN) or "nothing that has a config.json"
    return f"{models_dir} has {listed}" + (f" (did you mean {meant[0]!r}?)" if meant else "")


def _cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _in_cache(name: str) -> bool:
    return any(_cache().glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json")) if name else False


def _asked(name: str) -> str | None:
    """None when the hub has the model, or when only it can tell; else what it says."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return "is not asked (HF_HUB_OFFLINE is set)"
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN", "").strip()
    request = urllib.request.Request(  # noqa: S310  # the endpoint is the user's own
        f"{endpoint}/api/models/{urllib.parse.quote(name)}",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=_ASK_S) as answer:  # noqa: S310  # as above
            json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in {401, 403, 404}:
            return "has no such model (a private or gated one needs HF_TOKEN)"
        return f"answered {error.code}"
    except (OSError, ValueError) as error:
        return f"cannot be asked ({getattr(error, 'reason', error)})"
    return None
