"""Mutation run: small changes to the code, one at a time, each of which some test should notice.

    python .ci/mutants.py                          a seeded sample over all rooms
    python .ci/mutants.py analysis/noise           every mutant of the modules whose path holds one of these texts
    python .ci/mutants.py analysis/ --sample 400   a seeded sample of these modules, of each in proportion

The changes are cosmic-ray's operators; which of them, where and how many is in pyproject.toml. Each mutant meets just
the tests that run its line, the fastest first, in a process forked from a pytest that has collected them: a change
inside a function is put into the loaded function, and only one that acts at import makes pytest load the modules again.
Which test runs which line is kept in build/mutants for each test file. What survives for a reason is in
mutants-survivors.toml: what no test can tell apart does not count.

mutmut 3 changes functions only, and most of this project's limits and lists of fields are at the top of modules;
cosmic-ray itself starts a test run for each change, which takes longer than the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest
from coverage import Coverage
from mutating import CONFIG, ROOT, Mutant, changed, listed, modules, mutants, mutated, outdated
from scipy.stats import binomtest

PYTEST = (
    *("-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("--hypothesis-seed=0", "--hypothesis-profile=mutants", "-m", CONFIG["marks"]),
)


@dataclass
class Seen:
    """What the tests run, found out once without a mutant.

    Attributes:
        duration_s: Of each test, in seconds.
        by_line: Tests by module and line; None stands for any line.
        at_import: Modules and lines that ran before any test did.
        failed: Tests that fail without any mutant, and are left out.
    """

    duration_s: dict[str, float] = field(default_factory=dict)
    by_line: dict[tuple[str, int | None], set[str]] = field(default_factory=lambda: defaultdict(set))
    at_import: set[tuple[str, int]] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def add(self, told: dict[str, Any]) -> None:
        """Take in what was kept of one test file."""
        self.duration_s |= told["duration_s"]
        self.failed |= set(told["failed"])
        self.at_import |= {(path, line) for path, lines in told["at_import"].items() for line in lines}
        for test, paths in told["lines"].items():
            for path, lines in paths.items():
                for line in (None, *lines):
                    self.by_line[path, line].add(test)

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Tests that run the mutant's line, the fastest first; of what runs at import, the module's."""
        found = self.by_line.get((mutant.path, mutant.line))
        if not found:
            path = Path(mutant.path)
            module = re.compile(rf"\b{path.parent.name if path.stem == '__init__' else path.stem}\b")
            files = {test.partition("::")[0] for test in self.duration_s}
            named = {file for file in files if module.search(text_of(file))}
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


@cache
def text_of(file: str) -> str:
    """The text of a file of tests."""
    return (ROOT / file).read_text(encoding="utf-8")


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


def without_core_s(process: int) -> float:
    """How long a process has waited for a core: on a busy machine nothing is slower for that."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return 0.0


def in_fork(act: Callable[[], int], timeout_s: float) -> int | None:
    """What a function returns in a forked process; None when it took too long."""
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            os.setsid()
            code = act()
            sys.stdout.flush()
        os._exit(code)
    end_s = time.monotonic() + timeout_s
    status: int | None = None
    while status is None and (time.monotonic() < end_s or time.monotonic() < end_s + without_core_s(child)):
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


def caches() -> list[Any]:
    """Functions of the package that keep what they return."""
    gc.unfreeze()  # tests/conftest.py hides from the collector what it has collected
    kept = type(text_of)
    return [
        one for one in gc.get_objects() if isinstance(one, kept) and f"{one.__module__}".startswith("llem_")
    ]


def forget(kept: list[Any]) -> None:
    """Empty such caches."""
    for one in kept:
        one.cache_clear()


class Without:
    """Leaves out tests by what stands in brackets behind their names."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Those that run the same on files."""
        items[:] = [one for one in items if not re.search(CONFIG["without"], one.nodeid)]


SHARED = "::what its tests share"


