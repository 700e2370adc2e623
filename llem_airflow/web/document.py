"""A page of ours inside Airflow: its headers, its theme, its HTML."""

from __future__ import annotations

import base64
import hashlib
import html

from fastapi.responses import HTMLResponse

# Airflow keeps the theme that was chosen in its pages (light, dark or system), and a change of it reaches frames.
_FOLLOW_THEME = (
    "(()=>{const show=()=>{const t=localStorage.getItem('theme');const d=document.documentElement.dataset;"
    "if(t==='light'||t==='dark')d.theme=t;else delete d.theme};show();addEventListener('storage',show)})()"
)
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_FOLLOW_THEME.encode()).digest()).decode()
HEADERS = {
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


def in_theme(page: str) -> str:
    """The page in the theme that is chosen in Airflow, not in that of the operating system."""
    return page.replace("<head>", f"<head><script>{_FOLLOW_THEME}</script>", 1)


def page(title: str, *parts: str, status: int = 200) -> HTMLResponse:
    """A page of some parts of HTML.

    Args:
        title: Its heading, as text.
        *parts: What follows, as HTML.
        status: Status of the answer.
    """
    body = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>"
    )
    return HTMLResponse(in_theme(body), status_code=status, headers=HEADERS)


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"
