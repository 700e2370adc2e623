from __future__ import annotations

import re
from pathlib import Path

from llem_airflow.analysis.aggregate import MERGED_SCHEMA
from llem_airflow.analysis.tables import CYCLES_SCHEMA, EXPERIMENTS_SCHEMA, POWER_FACTS, column_meanings

PAGE = Path(__file__).parents[2] / "llem_airflow" / "results" / "README.md"


def test_every_column_is_on_the_page_with_its_meaning_and_nothing_else_is() -> None:
    page = PAGE.read_text()
    for table in ("cycles", "experiments", "power", "reliability"):
        expected = [f"| `{name}` | {meaning} |" for part, name, meaning in column_meanings() if part == table]
        section = re.split(rf"^### {table}(?:\.parquet)?$", page, flags=re.MULTILINE)[1].split("\n#", 1)[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert rows == expected, f"{table}.parquet in {PAGE} should be:\n" + "\n".join(expected)


def test_every_column_of_the_files_has_a_meaning() -> None:
    known = {(table, name) for table, name, _ in column_meanings()}
    metrics = [name for name in CYCLES_SCHEMA.names if ("experiments", name) not in known]
    assert {("cycles", name) for name in CYCLES_SCHEMA.names} <= known
    statistics = [name.removeprefix("<metric>") for table, name in known if name.startswith("<metric>")]
    described = {f"{metric}{suffix}" for metric in metrics for suffix in statistics}
    assert {name for name in EXPERIMENTS_SCHEMA.names if ("experiments", name) not in known} <= described
    assert [name for name, _ in POWER_FACTS] == MERGED_SCHEMA.names