class Watch:
    """Notes for each test how long it takes, whether it passes, and which lines it runs.

    What runs to set up a fixture of several tests is noted for their file: any of them may notice a change in it.
    """

    def __init__(self, cover: Coverage, seen: Seen) -> None:
        self._cover, self._seen, self._caches, self._test = cover, seen, list[Any](), ""

    def pytest_collection_finish(self) -> None:
        """What tests before would else find out for those behind them, whose lines it would hide."""
        self._caches = caches()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """One test."""
        forget(self._caches)
        self._test = item.nodeid
        self._cover.switch_context(item.nodeid)
        begin_s = time.monotonic() - without_core_s(os.getpid())
        done = yield
        self._seen.duration_s[item.nodeid] = time.monotonic() - without_core_s(os.getpid()) - begin_s
        self._cover.switch_context("")
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """A fixture, of one test or of several."""
        if fixturedef.scope == "function":
            return (yield)
        self._cover.switch_context(self._test.partition("::")[0] + SHARED)
        done = yield
        self._cover.switch_context(self._test)
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Its outcome."""
        if report.failed:
            self._seen.failed.add(report.nodeid)


def look(tree: Path, room: str) -> Seen:
    """Run a room's tests once without a mutant; what a file of tests shows is kept until it or the room changes."""
    files = test_files(tree, room)
    shared = hashlib.sha256(Path(__file__).read_bytes())
    for name in (f"llem_airflow/{room}", "tests/conftest.py", *CONFIG["rooms"][room]["tests"]):
        for path in sorted((tree / name).rglob("*.py")) or [tree / name]:
            if not path.name.startswith("test_"):
                shared.update(path.read_bytes())
    kept = {
        file: ROOT
        / "build/mutants"
        / hashlib.sha256(shared.digest() + (tree / file).read_bytes()).hexdigest()[:16]
        for file in files
    }
    new = {file: path for file, path in kept.items() if not path.is_file()}
    if new:
        (ROOT / "build/mutants").mkdir(parents=True, exist_ok=True)
        in_fork(lambda: _look(tree, new), CONFIG["longest_look_s"])
    seen = Seen()
    for file, path in kept.items():
        if not path.is_file():
            sys.exit(f"{file} did not come to its end without a mutant: see LLEM_MUTANTS_LOG")
        seen.add(json.loads(path.read_text(encoding="utf-8")))
    return seen


def test_files(tree: Path, room: str) -> list[str]:
    """Files with a room's tests, from the root."""
    found = [
        path
        for name in CONFIG["rooms"][room]["tests"]
        for path in [tree / name, *(tree / name).rglob("*.py")]
    ]
    return sorted({path.relative_to(tree).as_posix() for path in found if path.name.startswith("test_")})


def _look(tree: Path, new: dict[str, Path]) -> int:
    _enter(tree)
    seen = Seen()
    cover = Coverage(data_file=None, include=[f"{tree}/llem_airflow/*"], config_file=False)
    cover.start()
    code = int(
        pytest.main(
            [*_pytest(tree), *new, *(f"--deselect={test}" for test in CONFIG["too_slow"])],
            plugins=[Without(), Watch(cover, seen)],
        )
    )
    cover.stop()
    data = cover.get_data()
    lines: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path in data.measured_files():
        name = Path(path).relative_to(tree).as_posix()
        for line, contexts in data.contexts_by_lineno(path).items():
            for test in contexts:
                lines[test][name].append(line)
    for file, kept in new.items():
        tests = {test for test in seen.duration_s if test.partition("::")[0] == file}
        told = {
            "duration_s": {test: seen.duration_s[test] for test in tests},
            "failed": sorted(tests & seen.failed),
            "at_import": lines[""],
            "lines": {test: _both(lines[test], lines[file + SHARED]) for test in tests},
        }
        kept.write_text(json.dumps(told), encoding="utf-8")
    return code


def _both(own: dict[str, list[int]], shared: dict[str, list[int]]) -> dict[str, list[int]]:
    """Lines by module, of either."""
    return {path: sorted({*own.get(path, ()), *shared.get(path, ())}) for path in sorted({*own, *shared})}


def _pytest(tree: Path) -> list[str]:
    return [*PYTEST, f"--basetemp={tree}-tmp"]


def replaced(before: CodeType, after: CodeType) -> dict[CodeType, CodeType] | None:
    """The functions' code that differs; None where something else differs, which acts when the module is loaded."""
    found: dict[CodeType, CodeType] = {}
    sides = [[one for one in code.co_consts if isinstance(one, CodeType)] for code in (before, after)]
    if before.co_flags & inspect.CO_OPTIMIZED:  # a function; a module and the body of a class are not
        if before.co_freevars != after.co_freevars:
            return None
        if before != after:
            found[before] = after
    elif _own(before) != _own(after) or len(sides[0]) != len(sides[1]):
        return None
    for inner, other in zip(*sides, strict=False):
        deeper = replaced(inner, other) if inner.co_name == other.co_name else {}
        if deeper is None:
            return None
        found |= deeper
    return found


def _own(code: CodeType) -> tuple[object, ...]:
    constants = [repr(one) for one in code.co_consts if not isinstance(one, CodeType)]
    return code.co_code, code.co_names, constants


class Job(NamedTuple):
    """A mutant and the tests it meets; without a mutant they meet the code as it is, which has to survive."""

    mutant: Mutant | None
    tests: tuple[str, ...]
    limit_s: float


