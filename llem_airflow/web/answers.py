"""Answers of the API: JSON, files for download, and the headers that keep what is in them from being executed."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi.responses import Response

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def json_answer(value: Any) -> Response:
    """Plain JSON values."""
    return Response(json_text(value), media_type="application/json", headers=HEADERS)


def json_text(value: Any) -> str:
    """Plain JSON values as text; what is not finite is null, as everywhere in the results."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def download(data: Any, name: str, media_type: str) -> Response:
    """A file that is saved and never shown.

    Args:
        data: Its content.
        name: Its name; letters, digits, dots, dashes and underscores, as ``layout.folder_name`` gives them.
        media_type: What it is.
    """
    return Response(
        data,
        media_type=media_type,
        headers={**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'},
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
