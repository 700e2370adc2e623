"""Bad study files by the thousand: each must give a located report, never a traceback, in bounded time.

    python -m benchmarks.fuzz_study [--examples 10000] [--seed 1]

Right files are broken in ways that people and machines break them: keys misspelt, values of other types, indentation,
cut-off ends, random bytes, aliases, deep nesting, huge numbers. What is still a study must plan; what is not must name
a line and a column of the file. Exit code 1 on the first example that does neither, which is then printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from llem_airflow.study import Problem, StudyFileError, load_study
from tests.study.scalars import SCALARS, keys, text_with

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST_S = 5.0
"""A file that keeps us longer is a hang, on a machine however busy."""

RICH = """\
study_name: fuzz
serving_mode: offline
engine: [transformers, vllm]
task:
  model: org/model
  max_output_tokens: 32
  dataset: {source: builtin, n_prompts: 4}
measurement: &m
  meter: cpu-estimate
  baseline: {enabled: true, duration_seconds: 10}
offline: {warmup: {n_prompts: 3}}
sweep:
  task.random_seed: [1, 2]
  task.max_input_tokens: {pow2: {min: 4, max: 64}}
  transformers.engine_params.dtype: [float16, float32]
  vllm.sampling_params.temperature: {min: 0, max: 1, num: 3}
  group:
  - {transformers.llem_execution.batch_size: [1, 2]}
  - {vllm.engine_params.max_num_seqs: 8, task.max_output_tokens: 8}
  - {}
experiments:
- {engine: vllm, task: {random_seed: 9}}
study_execution: {n_cycles: 2, experiment_order: latin_square}
runners: {transformers: process, vllm: container:some/image:1}
airflow: {schedule: "0 2 * * *", retries: 1, retry_delay: 5m, tags: [a]}
versions: [{name: v1, revision: abc, released: 2026-01-01}]
gpus: {count: 1, kind: any}
"""

ODD = [
    "1" * 400,
    "[" * 60,
    "{a: " * 60,
    "null", "~", "[]", "{}", "-1", "0", "1e999", ".nan", ".inf", "true", "no", "''", "'x'", "*m",
    "*none", "&a", "!!python/name:os.system", "[[[]]]", "|", ">", "%TAG", "@", "`", "-", "--",
    "---", "...", "#", ":", "0x", "0o8", "1_", "12e4567", "2026-01-01", "\x00", "\ufeff",
    "\U0001f600", "\t", "\u2028", "!x y", "{a: {b: {c: 1}}}", "[1, {}]", "<<: *m", "- -", "? a",
    "{min: 1, max: 0, num: 2}", "{log: {min: 0, max: 1, num: 3}}", "{pow2: {min: 5, max: 6}}",
]  # fmt: skip


def words() -> list[str]:
    """Every key of the grammar."""
    return sorted({part for path in keys() for name in path for part in name.split(".")})


def broken(rng: random.Random, seeds: list[str], keys: list[str]) -> bytes:
    """A file with a few things wrong."""
    text = rng.choice(seeds)
    for _ in range(rng.randint(1, 4)):
        text = rng.choice(BREAKS)(rng, text, keys)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + rng.randbytes(rng.randint(1, 20)) + data[place:]
    return data


def scalar_at_key(rng: random.Random) -> bytes:
    """A right file with a YAML scalar of some kind at one key."""
    return text_with(rng.choice(keys()), rng.choice(SCALARS)).encode("utf-8", "surrogatepass")


def _line(rng: random.Random, text: str) -> tuple[list[str], int]:
    lines = text.split("\n")
    return lines, rng.randrange(len(lines))


def _misspell(rng: random.Random, text: str, _keys: list[str]) -> str:
    if not text:
        return "x"
    place = rng.randrange(len(text))
    return text[:place] + rng.choice(["", "x", text[place] * 2, " ", "\n", ":"]) + text[place + 1 :]


def _value(rng: random.Random, text: str, _keys: list[str]) -> str:
    lines, index = _line(rng, text)
    lines[index] = lines[index].split(":")[0] + ": " + rng.choice(ODD)
    return "\n".join(lines)


def _key(rng: random.Random, text: str, keys: list[str]) -> str:
    lines, index = _line(rng, text)
    indent = " " * rng.choice([0, 0, 2, 2, 4])
    lines.insert(index, f"{indent}{rng.choice(keys)}: {rng.choice([*ODD, *keys])}")
    return "\n".join(lines)


def _drop(rng: random.Random, text: str, _keys: list[str]) -> str:
    lines, index = _line(rng, text)
    return "\n".join(lines[:index] + lines[index + 1 :])


def _cut(rng: random.Random, text: str, _keys: list[str]) -> str:
    return text[: rng.randrange(len(text) + 1)]


def _indent(rng: random.Random, text: str, _keys: list[str]) -> str:
    lines, index = _line(rng, text)
    lines[index] = rng.choice([" ", "  ", "\t", "    "]) + lines[index]
    return "\n".join(lines)


def _twice(rng: random.Random, text: str, _keys: list[str]) -> str:
    lines, index = _line(rng, text)
    return "\n".join([*lines, lines[index]])


def _odd(rng: random.Random, text: str, _keys: list[str]) -> str:
    place = rng.randrange(len(text) + 1)
    return text[:place] + rng.choice(ODD) + text[place:]


BREAKS = (_misspell, _misspell, _value, _value, _key, _key, _drop, _cut, _indent, _twice, _odd)


def check(path: Path) -> str:
    """What became of the file: ``planned`` or ``refused``.

    Raises:
        AssertionError: The report has no place, or the place is not in the file.
    """
    begin = time.process_time()
    problems: tuple[Problem, ...] | None = None
    report = ""
    try:
        study = load_study(path)
        json.dumps(study.plan.to_json(), allow_nan=False)
    except StudyFileError as error:
        problems = error.problems
        report = str(error)
    assert time.process_time() - begin < LONGEST_S, "it took too long"
    if problems is None:
        return "planned"
    assert problems, "no problem is named"
    assert len(report) < 200_000, "the report is endless"
    # YAML also breaks lines at U+0085, U+2028 and U+2029, as splitlines does
    lines = len(path.read_bytes().decode("utf-8", "replace").splitlines())
    for problem in problems:
        assert 1 <= problem.line <= lines + 1, f"no such line: {problem}"
        assert problem.column >= 1, f"no such column: {problem}"
        assert problem.found, f"nothing said: {problem}"
    return "refused"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    shipped = [path.read_text("utf-8") for path in (REPOSITORY / "dags" / "studies").glob("*.yaml")]
    starter = (REPOSITORY / "llem_airflow" / "cli" / "starter.yaml").read_text("utf-8")
    seeds, words_known = [RICH, RICH, starter, *shipped], words()
    outcomes: Counter[str] = Counter()
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        for number in range(options.examples):
            path.write_bytes(broken(rng, seeds, words_known) if number % 4 else scalar_at_key(rng))
            try:
                outcomes[check(path)] += 1
            except Exception:  # noqa: BLE001  # any exception at all is the finding
                print(f"example {number} (seed {options.seed}):\n{path.read_bytes()!r}\n")
                traceback.print_exc()
                return 1
    spent_s = time.process_time() - begin
    print(
        f"{options.examples} files, {dict(outcomes)}, no traceback, {spent_s / options.examples * 1e3:.1f} ms CPU each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
