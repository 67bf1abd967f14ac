"""What the doctor says: one line per thing that was looked at."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Level(StrEnum):
    """From good to bad."""

    OK = "ok"
    WARN = "warn"
    """The farm works; something will hurt one day."""
    FAIL = "fail"
    """The farm does not work, or loses work."""


class Finding(BaseModel):
    model_config = ConfigDict(frozen=True)

    level: Level
    topic: str
    """``redis``, or which worker or store."""
    what: str
    """What was seen."""
    advice: str | None = None
    """What to do about it."""


def ok(topic: str, what: str) -> Finding:
    return Finding(level=Level.OK, topic=topic, what=what)


def warn(topic: str, what: str, advice: str) -> Finding:
    return Finding(level=Level.WARN, topic=topic, what=what, advice=advice)


def fail(topic: str, what: str, advice: str) -> Finding:
    return Finding(level=Level.FAIL, topic=topic, what=what, advice=advice)
