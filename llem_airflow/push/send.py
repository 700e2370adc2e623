"""Sending over HTTP: a server that is busy or away for a moment is asked again, one that refuses is quoted."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import httpx

_TRIES = 6
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_TIMEOUT_S = 60.0
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_SHOWN = 300


class PushError(RuntimeError):
    """The database did not take the points; the message says where, what it answered, and what to do."""


class HttpTarget:
    """A database that takes bodies at one address, open in a ``with``.

    Args:
        url: Address, which may hold a user and a password.
        headers: Sent with every body.
    """

    def __init__(self, url: httpx.URL, headers: Mapping[str, str]) -> None:
        auth = (url.username, url.password) if url.userinfo else None
        self.place = str(url.copy_with(userinfo=b"", query=None))
        self._url = url.copy_with(userinfo=b"")
        self._client = httpx.Client(headers=dict(headers), auth=auth, timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.close()

    def post(self, body: bytes) -> None:
        """Deliver a body.

        Raises:
            PushError: It was refused, or the server stayed busy or away over all tries.
        """
        pause_s = _FIRST_PAUSE_S
        for left in reversed(range(_TRIES)):
            asked_s = 0.0
            try:
                answer = self._client.post(self._url, content=body)
                if answer.is_success:
                    return
                said = f"HTTP {answer.status_code}: {answer.text.strip()[:_SHOWN] or answer.reason_phrase}"
                if answer.status_code not in _BUSY:
                    raise PushError(f"{self.place} refused the points with {said}{_hint(answer)}")
                asked_s = _retry_after_s(answer)
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
            if not left:
                raise PushError(
                    f"{self.place} took no points in {_TRIES} tries; the last one: {said}. What arrived stays; "
                    "the same command again writes the rest, and no point twice"
                )
            time.sleep(min(max(pause_s, asked_s), _LONGEST_PAUSE_S))
            pause_s *= 2


def http_url(url: str) -> httpx.URL:
    """A URL of HTTP's; one without scheme and host where it is none, which no target takes."""
    try:
        asked = httpx.URL(url)
    except httpx.InvalidURL:
        return httpx.URL()
    return asked if asked.scheme in {"http", "https"} and asked.host else httpx.URL()


def _retry_after_s(answer: httpx.Response) -> float:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number or a date); 0 where it does not."""
    told = answer.headers.get("retry-after", "")
    if told.isdigit():
        return float(told)
    try:
        until = email.utils.parsedate_to_datetime(told)
    except ValueError:
        return 0.0
    return (until - datetime.now(UTC)).total_seconds() if until.tzinfo else 0.0


def _hint(answer: httpx.Response) -> str:
    if answer.status_code in {401, 403}:
        return "; a user and a password go into the URL: http://USER:PASSWORD@HOST"
    if "database not found" in answer.text:
        return "; the database's administrator makes it with CREATE DATABASE"
    if answer.status_code == 404:
        return "; is the path of the URL right?"
    if "out of order" in answer.text or "too old" in answer.text or "out of bounds" in answer.text:
        return (
            "; Prometheus itself takes old points only with `out_of_order_time_window` in its configuration; "
            "VictoriaMetrics and Mimir take them"
        )
    return ""