class Loop:
    """In place of pytest's own loop: for each mutant, its tests in a fork of the session that has collected them."""

    def __init__(
        self, tree: Path, jobs: list[tuple[Job, dict[CodeType, CodeType]]], tell: Callable[[Job, str], None]
    ):
        self._tree, self._jobs, self._tell = tree, jobs, tell

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All mutants."""
        items = {item.nodeid: item for item in session.items}
        loaded: dict[CodeType, list[FunctionType]] = defaultdict(list)
        forget(caches())  # what was found out while collecting is found out by the mutant, too
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and one.__code__.co_filename.startswith(str(self._tree)):
                loaded[one.__code__].append(one)
        gc.freeze()
        for job, codes in self._jobs:
            lost = codes and not any(before in loaded for before in codes)
            if job.mutant and lost and is_loaded(self._tree / job.mutant.path):
                raise LookupError(f"the changed function is not loaded: {job.mutant}")
            asked = [items[test] for test in job.tests]

            def act(codes: dict[CodeType, CodeType] = codes, asked: list[pytest.Item] = asked) -> int:
                for before, after in codes.items():
                    for function in loaded[before]:
                        function.__code__ = after
                return self._first_failure(session, asked)

            with written(self._tree, job.mutant):
                self._tell(job, told_by(in_fork(act, job.limit_s)))
        return True

    @staticmethod
    def _first_failure(session: pytest.Session, items: list[pytest.Item]) -> int:
        for item, following in zip(items, [*items[1:], None], strict=True):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return 1
        return 0


def is_loaded(path: Path) -> bool:
    """Whether this process has loaded a module; what it starts loads the changed one."""
    return any(getattr(module, "__file__", None) == str(path) for module in list(sys.modules.values()))


def told_by(code: int | None) -> str:
    """What pytest's exit status says of the mutant."""
    return "timeout" if code is None else "survived" if code == 0 else "killed"


