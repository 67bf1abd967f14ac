"""What the command says: the lines of its results on stdout, others on stderr, as many as ``--log`` asks for."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any, Final

import click

from layerfarm.jobs.errors import display

LEVELS: Final = ("debug", "info", "warn", "error", "fatal")

_level = LEVELS.index("warn")


def set_level(name: str) -> None:
    """Say what is at least as grave as ``name``; celery's and our own log records follow."""
    global _level
    _level = LEVELS.index(name)


def level() -> str:
    """The level in force, one of :data:`LEVELS`."""
    return LEVELS[_level]


def say(text: str) -> None:
    """A line of the result, on stdout. What others have named (tags, paths, records) may hold what moves a terminal."""
    click.echo(display(text))


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

        python_traceback.print_exc()


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
    stderr = sys.stderr
    stderr.write(f"layerfarm: {line.encode('utf-8', 'backslashreplace').decode()}\n")
    stderr.flush()
