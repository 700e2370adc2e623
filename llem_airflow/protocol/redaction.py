"""Secrets are blanked: one rule for both runners, for what an attempt says of itself and for every file it leaves.

A secret is looked for as it stands and as programs write it: URL-encoded, in base64 (alone or in the middle of
something), escaped for JSON, Python, a shell or HTML. What is compressed or encrypted cannot be searched.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

from llem_airflow.protocol.failures import causes

SHORTEST_SECRET = 6
"""Characters that a value must have to be blanked: a shorter one would blank numbers and words of the results."""

REDACTED = "[redacted]"

_SECRET_NAME = re.compile(
    r"TOKEN(?!IZER|S\b|_)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|FERNET_KEY|_PAT$"
    r"|SQL_ALCHEMY_CONN|RESULT_BACKEND$|BROKER_URL$|^AIRFLOW_CONN_",
    re.IGNORECASE,
)
_HUB_TOKEN = r"\bhf_[A-Za-z0-9]{20,}"  # noqa: S105  # a pattern, not a token
_COPY_BYTES = 1024 * 1024
_TEXTS = ("explanation", "strerror", "filename")
"""Where docker's errors and those of the operating system keep a text besides their arguments."""
_GUESSED_WORD = re.compile(r"[A-Za-z]{1,11}|\d{1,7}")
"""A variable with the name of a secret may hold a mere word, such as ``default``; blanking that would hurt."""


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is likely to hold a secret."""
    return bool(_SECRET_NAME.search(name))


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """Values of the variables that are likely to be secrets, and the passwords in those that are URLs."""
    found = [
        value
        for name, value in environment.items()
        if is_secret_name(name) and not _GUESSED_WORD.fullmatch(value.strip())
    ]
    for value in environment.values():
        if "://" in value and "@" in value:
            try:
                password = urllib.parse.urlsplit(value).password
            except ValueError:
                continue
            if password:
                found += [password, urllib.parse.unquote(password)]
    return found


class Redactor:
    """Replaces secrets in texts, bytes and streams.

    Args:
        secrets: The values. White space around one does not count, and each line of one with several is a secret too.
        mark: What takes their place.
    """

    def __init__(self, secrets: Iterable[str], mark: str = REDACTED) -> None:
        forms: set[str] = set()
        for secret in secrets:
            for part in {secret.strip(), *(line.strip() for line in secret.splitlines())}:
                if len(part) >= SHORTEST_SECRET:
                    forms |= set(_forms(part))
        ordered = sorted(forms, key=len, reverse=True)  # the longest first: one may hold another
        self._signs = [b"hf_", *(form.encode("utf-8", "surrogatepass") for form in ordered)]
        self._mark = mark
        text = "|".join([*map(re.escape, ordered), _HUB_TOKEN])
        self._text = re.compile(text)
        self._bytes = re.compile(text.encode("utf-8", "surrogatepass"))
        self.reach_bytes = max((len(form.encode("utf-8", "surrogatepass")) for form in ordered), default=64)
        """No secret is longer, however it is written."""

    def text(self, text: str) -> str:
        """The text without secrets."""
        return self._text.sub(lambda found: self._instead(found[0]), text)

    def data(self, data: bytes) -> bytes:
        """The bytes without secrets."""
        if not any(sign in data for sign in self._signs):
            return data  # a series of a day has a gigabyte: this look is 50 times as fast as the pattern
        return self._bytes.sub(
            lambda found: self._instead(found[0].decode("utf-8", "replace")).encode(), data
        )

    def copy(self, source: IO[bytes], target: IO[bytes]) -> None:
        """Copy a stream without its secrets, in bounded memory: one that lies over two chunks is found too."""
        held = b""
        while chunk := source.read(_COPY_BYTES):
            held = self.data(held + chunk)
            ready = max(0, len(held) - self.reach_bytes)
            target.write(held[:ready])
            held = held[ready:]
        target.write(self.data(held))

    def blank(self, error: BaseException | None) -> None:
        """Take the secrets out of an exception's arguments and those of its causes: tracebacks show them."""
        for one in causes(error):
            one.args = tuple(self.text(arg) if isinstance(arg, str) else arg for arg in one.args)
            for name in _TEXTS:
                if isinstance(said := getattr(one, name, None), str):
                    setattr(one, name, self.text(said))

    def _instead(self, found: str) -> str:
        return f"hf_{self._mark}" if self._mark == "***" and found.startswith("hf_") else self._mark


def _forms(secret: str) -> Iterator[str]:
    """How programs write a value."""
    escaped = {secret}
    for _ in range(2):  # an exception's repr in a JSON file is escaped twice
        escaped |= {form for each in escaped for form in _escaped(each)}
    yield from escaped
    for quoted in (
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote(secret),
        urllib.parse.quote_plus(secret),
    ):
        yield quoted
        yield re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
    yield html.escape(secret)
    yield shlex.quote(secret).strip("'")
    yield re.sub(r"([^\w@%+=:,./-])", r"\\\1", secret)  # as `printf %q`
    yield from _in_base64(secret.encode("utf-8", "surrogatepass"))


def _escaped(text: str) -> Iterator[str]:
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield text.replace("/", "\\/")
    yield repr(text)[1:-1]
    yield repr(text.encode("utf-8", "surrogatepass"))[2:-1]


def _in_base64(data: bytes) -> Iterator[str]:
    """What a value looks like wherever it begins in the three bytes that four characters stand for."""
    for before, shared in (
        (0, 0),
        (1, 2),
        (2, 3),
    ):  # bytes before it, and characters that they have a part in
        text = base64.b64encode(bytes(before) + data).decode()
        # Only the characters that the value alone decides: neighbours change those at its edges.
        whole = text[shared : (before + len(data)) * 8 // 6]
        yield whole
        yield whole.replace("+", "-").replace("/", "_")
