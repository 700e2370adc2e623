"""Failures: what went wrong with an attempt, whether another try can help, and what a person should do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llem_airflow.protocol.failure_texts import LIBRARIES, Rule, first
from llem_airflow.protocol.failures import CATEGORIES, advice, category_of, is_refusal, raised_in
from llem_airflow.protocol.redaction import Redactor
from llem_airflow.protocol.result import AttemptError
from llem_airflow.runners.failure_patterns import EXIT_CODES, PATTERNS

_SYMPTOMS = frozenset({"crash", "network", "unknown"})
"""What an attempt may see of a process that the kernel has killed; the kernel's own word says more."""

_FRAME = re.compile(r'\bFile "[^"]+", line \d+')
_CODE = re.compile(r"(?:^|[\])] ) {4,}\S|[\^~]{2,}\s*$")

_STARTS = re.compile(
    r"\bEngine core initialization failed\b|\bEngine process failed to start\b|\bSee root cause\b"
)
_REFUSED = re.compile(r"(?:^|\s)(ValueError|TypeError|NotImplementedError): (?P<what>[^\n]+)")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        category: One of CATEGORIES.
        retryable: Whether the same attempt can succeed later without anybody changing anything.
        hint: What to do, for a person.
    """

    category: str
    retryable: bool
    hint: str


class AttemptFailedError(RuntimeError):
    """An attempt failed; its box is gone and what it wrote has been brought out.

    Attributes:
        failure: Category, retry advice, hint.
        headline: What happened, in one sentence.
        evidence: Where the evidence lies.
        log_tail: Last lines of output.
        folder: Folder with what could be collected.
        exit_code: Exit code, or None when it is not known.
    """

    def __init__(
        self,
        failure: Failure,
        headline: str,
        *,
        folder: Path,
        evidence: str | None = None,
        log_tail: tuple[str, ...] = (),
        exit_code: int | None = None,
    ) -> None:
        self.failure = failure
        self.headline = headline
        self.folder = folder
        self.evidence = evidence or str(folder)
        self.log_tail = log_tail
        self.exit_code = exit_code
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [f"{self.headline} [{self.failure.category}]", f"What to do: {self.failure.hint}"]
        if self.log_tail:
            lines += ["Last lines of output:", *(f"  | {line}" for line in _telling(self.log_tail)[-15:])]
        return "\n".join(lines)

    def advise(self, text: str) -> None:
        """Add to what a person should do."""
        self.failure = replace(self.failure, hint=f"{self.failure.hint}; {text}")
        self.args = (self._text(),)

    def blank(self, redactor: Redactor) -> None:
        """Take the secrets out of every text."""
        self.headline, self.evidence = redactor.text(self.headline), redactor.text(self.evidence)
        self.failure = replace(self.failure, hint=redactor.text(self.failure.hint))
        self.log_tail = tuple(map(redactor.text, self.log_tail))
        self.args = (self._text(),)


def _telling(lines: tuple[str, ...]) -> list[str]:
    """Lines without the frames of tracebacks, which would push the error itself out of the last few."""
    kept: list[str] = []
    in_frame = False
    for line in lines:
        if _FRAME.search(line):
            in_frame = True
        elif not (in_frame and _CODE.search(line)):
            in_frame = False
            kept.append(line)
    return kept


@contextmanager
def told_without_secrets(redactor: Redactor) -> Iterator[None]:
    """Whatever is raised inside names no secret, and neither do its causes, which a task's log shows too."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, AttemptFailedError):
            error.blank(redactor)
        redactor.blank(error)
        raise


class GPUUnavailableError(AttemptFailedError):
    """No GPU that fits is free; the headline says who holds them.

    Attributes:
        ticket: Labels of the claim's place in the queue when there is time left to wait for its turn, else None.
    """

    def __init__(self, *args: Any, ticket: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ticket = ticket


def failure(category: str, *, retryable: bool | None = None, hint: str | None = None) -> Failure:
    """The failure of a category, with the advice that the category usually gets."""
    usual = CATEGORIES[category]
    return Failure(category, usual.retryable if retryable is None else retryable, hint or usual.hint)


def classify(
    exit_code: int | None,
    text: str,
    *,
    oom_killed: bool = False,
    error: AttemptError | BaseException | None = None,
) -> Failure:
    """Tell what kind of failure this is.

    What the attempt itself recognised comes first, then what the engine says of the container's end, then
    patterns in the text, then the exit code.

    Args:
        exit_code: Exit code of the container or process, or None when nothing ran.
        text: Last output of the attempt, or the text of an engine's refusal.
        oom_killed: Whether the kernel ended a process of the container for want of memory.
        error: The structured error that the attempt wrote, or the exception that was raised outside.
    """
    if isinstance(error, AttemptError):
        return _structured(error, text, oom_killed=oom_killed)
    if oom_killed:
        return failure("out_of_memory_host")
    said = "\n".join(part for part in (_chain(error), text) if part)
    return _by_text(said) or _by_exit_code(exit_code)


def _structured(error: AttemptError, text: str, *, oom_killed: bool) -> Failure:
    """The attempt's own word, then the kernel's, then what the output says of a failure that the attempt only wraps."""
    name = category_of(error.category)
    rule = first(LIBRARIES, f"{error.type}: {error.message}")
    found = failure(name) if name is not None else None
    if rule is not None and name in (None, rule.category):
        found = _of(rule)
    if found is None or found.category in _SYMPTOMS:
        if oom_killed:
            return failure("out_of_memory_host")
        found = _behind(error, text, found)
    if error.retryable_hint is not None and found.retryable != error.retryable_hint:
        found = replace(found, retryable=error.retryable_hint)
    return found


def _behind(error: AttemptError, text: str, found: Failure | None) -> Failure:
    """What is behind an error that names no reason: a benign line of the output must not win over one that does."""
    if is_refusal(error.type, raised_in(error.traceback)):
        return found or failure("config")
    seen = _by_text(text)
    if seen is not None and seen.category not in _SYMPTOMS:
        return seen
    refused = _REFUSED.findall(text) if _STARTS.search(error.message) else []
    if refused:
        return failure("config", hint=f"correct the value that the engine refused: {refused[-1][1].strip()}")
    return found or seen or failure("crash", hint=_crash_hint(error))


def _crash_hint(error: AttemptError) -> str:
    return f"the traceback of {error.type} is in the error file of the evidence (phase {error.phase!r})"


def headline_of(error: AttemptError, found: Failure) -> str:
    """What an attempt said of its failure, in one sentence; what to do about it is said beside."""
    said = error.message.removesuffix(advice(found.hint)).rstrip()
    return f"the attempt failed in phase {error.phase!r}: {error.type}: {said or error.type}"


def _chain(error: BaseException | None) -> str:
    """Texts of an exception and its causes: the last word is often a 404 that hides the reason."""
    texts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(reversed(texts))


def _by_text(text: str) -> Failure | None:
    found = first(PATTERNS, text)
    return None if found is None else _of(found)


def _of(rule: Rule) -> Failure:
    return failure(rule.category, retryable=rule.retryable, hint=rule.hint)


def _by_exit_code(exit_code: int | None) -> Failure:
    if exit_code in EXIT_CODES:
        category, hint = EXIT_CODES[exit_code]
        return failure(category, hint=hint)
    return failure("unknown")
