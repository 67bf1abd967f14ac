"""Signals that a worker process sends while it works, for metrics and traces.

Receivers take keywords; Celery logs their exceptions and continues.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from celery.utils.dispatch import Signal

from layerfarm.jobs.errors import JobCancelled

claimed: Final = Signal(name="claimed")
"""An item was requested; ``how``: ``won``, or why not (``layerfarm.worker.jobstore.model.Status``)."""
equal: Final = Signal(name="equal")
"""Work that other jobs may share was obtained; ``how``: ``executed``, ``known`` already, or ``waited`` for."""
finished: Final = Signal(name="finished")
"""A claimed ``task`` has ended, with this ``outcome``."""
ended: Final = Signal(name="ended")
"""A job reached a final state; its ``record``."""


@dataclass(frozen=True)
class Task:
    """One unit, or the join of one stage, of one job."""

    job_id: str
    kind: str
    """Name of the flow."""
    stage: str
    index: int | None = None
    """None: the join."""


@dataclass
class Outcome:
    """Outcome of a task; filled in while it runs."""

    began: int = field(default_factory=time.time_ns)
    """Nanoseconds since the epoch."""
    seconds: float = 0.0
    nbytes: int = 0
    """Bytes read or written, as progress counts them."""
    how: str = "done"
    """``done``, ``failed``, or ``stopped``: cancelled, handed back, or left to another process."""
    error: str | None = None


@contextmanager
def working(task: Task) -> Iterator[Outcome]:
    """Measure a task and send ``finished``; inside, the caller sets the bytes, or that it was stopped."""
    outcome = Outcome()
    begin = time.perf_counter()
    try:
        yield outcome
    except JobCancelled:
        outcome.how = "stopped"
        raise
    except Exception as error:
        outcome.how, outcome.error = "failed", str(error)
        raise
    finally:
        outcome.seconds = time.perf_counter() - begin
        finished.send(None, task=task, outcome=outcome)