@contextlib.contextmanager
def written(tree: Path, mutant: Mutant | None) -> Iterator[None]:
    """The mutant in its file, for what loads the module anew."""
    if mutant is None:
        yield
        return
    path = tree / mutant.path
    kept, times = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(mutated(mutant) or "", encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(kept, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # its bytecode counts again


def files_of(jobs: list[Job]) -> list[str]:
    """The files with the jobs' tests."""
    return sorted({test.partition("::")[0] for job in jobs for test in job.tests})


def work(ready: Path, seen: Seen, jobs: list[Job], tell: Callable[[Job, str], None]) -> int:
    """One worker, in a process of its own: first the mutants inside functions, in one session, then the rest."""
    tree = Path(tempfile.mkdtemp(prefix="llem-mutants-"))
    shutil.copytree(ready, tree, symlinks=True, dirs_exist_ok=True)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    _enter(tree)
    try:
        codes = {job: _codes(tree, job.mutant, seen) for job in jobs}
        inside = [(job, replacing) for job, replacing in codes.items() if replacing is not None]
        loop = [*_pytest(tree), "-s", *files_of(jobs)]
        in_fork(lambda: int(pytest.main(loop, plugins=[Without(), Loop(tree, inside, tell)])), float("inf"))
        for job, replacing in codes.items():
            if replacing is None:
                with written(tree, job.mutant):
                    tell(job, told_by(in_fork(partial(_fresh, tree, job.tests), job.limit_s)))
        return 0
    finally:
        shutil.rmtree(tree)
        shutil.rmtree(f"{tree}-tmp", ignore_errors=True)


def _write_bytecode(tree: Path, jobs: list[Job]) -> int:
    _enter(tree)
    return int(pytest.main([*_pytest(tree), "--collect-only", *files_of(jobs)]))


def _fresh(tree: Path, tests: tuple[str, ...]) -> int:
    return int(pytest.main([*_pytest(tree), "-x", *tests], plugins=[Without()]))


def _codes(tree: Path, mutant: Mutant | None, seen: Seen) -> dict[CodeType, CodeType] | None:
    if mutant is None:
        return {}
    if (mutant.path, mutant.line) in seen.at_import:
        return None
    name = str(tree / mutant.path)
    sources = Path(name).read_text(encoding="utf-8"), mutated(mutant) or ""
    before, after = (compile(source, name, "exec", dont_inherit=True) for source in sources)
    return replaced(before, after)


def equivalent(mutant: Mutant) -> bool:
    """Whether the list says that no test can tell it from the code."""
    return bool((listed(mutant) or {}).get("equivalent"))


def chosen(fragments: list[str], size: int | None, seed: int) -> dict[str, list[Mutant]]:
    """Mutants by room, in the seed's order: all, or a sample with each module in proportion, and at least one of it."""
    every: dict[str, dict[str, list[Mutant]]] = {
        room: {
            path: list(mutants(path))
            for path in modules(room)
            if not fragments or any(fragment in path for fragment in fragments)
        }
        for room in CONFIG["rooms"]
    }
    source = random.Random(seed)  # noqa: S311  # a sample that is the same again
    total = sum(len(found) for paths in every.values() for found in paths.values())
    share = 1.0 if size is None else min(1.0, size / max(total, 1))
    sampled = {
        room: [
            one
            for found in paths.values()
            for one in source.sample(found, min(len(found), max(1, round(share * len(found)))))
        ]
        for room, paths in every.items()
    }
    real = {
        room: [one for one in found if mutated(one) is not None and not equivalent(one)]
        for room, found in sampled.items()
    }
    return {room: source.sample(found, len(found)) for room, found in real.items() if found}


def run_room(room: str, found: list[Mutant], workers: int) -> bool:
    """Test a room's mutants and print its score and its survivors; whether the score is high enough."""
    ready = copy_tree()
    seen = look(ready, room)
    for test in sorted(seen.failed):
        print(f"left out, as it fails without a mutant: {test}")
    met = {mutant: seen.tests_of(mutant) for mutant in found}
    jobs = [Job(None, tuple(seen.quick({test for tests in met.values() for test in tests})), 600)]
    for mutant, tests in met.items():
        if tests:
            limit_s = CONFIG["patience_s"] + 5 * sum(seen.duration_s[test] for test in tests)
            jobs.append(Job(mutant, tuple(tests), limit_s))
    untested = [mutant for mutant, tests in met.items() if not tests]
    in_fork(partial(_write_bytecode, ready, jobs), CONFIG["longest_look_s"])
    for mutant in untested:
        _say_survivor(mutant)
    count = Counter(survived=len(untested))
    for mutant, outcome in _outcomes(ready, seen, jobs, workers):
        if mutant is None:
            if outcome != "survived":
                sys.exit("tests fail in a worker without a mutant: see LLEM_MUTANTS_LOG")
            continue
        count[outcome] += 1
        if outcome == "survived":
            _say_survivor(mutant)
        if count.total() % 50 == 0:
            print(f"{count.total()} of {len(found)}", file=sys.stderr)
    shutil.rmtree(ready)
    total, killed = count.total(), count["killed"] + count["timeout"]
    low, high = binomtest(killed, total).proportion_ci(method="wilson")
    print(
        f"{room}: {killed / total:.1%} of {total} killed (95 % interval {low:.1%} to {high:.1%}, "
        f"{count['timeout']} by their time), {count['survived']} survive"
    )
    return killed / total >= float(CONFIG["least_score"])


def _outcomes(ready: Path, seen: Seen, jobs: list[Job], workers: int) -> Iterator[tuple[Mutant | None, str]]:
    answers = get_context("fork").SimpleQueue()
    children = []
    for number in range(workers):
        share = [jobs[0], *jobs[1 + number :: workers]]

        def act(share: list[Job] = share) -> int:
            return work(ready, seen, share, lambda job, outcome: answers.put((job.mutant, outcome)))

        children.append(Thread(target=in_fork, args=(act, float("inf")), daemon=True))
        children[-1].start()
    for _ in range(len(jobs) - 1 + workers):
        while answers.empty() and any(child.is_alive() for child in children):
            time.sleep(0.05)
        if answers.empty():
            sys.exit("a worker ended before its mutants did: see LLEM_MUTANTS_LOG")
        yield answers.get()


def _say_survivor(mutant: Mutant) -> None:
    before, after = changed(mutant)
    why = (listed(mutant) or {}).get("why", "")
    print(f"{mutant.path}:{mutant.line} {mutant.operator}\n    - {before}\n    + {after}", flush=True)
    print(f"    {why}\n" if why else "", end="", flush=True)


def main() -> int:
    """Run, and print a score and the survivors for each room; 1 where a room's score is too low."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("modules", nargs="*", help="parts of modules' paths; default: a sample of all rooms")
    asked.add_argument(
        "--sample", type=int, help="how many mutants; default: all of the modules that are named"
    )
    asked.add_argument("--seed", type=int, default=CONFIG["seed"], help="of the sample")
    asked.add_argument("--workers", type=int, default=os.cpu_count())
    told = asked.parse_args()
    size = told.sample or (None if told.modules else CONFIG["sample"])
    if found := outdated():
        sys.exit("\n".join(("listed as survivors, and no longer in the code:", *found)))
    for name in CONFIG["libraries"]:
        importlib.import_module(name)
    rooms = chosen(told.modules, size, told.seed)
    good = [run_room(room, sample, told.workers) for room, sample in rooms.items()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
