"""The pages' own modules: the one that Airflow imports, and the others below an address of their release."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import HTTPException
from fastapi.responses import Response

from llem_airflow.web.answers import HEADERS

MODULES = {path.name: path for path in (Path(__file__).parent / "static").glob("*.js")}
"""What the browser may load; nothing else of the package is served."""
ENTRY = "app.js"
"""Airflow imports this one by its name, so it is asked for again at each load of Airflow's page."""
_RELEASE, _OTHERS = b"@release@", b"@modules@"


@cache
def release() -> str:
    """Changes when a module does: what lies below it never changes, so a browser asks for it once."""
    told = hashlib.sha256()
    for name in sorted(MODULES):
        told.update(name.encode() + MODULES[name].read_bytes())
    return told.hexdigest()[:12]


def entry(name: str) -> Response:
    """The module that Airflow imports, which names the others and their release."""
    if name != ENTRY:
        raise HTTPException(404, "there is no such module")
    others = " ".join(sorted(MODULES.keys() - {ENTRY}))
    text = MODULES[ENTRY].read_bytes().replace(_RELEASE, release().encode())
    return _module(text.replace(_OTHERS, others.encode()), "no-cache")


def module(below: str, name: str) -> Response:
    """Another module.

    Args:
        below: Its release and which try this is, ``<release>-<try>``: a browser may remember that an address failed.
        name: Its file.
    """
    path = MODULES.get(name)
    if path is None or name == ENTRY:
        raise HTTPException(404, "there is no such module")
    asked, _, _ = below.partition("-")
    # A page of an older release is given today's modules, which are not to be kept under that name.
    kept = "private, max-age=31536000, immutable" if asked == release() else "no-cache"
    return _module(path.read_bytes(), kept)


def _module(text: bytes, kept: str) -> Response:
    return Response(text, media_type="text/javascript", headers={**HEADERS, "Cache-Control": kept})
