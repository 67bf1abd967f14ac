"""Findings of the doctor: one line for each check."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Level(StrEnum):
    """From good to bad."""

    OK = "ok"
    WARN = "warn"
    """The farm works; trouble is likely later."""
    FAIL = "fail"
    """The farm does not work, or loses work."""


class Finding(BaseModel):
    model_config = ConfigDict(frozen=True)

    level: Level
    topic: str
    """``redis``, or the worker or store."""
    what: str
    """The observation."""
    advice: str | None = None
    """Advice on how to fix it."""


def ok(topic: str, what: str) -> Finding:
    return Finding(level=Level.OK, topic=topic, what=what)


def warn(topic: str, what: str, advice: str) -> Finding:
    return Finding(level=Level.WARN, topic=topic, what=what, advice=advice)


def fail(topic: str, what: str, advice: str) -> Finding:
    return Finding(level=Level.FAIL, topic=topic, what=what, advice=advice)


def expect(good: bool, topic: str, what: str, advice: str) -> Finding:
    """OK, or a warning with ``advice``."""
    return ok(topic, what) if good else warn(topic, what, advice)


def clock(off: float, topic: str, which: str, advice: str) -> Finding:
    """Return OK if two clocks differ by at most a minute; ``off``: seconds."""
    return expect(abs(off) <= 60, topic, f"{which} differ by {abs(off):.1f} s", advice)


def worst(findings: Sequence[Finding]) -> Level:
    """Return the worst level among them."""
    return max((finding.level for finding in findings), default=Level.OK, key=list(Level).index)
