"""What the command says: the lines of its results on stdout, others on stderr, as many as ``--log`` asks for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, TextIO

import click

from layerfarm.jobs.errors import display

LEVELS: Final = ("debug", "info", "warn", "error", "fatal")

_level = LEVELS.index("warn")
_unsaid = False


def set_level(name: str) -> None:
    """Say what is at least as grave as ``name``; celery's and our own log records follow."""
    global _level
    _level = LEVELS.index(name)


def all_was_said() -> bool:
    """Whether every line for stderr could be written. A command goes on without, but does not succeed."""
    return not _unsaid


def level() -> str:
    """The level in force, one of :data:`LEVELS`."""
    return LEVELS[_level]


def say(text: str) -> None:
    """A line of the result, on stdout. What others have named (tags, paths, records) may hold what moves a terminal."""
    echo(display(text))


def echo(text: str | bytes, *, nl: bool = True) -> None:
    """``text`` on stdout as it is, and the end of a line. Raises as :func:`to_stdout`."""
    with to_stdout():
        click.echo(text, nl=nl)


@contextmanager
def to_stdout() -> Iterator[None]:
    """Write to stdout.

    Raises:
        BrokenPipeError: nobody reads it any more.
        OSError: stdout, which is the error's file name, cannot be written.
    """
    try:
        yield
    except OSError as error:
        _drop(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error


def settle() -> None:
    """Leave nothing for the interpreter to flush on exit, where it would complain: click's own help is not dropped."""
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
    """What the user must know to understand why nothing seems to happen, whatever the level."""
    _line(text)


def error(text: str) -> None:
    """The reason why the command ends without success, whatever the level."""
    _line(text)


def traceback() -> None:
    """The exception being handled, for ``--log=debug``."""
    if _level == LEVELS.index("debug"):
        import traceback as python_traceback

        _write(python_traceback.format_exc())


def take_logs() -> None:
    """Say what the farm's client logs as lines of ours. structlog's default is stdout, where the results go."""
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
    # One write: lines of several processes on one terminal stay whole. Messages may quote hostile names.
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
        # Work is not stopped halfway because nobody can be told how it goes.
        _unsaid = True
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let what is left in the buffer of ``stream``, and what follows, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
