"""Who looks on while a worker works: metrics and traces, each a witness, and none of them in the worker's way.

The runner tells what happens and does not know who listens; where nobody does, nothing is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from layerfarm.jobs.errors import JobCancelled
from layerfarm.worker.model import JobRecord

_log = structlog.get_logger()


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
    """How a task went; filled in while it runs."""

    began: int = field(default_factory=time.time_ns)
    """Nanoseconds since the epoch."""
    seconds: float = 0.0
    nbytes: int = 0
    """Bytes read or written, as progress counts them."""
    how: str = "done"
    """``done``, ``failed``, or ``stopped``: cancelled, handed back, or left to another process."""
    error: str | None = None
    """What went wrong, for people."""


class Witness(Protocol):
    """Told what one process of a worker does."""

    def claimed(self, how: str) -> None:
        """A piece of work was asked for: ``won``, or why not (``layerfarm.worker.jobstore.model.Status``)."""

    def equal(self, how: str) -> None:
        """Work that other jobs may have too was ``executed``, ``known`` already, or is ``waited`` for."""

    def finished(self, task: Task, outcome: Outcome) -> None:
        """A task that was claimed is over."""

    def ended(self, record: JobRecord) -> None:
        """A job has ended, in one of its final states."""


class Witnesses:
    """All of them. What goes wrong in one is logged, and is nothing to the work."""

    def __init__(self, witnesses: Iterable[Witness] = ()) -> None:
        self._witnesses = tuple(witnesses)

    def claimed(self, how: str) -> None:
        self._tell("claimed", how)

    def equal(self, how: str) -> None:
        self._tell("equal", how)

    def ended(self, record: Callable[[], JobRecord]) -> None:
        """``record`` is asked for only if somebody listens: it costs a look into Redis."""
        if self._witnesses:
            self._tell("ended", record())

    @contextmanager
    def working(self, task: Task) -> Iterator[Outcome]:
        """Around one task; inside, the caller fills in how it went."""
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
            self._tell("finished", task, outcome)

    def _tell(self, what: str, *args: object) -> None:
        for witness in self._witnesses:
            try:
                getattr(witness, what)(*args)
            except Exception as error:
                _log.warning("could not be told", witness=type(witness).__name__, what=what, error=str(error))
