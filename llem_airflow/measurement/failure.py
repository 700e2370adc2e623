"""Failures of an attempt that it can recognise itself, and what it says about them."""

from __future__ import annotations

import errno
import os
import traceback

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.failure_texts import LIBRARIES, OFFLINE, Rule, first, rule
from llem_airflow.protocol.failures import CATEGORIES, SAID_INSIDE, advice, category_of, causes, is_refusal
from llem_airflow.protocol.processes import oom_kills
from llem_airflow.protocol.redaction import Redactor, secrets_in
from llem_airflow.protocol.result import AttemptError


class MeasurementError(RuntimeError):
    """The attempt cannot go on, and says what to do.

    Attributes:
        category: One of ``protocol.result.ERROR_CATEGORIES``.
        retryable: Whether trying again can help; None for what the table of failures says of the category.
    """

    def __init__(self, message: str, *, category: str, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.category = category
        self.retryable = retryable


_MESSAGES = (
    # Said by an exception these mean what they say; in a log they could stand anywhere.
    rule(
        r"\b(?:is not a valid|not supported for|must be (?:a |one of|positive|greater|in)|has to be (?:a|in)|"
        r"should be (?:one of|a|in))\b",
        "config",
    ),
    rule(
        r"^(?:\w+ )*ImportError\b",
        "engine_missing",
        hint="a setting needs a package that is not in this image: use an image that holds it, or remove the setting",
    ),
    rule(
        r"^(?:\w+ )*(?:ConnectError|ConnectTimeout|ReadTimeout|MaxRetryError|NewConnectionError|ProxyError|gaierror"
        r"|ClientConnectorError|RemoteProtocolError|ChunkedEncodingError|IncompleteRead|ConnectionRefusedError"
        r"|HubConnectionError)\b",
        "network",
    ),
    rule(r"^(?:\w+ )*MeterUnavailableError\b", "meter_unavailable"),
)

_ADDRESS_IN_USE = rule(r"\baddress already in use\b", "port_taken")

_ERRNO = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.ENOMEM: "out_of_memory_host",
    errno.EACCES: "permission",
    errno.EROFS: "permission",
}

_WORDS = {name: said for said, name in SAID_INSIDE.items() if said not in ("timeout", "tokenizer_missing")}
"""The error file's words for categories that have another name there."""

_killed_before = oom_kills()


def recognise(error: BaseException) -> tuple[str | None, bool | None, str]:
    """Category, retry hint and advice for an exception; ``(None, None, "")`` when it is not known.

    The outermost exception is often a wrapper ("Engine core initialization failed") and its cause the reason, so
    the first of the chain that says more than "it crashed" counts.
    """
    chain = causes(error)
    for cause in chain:
        if isinstance(cause, MeasurementError):
            name = category_of(cause.category)
            usual = CATEGORIES[name].retryable if name else False
            return cause.category, usual if cause.retryable is None else cause.retryable, ""
        found = _rule_for(cause)
        if found is not None and found.category == "network":
            # Wrappers have the same words for a hub that was not even asked.
            return _told(next((rule for rule in map(_rule_for, chain) if rule is OFFLINE), found))
        if found is not None and found.category != "crash":
            return _told(found)
    if _refused(error):
        return "bad_parameter", False, advice(CATEGORIES["config"].hint)
    if _killed_before is not None and (oom_kills() or 0) > _killed_before:
        return "out_of_memory_host", False, advice(CATEGORIES["out_of_memory_host"].hint)
    return None, None, ""


def from_output(text: str) -> tuple[str, str] | None:
    """Category and advice for what a program of an engine has printed; None when that tells no known reason.

    Args:
        text: The last lines.
    """
    found = first((*LIBRARIES, _ADDRESS_IN_USE), text)
    if found is None or found.category == "crash":
        return None
    said, _, what_to_do = _told(found)
    return said, what_to_do


def _rule_for(error: BaseException) -> Rule | None:
    if isinstance(error, OSError) and error.errno in _ERRNO and "/dev/shm" not in str(error):  # noqa: S108  # a text
        return Rule("", _ERRNO[error.errno])
    names = " ".join(
        cls.__name__ for cls in type(error).__mro__ if cls not in (object, BaseException, ConnectionError)
    )
    text = f"{names}: {error}"
    return first(LIBRARIES, text) or first(_MESSAGES, text)


def _told(found: Rule) -> tuple[str, bool, str]:
    usual = CATEGORIES[found.category]
    retryable = usual.retryable if found.retryable is None else found.retryable
    said = found.said_inside or _WORDS.get(found.category, found.category)
    return said, retryable, advice(found.hint or usual.hint)


def _refused(error: BaseException) -> bool:
    """Whether it, or what it was raised from, is a library's refusal of a parameter."""
    for cause in causes(error, of_handling=False):
        frames = traceback.extract_tb(cause.__traceback__)
        if is_refusal(type(cause).__name__, frames[-1].filename if frames else None):
            return True
    return False


def attempt_error(error: BaseException, phase: str) -> AttemptError:
    """The structured error of a failed attempt, without secrets.

    Args:
        error: What was raised.
        phase: The phase it was raised in.
    """
    category, retryable, what_to_do = recognise(error)
    message = f"{error}".strip() or type(error).__name__
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return AttemptError(
        schema_version=PROTOCOL_VERSION,
        type=type(error).__name__,
        message=redact(f"{message}\n{what_to_do}".strip()),
        traceback=redact(text),
        phase=phase,
        retryable_hint=retryable,
        category=category,
    )


def redact(text: str) -> str:
    """The text without the secrets of this process's environment."""
    return Redactor(secrets_in(os.environ), "***").text(text)
