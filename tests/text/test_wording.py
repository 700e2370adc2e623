from __future__ import annotations

import pytest

from llem_airflow.text.wording import counted


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 cycles"), (1, "1 cycle"), (2, "2 cycles"), (1200, "1,200 cycles")]
)
def test_only_one_thing_is_in_the_singular(number: int, told: str) -> None:
    assert counted(number, "cycle") == told
