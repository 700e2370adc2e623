"""YAML scalars of every kind, and texts that have one of them at one key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from tests.study.golden.schema import key_paths

NUMBERS = [
    "0x_",
    "0o_",
    "0b_",
    "-0x_",
    "0x",
    "0x_f",
    "1_",
    "_1",
    "1__2",
    "0x1p3",
    "1e999",
    "-1e999",
    "1e-999",
    ".nan",
    ".inf",
    "-.inf",
    ".NaN",
    "00",
    "007",
    "-0",
    "+1",
    "0.0",
    "1e400",
    "9223372036854775808",
    "-9223372036854775809",
    "3.14159265358979323846",
    "1e5",
    "0.1",
    "1",
    "2",
    "100",
    "-1",
    "1.5",
    "999999999999999999",
]
WORDS = [
    "~",
    "null",
    "12:30:45",
    "190:20:30",
    "2001-02-30",
    "2001-01-01",
    "2001-01-01T00:00:00Z",
    "0001-01-01",
    "9999-12-31T23:59:59",
    "true",
    "yes",
    "on",
    "NO",
    "{}",
    "[]",
    "[1]",
    "[[]]",
    "=",
    "<<",
    "*a",
    "&a",
    "-",
    "--",
    "---",
    "...",
    ",",
    "?",
    "|",
    ">",
    "@daily",
    "@every",
    "5m",
    "99999999999d",
    "1e9h",
    "http://x",
    "s3://b/k",
    "../../etc/passwd",
    "/",
    ".",
    "..",
    "~root",
    "Europe",
    "Asia/",
    "GMT+25",
    "posixrules",
]
TEXTS = (
    *("''", "' '", '"\\0"', '"\\ud83d"', '"\\U0001F600"', '"\\UFFFFFFFF"', '"\\x85"', '"\\u2028"', '"a\\nb"'),
    *('!!binary "aGk="', "!!binary x", "!!int a", "!!int 3", "!!float x", "!!bool q", "!!null x", "!!set {}"),
    *("!!python/object:os.system {}", "!foo bar", "{a: 1}", "{1: 2}", "[.nan]", '["\\0"]', "[1, 1e999, 0x_]", "['']"),
    *("{min: 1, max: 9, num: 3}", "{log: {min: 1, max: 1e308, num: 3}}", "'{{ x }}'", "'{% x %}'", "'~nouser/x'"),
    *("0 0 30 2 *", "0 0 2 * * *", "'* * * * *'", "H 0 * * *", "61 * * * *", "'\U0001f600'", "'\u202e'"),
    *("'" + "x" * 300 + "'", "['" + "x" * 101 + "']", "1" * 400, "1" * 5000, "\x00", "\t", "%", "`"),
)  # fmt: skip
SCALARS = (*NUMBERS, *WORDS, *TEXTS)

_HEAD = {
    "serving_mode": "serving_mode: offline\n",
    "task": "task: {model: org/m}\n",
    "measurement": "measurement: {meter: cpu-estimate}\n",
}


@cache
def keys() -> list[tuple[str, ...]]:
    """The path of every key and section of a study, and of some that engines and sweeps bring."""
    found = [tuple(str(part) for part in path if part != 0) for path in key_paths()]
    found += [
        ("sweep",),
        ("sweep", "task.random_seed"),
        ("sweep", "group"),
        ("sweep", "vllm.engine_params.x"),
        ("transformers", "engine_params", "dtype"),
        ("unknown",),
    ]
    return sorted(found)


def text_with(path: tuple[str, ...], scalar: str) -> str:
    """A study that is right but for the scalar at the path."""
    head = "".join(text for key, text in _HEAD.items() if key != path[0])
    return head + "".join(_nested(path, scalar)) + "\n"


def _nested(path: tuple[str, ...], scalar: str) -> Iterator[str]:
    if path[0] == "versions" and len(path) > 1:
        name = "" if path[1] == "name" else "name: a, "
        yield f"versions: [{{{name}{path[1]}: {scalar}}}]"
        return
    for depth, key in enumerate(path):
        yield f"{'' if depth == 0 else chr(10)}{'  ' * depth}{key}:"
    yield f" {scalar}"
    if path[0] == "task" and len(path) > 1 and path[1] != "model":
        yield "\n  model: org/m"
