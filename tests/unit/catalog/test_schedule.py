"""The schedule of a catalog file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogFileError
from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.catalog.schedule import Schedule

FILE = "store: s\nsources: [{layout: l}]\npolicies: [{match: '*', do: {transform: keep}}]\nschedule: "


def schedule(text: str) -> Schedule:
    found = parse_catalog(f"{FILE}{text}\n".encode(), Path("/c/catalog.yaml")).schedule
    assert found is not None
    return found


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "last", "following"),
    [
        ("{every: 6h}", "2026-11-29 13:00", "2026-11-29 19:00"),
        ("{every: 1h30m}", "2026-11-29 13:00", "2026-11-29 14:30"),
        ("{cron: '0 3 * * *'}", "2026-11-29 02:59:59", "2026-11-29 03:00"),
        ("{cron: '0 3 * * *'}", "2026-11-29 03:00", "2026-11-30 03:00"),
        ("{cron: '*/15 * * * *'}", "2026-11-29 13:14:30", "2026-11-29 13:15"),
        ("{cron: '5  4 * * sun'}", "2026-11-30 00:00", "2026-12-06 04:05"),
        ("{cron: '0 0 29 2 *'}", "2026-11-30 00:00", "2028-02-29 00:00"),
    ],
)
def test_the_next_time(text: str, last: str, following: str) -> None:
    assert schedule(text).next_after(at(last)) == at(following)


@pytest.mark.parametrize("text", ["{every: 6h}", "{cron: '0 3 * * *'}"])
def test_without_an_earlier_run_the_first_is_at_once(text: str) -> None:
    assert schedule(text).next_after(None) <= 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "give either every or cron"),
        ("{every: 6h, cron: '* * * * *'}", "give either every or cron"),
        ("{every: 6 hours}", "'6 hours' is not a duration like 90s, 15m or 24h"),
        ("{every: 59s}", "shorter than a minute"),
        ("{every: 6}", "every"),
        ("{cron: '* * * *'}", "not five fields, minute hour day month weekday"),
        ("{cron: '61 * * * *'}", "cron: .*61"),
        ("{cron: 'x * * * *'}", "cron"),
        ("{cron: '0 0 31 2 *'}", "never occurs"),
    ],
)
def test_a_schedule_that_is_none_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(CatalogFileError, match=message) as caught:
        schedule(text)
    assert "catalog.yaml:4:" in str(caught.value)
