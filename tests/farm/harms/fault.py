"""A fault: what is done to a farm while its jobs run, and what farm it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trial import Counts, Trial

Function = Callable[[Trial, Counts], None]


@dataclass(frozen=True)
class Fault:
    """``run`` does it; the rest says what farm it needs."""

    run: Function
    durable: bool = True
    """Redis keeps an append-only file."""
    networked: bool = False
    """Redis listens on a host of its own."""
