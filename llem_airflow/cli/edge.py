"""The command's edge: what a verb raises becomes one message and an exit code, whatever the verb.

0 done; 1 the run failed, or a check found something; 2 it could not be done as asked; 130 Ctrl-C.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

USER_ERROR = 2
INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 the run failed or a check found something; 2 it could not be done as asked (the message "
    "says why); 130 ended with Ctrl-C."
)
_CLIENTS = "aiobotocore aiohttp azure botocore docker fsspec gcsfs google httpx pyarrow requests s3fs urllib3"
"""Packages whose errors are about what the user named: a bucket, an address, an engine, a damaged file."""


class Edge(click.Group):
    """A group of verbs in sections. A verb returns its exit code, or None for 0."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections: dict[str, Sequence[click.Command]] = {}

    def add_section(self, title: str, verbs: Sequence[click.Command]) -> None:
        """Add verbs that the help lists together, in this order."""
        self._sections[title] = verbs
        for verb in verbs:
            self.add_command(verb)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the list of verbs, one section after the other."""
        width = max(len(str(verb.name)) for verbs in self._sections.values() for verb in verbs)
        for title, verbs in self._sections.items():
            with formatter.section(title):
                rows = [
                    (str(verb.name).ljust(width), verb.get_short_help_str(formatter.width)) for verb in verbs
                ]
                formatter.write_dl(rows)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command, whatever standard output and error are."""
        _open_streams()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb and end the command with its exit code."""
        try:
            code = int(super().invoke(ctx) or 0)
            sys.stdout.flush()
        except (click.exceptions.Exit, click.ClickException):
            raise
        except KeyboardInterrupt:
            code = _say("Ended with Ctrl-C.", INTERRUPTED)
        except BrokenPipeError:
            code = 1  # the reader has gone: nothing is left to say, and nobody to say it to
            _close_stdout()
        except Exception as error:  # noqa: BLE001  # the edge: a person gets a message, never a traceback
            code = _say(*said(error))
            if isinstance(error, OSError) and error.errno in _OUTPUT_IS_GONE:
                _close_stdout()
        return ctx.exit(code)


def said(error: Exception) -> tuple[str, int]:
    """What a person is told of an error, and the exit code."""
    if isinstance(error, OSError) and not _of_client(error):
        return _system(error), USER_ERROR
    if type(error).__module__.startswith("llem_airflow"):
        # A LookupError shows its text in quotes.
        return str(error.args[0] if error.args else error), getattr(error, "exit_code", USER_ERROR)
    if _of_client(error) or isinstance(error, (ImportError, NotImplementedError)):
        return f"{type(error).__name__}: {_first_line(error)}{_advice(error)}", USER_ERROR
    if isinstance(error, ValueError):
        return str(error), USER_ERROR
    if os.environ.get("LLEM_TRACEBACK"):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__}: {_first_line(error)} ({where.name} in {os.path.basename(where.filename)}, "  # noqa: PTH119
        f"line {where.lineno}). A fault of llem-airflow, or a damaged file that it does not recognise; "
        "LLEM_TRACEBACK=1 shows more"
    ), 1


def _system(error: OSError) -> str:
    """An error of the operating system: the place once, what is wrong with it, what to do."""
    text = error.strerror or _first_line(error)
    place = error.filename if isinstance(error.filename, (str, bytes, os.PathLike)) else None
    if place is not None and os.fsdecode(place) not in text:
        text = f"{os.fsdecode(place)}: {text}"
    if type(error).__module__.startswith("llem_airflow"):
        return text
    if error.errno is None:  # a client's own: fsspec's stores raise bare ones
        return f"{type(error).__name__}: {text}{_advice(error)}"
    hint = _HINTS.get(error.errno)
    return f"{text}; {hint}" if hint else text


_HINTS = {
    errno.ENOENT: "name one that exists, or make its folder first",
    errno.EACCES: "correct its owner or rights, or name another place",
    errno.EPERM: "correct its owner or rights, or name another place",
    errno.EROFS: "it is mounted read-only: name another place",
    errno.ENOSPC: "make room (`llem-airflow results prune` lists what can go), or name another place",
    errno.EDQUOT: "make room (`llem-airflow results prune` lists what can go), or name another place",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOTDIR: "a part of it is a file: name a folder",
    errno.EEXIST: "name another one",
}
_OUTPUT_IS_GONE = frozenset({errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT})


def _of_client(error: BaseException) -> bool:
    """Whether a client of a store or engine raised it; its class or one below it belongs to the client."""
    return any(cls.__module__.partition(".")[0] in _CLIENTS.split() for cls in type(error).__mro__)


def _advice(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "; install it beside llem-airflow, or name a local folder"
    return "; check the address of the results (--results-root, LLEM_RESULTS_ROOT), its credentials and the network"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_PLAIN = {"\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "\N{MIDDLE DOT}": "|", "\N{HORIZONTAL ELLIPSIS}": "..."}
"""What stands for our own signs where a terminal has a smaller character set than UTF-8."""


def _open_streams() -> None:
    """Let every text be written: what the character set lacks as an escape, and to a closed stream nothing."""
    codecs.register_error("llem_airflow", _escaped)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Python's way to say that the file was closed before it began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
            stream.reconfigure(errors="llem_airflow")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    told = "".join(_PLAIN.get(sign, sign.encode("ascii", "backslashreplace").decode()) for sign in lacking)
    return told, error.end


def _say(text: str, code: int) -> int:
    click.echo(text, err=True)
    return code


def _close_stdout() -> None:
    """What is still buffered has nowhere to go, and the interpreter must not complain about it at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
