"""Broken files by the hundred; ``python -m benchmarks.fuzz_study`` does the same by the ten thousand."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from benchmarks.fuzz_study import RICH, broken, check, scalar_at_key, words


def test_a_broken_file_is_planned_or_refused_with_a_place_and_never_a_traceback(tmp_path: Path) -> None:
    generator = random.Random(14)
    path, known = tmp_path / "study.yaml", words()
    outcomes: Counter[str] = Counter()
    for number in range(400):
        path.write_bytes(broken(generator, [RICH], known) if number % 4 else scalar_at_key(generator))
        outcomes[check(path)] += 1
    assert outcomes["planned"] > 20
    assert outcomes["refused"] > 200
