"""Renews the pictures of the pages in llem_airflow/web/pictures: those that their browser tests have drawn, and more.

pytest tests/airflow/test_pages.py && python -m tests.airflow.pictures
"""

from __future__ import annotations

from PIL import Image

from tests.parts import REPOSITORY
from tests.web import pictures

SHOTS = REPOSITORY / "build" / "screenshots"
PICTURES = REPOSITORY / "llem_airflow" / "web" / "pictures"
SHOWN = {
    "studies": "pages-studies-light",
    "studies-phone": "pages-studies-phone-dark",
    "live": "pages-live-light",
    "trend": "pages-trend-light",
    "comparison": "pages-comparison-dark",
    "results": "pages-run-light",
    "task": "pages-task-dark",
    "card": "pages-card-light",
}
"""Screenshots by the name of the picture."""
WIDTH = 1100


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    made = {name: f"drawn-{name}" for name in pictures.main(SHOTS)}
    for name, shot in (SHOWN | made).items():
        with Image.open(SHOTS / f"{shot}.png") as whole:
            picture = whole.convert("RGB")
        picture.thumbnail((WIDTH, 4 * WIDTH))
        picture.save(PICTURES / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
