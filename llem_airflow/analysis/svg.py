"""Matplotlib figures as inline SVG that follows the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

# Matplotlib knows no CSS variables. Each stand-in colour is used for nothing else and is replaced in the SVG.
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506", "#050507", "#050508")
PHASE = {
    "import": "#060601",
    "load": "#060602",
    "baseline_bare": "#060603",
    "baseline_context": "#060603",
    "baseline_loaded": "#060603",
    "warmup": "#060604",
    "measure": "#060605",
    "cooldown": "#060606",
}
WIDTH_IN = 11.1
"""Width of a picture: the width of the page."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--paper",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
    **{colour: f"--phase-{name.split('_')[0]}" for name, colour in PHASE.items()},
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # real text: readable by screen readers and searchable
    "text.parse_math": False,  # a dollar in a slug is a dollar
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in here, so that text and axes get the page's colours."""
    with mpl.rc_context(_SETTINGS):
        yield


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an ``<svg>`` element; the same figure gives the same text.

    Args:
        figure: Drawn inside ``drawing()``.
        name: Prefix of the element ids, distinct within a page.
        description: What it shows, for screen readers.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", text)
    width, height = figure.get_size_inches()
    label = str(Markup.escape(description))
    start = (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width * 72:g} {height * 72:g}" '
        f'style="width: {width * 96:g}px" xmlns="http://www.w3.org/2000/svg"'
    )
    return Markup(re.sub(r"<svg[^>]*", start, text, count=1))  # noqa: S704 - matplotlib escapes its texts
