"""The schedule of a catalog file: times of whole runs by ``layerfarm catalog serve``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import model_validator

from layerfarm.worker.catalog.policies import Section, checked
from layerfarm.worker.durations import seconds

_SHORTEST: Final = 60.0


def _check_duration(text: str) -> None:
    if seconds(text) < _SHORTEST:
        raise ValueError("shorter than a minute")


def _check_cron(text: str) -> None:
    _next_match(text, 0.0)


class Schedule(Section):
    """Whole runs at regular times. Exactly one of the two keys is given."""

    every: Annotated[str, checked(_check_duration)] | None = None
    """Time between the starts of two runs, ``6h``."""
    cron: Annotated[str, checked(_check_cron)] | None = None
    """Minute, hour, day of the month, month and day of the week, in UTC: ``0 3 * * *``."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Schedule:
        if (self.every is None) == (self.cron is None):
            raise ValueError("give either every or cron")
        return self

    def next_after(self, last: float | None) -> float:
        """Return the time of the first run after ``last``, in seconds since the epoch; None: there was none."""
        if last is None:
            return 0.0
        if self.every is not None:
            return last + seconds(self.every)
        assert self.cron is not None
        return _next_match(self.cron, last)


def _next_match(cron: str, last: float) -> float:
    # Imported here: most commands that read catalog files need no Celery.
    from celery.schedules import crontab

    fields = cron.split()
    if len(fields) != 5:
        raise ValueError("not five fields, minute hour day month weekday")
    minute, hour, day, month, weekday = fields
    start, delta, _ = crontab(minute, hour, weekday, day, month).remaining_delta(datetime.fromtimestamp(last, UTC))
    found: datetime = start + delta
    return found.timestamp()
