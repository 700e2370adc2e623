"""Mutation run: small changes to the code, one at a time, each of which some test should notice.

    python .ci/mutants.py                    a seeded sample over all rooms
    python .ci/mutants.py analysis/noise     every mutant of the modules whose path holds one of these texts

The changes are cosmic-ray's operators; which of them, where and how many is in pyproject.toml. Each mutant is written
into a copy of the working tree and meets, in a forked process that has the libraries loaded, just the tests that run
its line (its module, for what runs at import). What no test can tell apart is in mutants-equivalent.toml, with why.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import fnmatch
import hashlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import parso
import pytest
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from coverage import Coverage

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]
EQUIVALENT = tomllib.loads((ROOT / ".ci/mutants-equivalent.toml").read_text(encoding="utf-8"))
PYTEST = (
    "-q",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "--hypothesis-seed=0",
    "--hypothesis-profile=mutants",
    "-m",
    CONFIG["marks"],
)


class DropElement(Operator):
    """Leaves one element out of a list, tuple, set or mapping of three or more: a field forgotten in a record."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Where elements are."""
        for first, *_ in self._elements(node):
            yield first.start_pos, first.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """The display without its element number ``index``."""
        kept = [each for number, each in enumerate(self._elements(node)) if number != index]
        node.children = [child for element in kept for child in element]
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        """None: cosmic-ray's own tests use them."""
        return ()

    @staticmethod
    def _elements(node: Any) -> list[list[Any]]:
        if node.type not in ("testlist_comp", "dictorsetmaker"):
            return []
        if any(child.type in ("sync_comp_for", "comp_for") for child in node.children):
            return []
        found: list[list[Any]] = [[]]
        for child in node.children:
            found[-1].append(child)
            if getattr(child, "value", "") == ",":
                found.append([])
        found = [element for element in found if element]
        return found if len(found) > 2 else []


class Mutant(NamedTuple):
    """One change.

    Attributes:
        path: The module, from the root.
        line: Line of the change, from 1.
        operator: Name of the operator.
        occurrence: Which of its places in the module.
    """

    path: str
    line: int
    operator: str
    occurrence: int


@dataclass
class Seen:
    """What the tests run, found out once without a mutant.

    Attributes:
        duration_s: Of each test, in seconds.
        by_line: Tests by module and line; None stands for import time.
        failed: Tests that fail without any mutant, and are left out.
    """

    duration_s: dict[str, float] = field(default_factory=dict)
    by_line: dict[tuple[str, int | None], set[str]] = field(default_factory=lambda: defaultdict(set))
    failed: set[str] = field(default_factory=set)

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Tests that run the mutant's line, the fastest first; of what runs at import, the module's."""
        found = self.by_line.get((mutant.path, mutant.line))
        if not found:
            module = re.compile(rf"\b{Path(mutant.path).stem}\b")
            files = {test.partition("::")[0] for test in self.duration_s}
            named = {file for file in files if module.search((ROOT / file).read_text(encoding="utf-8"))}
            found = self.by_line.get((mutant.path, None), set()) | {
                test for test in self.duration_s if test.partition("::")[0] in named
            }
        extra = {
            test
            for pattern, files in CONFIG["tests_in_other_processes"].items()
            if fnmatch.fnmatch(mutant.path, pattern)
            for test in self.duration_s
            if test.partition("::")[0] in files
        }
        return self.quick((found | extra) - self.failed)

    def quick(self, tests: set[str]) -> list[str]:
        """As many of the tests as the time for a mutant allows, the fastest first."""
        ordered = sorted(tests, key=self.duration_s.__getitem__)
        ends_s = accumulate(self.duration_s[test] for test in ordered)
        return [test for test, end_s in zip(ordered, ends_s, strict=True) if end_s <= CONFIG["longest_s"]]


def operator_of(name: str) -> Operator:
    """An operator by its name."""
    return DropElement() if name == "DropElement" else get_operator(f"core/{name}")()


def modules(room: str) -> list[str]:
    """The room's modules, from the root."""
    told = CONFIG["rooms"][room]
    found = [
        path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "llem_airflow" / room).rglob("*.py"))
    ]
    return [
        path
        for path in found
        if not any(fnmatch.fnmatch(path, f"*/{no}") for no in told.get("leave_out", ()))
    ]


