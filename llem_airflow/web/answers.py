"""Answers: JSON, files for download, the report, and the headers that keep what is in them from being executed."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from typing import Any

from fastapi.responses import HTMLResponse, Response

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Airflow keeps the theme that was chosen in its pages (light, dark or system), and a change of it reaches frames.
_FOLLOW_THEME = (
    "(()=>{const show=()=>{const t=localStorage.getItem('theme');const d=document.documentElement.dataset;"
    "if(t==='light'||t==='dark')d.theme=t;else delete d.theme};show();addEventListener('storage',show)})()"
)
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_FOLLOW_THEME.encode()).digest()).decode()
PAGE_HEADERS = {
    # A report is a document: nothing is fetched from elsewhere, it is shown only inside Airflow's own pages, and the
    # one script is ours, by its hash.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    f"script-src 'sha256-{_SCRIPT_HASH}'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_STYLE = """
:root{color-scheme:light dark;--paper:light-dark(#fff,#14171b);--ink:light-dark(#1b1f24,#e6e8eb);
--line:light-dark(#d5d9de,#3a4048);--well:light-dark(#f4f6f8,#1d2228)}
:root[data-theme=light]{color-scheme:light}:root[data-theme=dark]{color-scheme:dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:1.5rem auto;padding:0 1rem;
background:var(--paper);color:var(--ink);overflow-wrap:anywhere}
a{color:inherit}h1{font-size:1.4rem}
"""


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


def in_theme(page: str) -> str:
    """A page of HTML in the theme that is chosen in Airflow, not in that of the operating system."""
    return page.replace("<head>", f"<head><script>{_FOLLOW_THEME}</script>", 1)


def notice(title: str, text: str, status: int) -> HTMLResponse:
    """A page that says one thing.

    Args:
        title: Its heading, as text.
        text: What it says, as text.
        status: Status of the answer.
    """
    body = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(text)}</p></body></html>"
    )
    return HTMLResponse(in_theme(body), status_code=status, headers=PAGE_HEADERS)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
