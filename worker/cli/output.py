"""Output of the command: results on stdout, other lines on stderr, as ``--log`` selects."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

import click

from layerfarm.jobs.errors import display

LEVELS: Final = ("debug", "info", "warn", "error", "fatal")

_level = LEVELS.index("warn")
_unsaid = False


def set_level(name: str) -> None:
    """Print messages of at least the level ``name``, those of celery's and layerfarm's logs too."""
    global _level
    _level = LEVELS.index(name)


def all_was_said() -> bool:
    """Return False if a line for stderr could not be written. A command continues then, but does not succeed."""
    return not _unsaid


def level() -> str:
    """Return the level in force, one of :data:`LEVELS`."""
    return LEVELS[_level]


def say(text: str) -> None:
    """Print a line of the result on stdout. Foreign names (tags, paths, records) may hold terminal control codes."""
    echo(display(text))


def echo(text: str | bytes, *, nl: bool = True) -> None:
    """Print ``text`` unchanged on stdout, with an end of line. Raises as :func:`to_stdout`."""
    with to_stdout():
        click.echo(text, nl=nl)


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Format ``rows`` as lines with columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@contextmanager
def to_stdout() -> Iterator[None]:
    """Write to stdout.

    Raises:
        BrokenPipeError: the reader has closed the pipe.
        OSError: stdout, which is the error's file name, cannot be written.
    """
    try:
        yield
    except OSError as error:
        _drop(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error


def settle() -> None:
    """Flush, so that the interpreter does not do so on exit, where it would complain; keeps click's own help."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop(sys.stdout)


def info(text: str) -> None:
    if _level <= LEVELS.index("info"):
        _line(text)


def warning(text: str) -> None:
    if _level <= LEVELS.index("warn"):
        _line(f"warning: {text}")


def notice(text: str) -> None:
    """Print, at any level, why nothing seems to happen."""
    _line(text)


def error(text: str) -> None:
    """Print, at any level, why the command fails."""
    _line(text)


def traceback() -> None:
    """Print the exception being handled, for ``--log=debug``."""
    if _level == LEVELS.index("debug"):
        import traceback as python_traceback

        _write(python_traceback.format_exc())


def take_logs() -> None:
    """Print the log of the farm's client on stderr. structlog's default is stdout, where the results go."""
    import structlog

    structlog.configure(processors=[_say_event])


def _say_event(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    import structlog

    text = " ".join([str(event.pop("event", "")), *(f"{name}={value}" for name, value in sorted(event.items()))])
    if method in ("debug", "info"):
        info(text)
    else:
        warning(text)
    raise structlog.DropEvent


def _line(text: str) -> None:
    # One write: lines of several processes on one terminal stay whole. Messages may quote untrusted names.
    line = display(" ".join(text.splitlines()) or text)
    _write(f"layerfarm: {line.encode('utf-8', 'backslashreplace').decode()}\n")


def _write(text: str) -> None:
    global _unsaid
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        # Work continues even if its progress cannot be printed.
        _unsaid = True
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Discard the rest of the buffer of ``stream``, and all later output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