def mutants(path: str) -> Iterator[Mutant]:
    """Every mutant of a module that compiles to something else; annotations and decorators stay as they are."""
    source = (ROOT / path).read_text(encoding="utf-8")
    tree = parso.parse(source)
    spared = _spared(ast.parse(source))
    for name in CONFIG["operators"]:
        operator = operator_of(name)
        places = [(place, node) for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence, ((begin, _), node) in enumerate(places):
            in_signature = node.parent is not None and node.parent.type == "parameters"  # a bare star
            if not in_signature and not any(first <= tuple(begin) < last for first, last in spared):
                yield Mutant(path, begin[0], name, occurrence)


def _spared(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found += node.decorator_list
        if isinstance(node, ast.FunctionDef):
            found += [node.returns] if node.returns else []
            found += [
                one.annotation for one in ast.walk(node.args) if isinstance(one, ast.arg) and one.annotation
            ]
        if isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
    return [((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)) for one in found]


def mutated(mutant: Mutant) -> str | None:
    """The module's text with the change; None where that is no Python, or the same."""
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    text: str | None = mutate_code(source, operator_of(mutant.operator), mutant.occurrence)
    try:
        return text if text and ast.dump(ast.parse(text)) != ast.dump(ast.parse(source)) else None
    except SyntaxError:
        return None


def changed(mutant: Mutant) -> tuple[str, str]:
    """The changed lines before and after, without what is around them."""
    before = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines()
    lines = list(difflib.ndiff(before, (mutated(mutant) or "").splitlines()))
    sides = [" ".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in ("- ", "+ ")]
    return sides[0], sides[1]


def is_equivalent(mutant: Mutant) -> bool:
    """Whether the list of equivalent mutants has it."""
    before, after = changed(mutant)
    return any(one["before"] == before and one["after"] == after for one in EQUIVALENT.get(mutant.path, ()))


def copy_tree() -> Path:
    """A copy of what git tracks or would, to be changed at will."""
    target = Path(tempfile.mkdtemp(prefix="llem-mutants-"))
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / "build").symlink_to(ROOT / "build")
    return target


def in_fork(tree: Path, act: Callable[[], int], timeout_s: float) -> int | None:
    """What a function returns in a forked process in that tree; None when it took too long."""
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            os.setsid()
            _enter(tree)
            code = act()
            sys.stdout.flush()
        os._exit(code)
    end_s = time.monotonic() + timeout_s
    status: int | None = None
    while status is None and time.monotonic() < end_s:
        done, told = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(told) if done else None
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it started
    if status is None:
        os.waitpid(child, 0)
    return status


def _enter(tree: Path) -> None:
    os.chdir(tree)
    sys.path = [str(tree), *(path for path in sys.path if Path(path) not in (ROOT, ROOT / ".ci"))]
    os.environ["PYTHONPATH"] = str(tree)
    silent = os.open(os.environ.get("LLEM_MUTANTS_LOG", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(silent, 1)
    os.dup2(silent, 2)


class Watch:
    """Notes for each test how long it takes, whether it passes, and which lines it runs."""

    def __init__(self, cover: Coverage, seen: Seen) -> None:
        self._cover, self._seen = cover, seen

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """One test."""
        self._cover.switch_context(item.nodeid)
        begin_s = time.monotonic()
        done = yield
        self._seen.duration_s[item.nodeid] = time.monotonic() - begin_s
        self._cover.switch_context("")
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Its outcome."""
        if report.failed:
            self._seen.failed.add(report.nodeid)


def look(tree: Path, room: str) -> Seen:
    """Run a room's tests once without a mutant; what they showed is kept until the room or its tests change."""
    files = CONFIG["rooms"][room]["tests"]
    known = hashlib.sha256(repr(files).encode())
    for name in (f"llem_airflow/{room}", "tests/conftest.py", *files):
        for path in sorted((tree / name).rglob("*.py")) or [tree / name]:
            known.update(path.read_bytes())
    kept = ROOT / "build/mutants" / known.hexdigest()[:16]
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        in_fork(tree, lambda: _look(tree, files, kept), CONFIG["longest_look_s"])
    if not kept.is_file():
        sys.exit("the tests did not come to their end without a mutant: see LLEM_MUTANTS_LOG")
    duration_s, by_line, failed = ast.literal_eval(kept.read_text(encoding="utf-8"))
    return Seen(duration_s, defaultdict(set, by_line), failed)


def _look(tree: Path, files: list[str], kept: Path) -> int:
    seen = Seen()
    cover = Coverage(data_file=None, include=[f"{tree}/llem_airflow/*"], config_file=False)
    cover.start()
    code = int(pytest.main([*PYTEST, *files], plugins=[Watch(cover, seen)]))
    cover.stop()
    data = cover.get_data()
    for path in data.measured_files():
        name = Path(path).relative_to(tree).as_posix()
        for line, contexts in data.contexts_by_lineno(path).items():
            seen.by_line[name, line] |= set(contexts) - {""}
            seen.by_line[name, None] |= set(contexts) - {""}
    kept.write_text(repr((seen.duration_s, dict(seen.by_line), seen.failed)), encoding="utf-8")
    return code


_tree: Path | None = None


def begin_worker(ready: Path) -> None:
    """Give this process a tree of its own."""
    global _tree  # noqa: PLW0603  # one worker, one tree
    for name in CONFIG["libraries"]:
        importlib.import_module(name)
    _tree = Path(tempfile.mkdtemp(prefix="llem-mutants-"))
    shutil.copytree(ready, _tree, symlinks=True, dirs_exist_ok=True)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def meet(mutant: Mutant | None, tests: list[str], limit_s: float, end_s: float) -> str:
    """``killed``, ``timeout`` or ``survived``; ``same`` for no change, ``late`` when the run's time is over.

    Without a mutant the tests meet the code as it is, which has to survive.
    """
    assert _tree is not None
    if time.monotonic() > end_s:
        return "late"
    if mutant is None:
        return _outcome(_tree, tests, limit_s)
    text = mutated(mutant)
    if text is None:
        return "same"
    if not tests:
        return "survived"
    path = _tree / mutant.path
    for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        cached.unlink()
    kept = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        return _outcome(_tree, tests, limit_s)
    finally:
        path.write_text(kept, encoding="utf-8")


def _outcome(tree: Path, tests: list[str], limit_s: float) -> str:
    code = in_fork(tree, lambda: int(pytest.main([*PYTEST, "-x", *tests])), limit_s)
    return "timeout" if code is None else "survived" if code == 0 else "killed"


def chosen(fragments: list[str]) -> dict[str, list[Mutant]]:
    """Mutants by room, shuffled by the seed: all of the modules that are named, or a sample."""
    every = {
        room: [
            one
            for path in modules(room)
            if not fragments or any(fragment in path for fragment in fragments)
            for one in mutants(path)
        ]
        for room in CONFIG["rooms"]
    }
    source = random.Random(CONFIG["seed"])  # noqa: S311  # a sample that is the same again
    total = sum(map(len, every.values()))
    share = 1.0 if fragments else min(1.0, CONFIG["sample"] / total)
    return {room: source.sample(found, round(share * len(found))) for room, found in every.items() if found}


def run_room(room: str, found: list[Mutant], workers: int, longest_s: float) -> bool:
    """Test a room's mutants and print its score and its survivors; whether the score is high enough."""
    ready = copy_tree()
    seen = look(ready, room)
    for test in sorted(seen.failed):
        print(f"left out, as it fails without a mutant: {test}")
    found = [one for one in found if not is_equivalent(one)]
    with ProcessPoolExecutor(
        workers, mp_context=get_context("fork"), initializer=begin_worker, initargs=(ready,)
    ) as pool:
        fastest = seen.quick(set(seen.duration_s) - seen.failed)
        if pool.submit(meet, None, fastest, 600, float("inf")).result() != "survived":
            sys.exit("tests fail in a worker without a mutant: see LLEM_MUTANTS_LOG")
        end_s = time.monotonic() + longest_s
        jobs = {}
        for mutant in found:
            tests = seen.tests_of(mutant)
            limit_s = CONFIG["patience_s"] + 5 * sum(seen.duration_s[test] for test in tests)
            jobs[mutant] = pool.submit(meet, mutant, tests, limit_s, end_s)
        told = {mutant: _told(mutant, job.result()) for mutant, job in jobs.items()}
    shutil.rmtree(ready)
    count = Counter(told.values())
    total = len(found) - count["same"] - count["late"]
    score = 1 - count["survived"] / total if total else 1.0
    left_out = f"; the time was over for {count['late']} more" if count["late"] else ""
    killed = f"{score:.1%} of {total} killed ({count['timeout']} by their time)"
    print(f"{room}: {killed}, {count['survived']} survive{left_out}")
    return bool(score >= CONFIG["least_score"])


def _told(mutant: Mutant, outcome: str) -> str:
    if outcome == "survived":
        before, after = changed(mutant)
        print(f"{mutant.path}:{mutant.line} {mutant.operator}\n    - {before}\n    + {after}", flush=True)
    return outcome


def main() -> int:
    """Run, and print a score and the survivors for each room; 1 where a room's score is too low."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("modules", nargs="*", help="parts of modules' paths; default: a sample of all rooms")
    asked.add_argument("--workers", type=int, default=os.cpu_count())
    asked.add_argument("--seconds", type=float, default=float("inf"), help="how long a room may take")
    told = asked.parse_args()
    good = [run_room(room, found, told.workers, told.seconds) for room, found in chosen(told.modules).items()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
