"""Write every golden file anew: ``python -m tests.study.golden``; then read what ``git diff`` shows."""

from __future__ import annotations

import sys

from tests.study.golden import plans, reports, schema, terminal


def main() -> int:
    """Write them."""
    for path in reports.FILES:
        path.write_text(reports.written(reports.answers(path)), "utf-8")
    for path, text in (schema.golden(), *terminal.golden(), plans.golden()):
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
