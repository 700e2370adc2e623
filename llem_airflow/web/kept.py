"""A bounded cache: what was worked out from a stored file is kept until the file changes or others need the room."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from llem_airflow.results.folder import Folder, version_in
from llem_airflow.web.answers import json_text

Made = TypeVar("Made")

LARGEST_BYTES = 32 << 20
"""So much is kept, in bytes: of a year of nights x 100 experiments, what the pages show takes about a tenth."""


class Kept:
    """JSON, or what nobody changes, by key; the least recently used one leaves first; several threads may use it.

    Args:
        largest_bytes: Limit of what is kept, in bytes.
    """

    def __init__(self, largest_bytes: int = LARGEST_BYTES) -> None:
        self._largest_bytes = largest_bytes
        self._entries: OrderedDict[tuple[str, str], tuple[str, Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def of_file(self, kind: str, folder: Folder, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives of a file, as plain JSON values; made again when the file has changed.

        Args:
            kind: What is made of it: a file may be read for several purposes.
            folder: Where the file lies.
            name: The file.
            make: Works it out; not called while an unchanged one is kept.
        """
        return self.of(kind, f"{folder.path}/{name}", file_version(folder, name), make)

    def of(self, kind: str, what: str, version: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, as plain JSON values; made again when the version is another one.

        Args:
            kind: What is made.
            what: Of what it is made: one version of it is kept.
            version: Of the files behind it.
            make: Works it out; not called while one of this version is kept.
        """
        text = self.of_object(kind, what, version, lambda: json_text(make()).encode(), len)
        with _uncollected():
            return json.loads(text)

    def of_object(
        self, kind: str, what: str, version: str, make: Callable[[], Made], size: Callable[[Made], int]
    ) -> Made:
        """What ``make`` gives, kept as it is: nobody may change it.

        Args:
            kind: As for ``of``.
            what: As for ``of``.
            version: As for ``of``.
            make: Works it out.
            size: How many bytes of memory it takes, about.
        """
        key = (kind, what)
        with self._lock:
            found = self._entries.get(key)
            if found is not None and found[0] == version:
                self._entries.move_to_end(key)
                made: Made = found[1]
                return made
        with _uncollected():
            made = make()
        told = size(made)
        with self._lock:
            self.bytes += told - self._entries.pop(key, ("", None, 0))[2]
            self._entries[key] = version, made, told
            while self.bytes > self._largest_bytes:
                self.bytes -= self._entries.popitem(last=False)[1][2]
        return made


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without searches for cycles of objects: 10^5 small tuples, none in a cycle, would start dozens that find nothing.

    They took half of the time of a trend over a year of nights x 100 experiments. Threads may overlap: the one that
    switched them off switches them on again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Recent:
    """Answers that were just given, so that who asks often costs no more than a sixth of one thread.

    An answer is given again for five times as long as it took: one that lists an object store for two seconds is ten
    seconds old at most.

    Args:
        longest: So many answers are kept.
    """

    def __init__(self, longest: int = 64) -> None:
        self._longest = longest
        self._answers: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or what it gave a moment ago."""
        begin_s = time.monotonic()
        with self._lock:
            until_s, found = self._answers.get(key, (0.0, None))
        if begin_s < until_s:
            return found
        found = make()
        end_s = time.monotonic()
        with self._lock:
            self._answers[key] = end_s + 5 * (end_s - begin_s), found
            self._answers.move_to_end(key)
            while len(self._answers) > self._longest:
                self._answers.popitem(last=False)
        return found


def file_version(folder: Folder, name: str) -> str:
    """What changes when a file is written again, without reading it: its size and its time or tag; empty for none."""
    try:
        folder.fs.invalidate_cache()
        info = folder.fs.info(f"{folder.path}/{name}")
    except OSError:
        return ""
    return version_in(info)
