"""The summary of a catalog's report: what a CI job needs to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from layerfarm.worker.catalog.costs import Row, Totals
from layerfarm.worker.catalog.state import Missed

if TYPE_CHECKING:
    from layerfarm.worker.catalog.report import ImageRow


class FailureRow(Row):
    """An image that failed, or a source that cannot be read."""

    where: str
    """Name of the image, or place of the source."""
    error_type: str
    """Class name of the error, as docs/exit-codes.md lists them."""
    error: str


class Summary(Row):
    """The result of a plan or run in a few fields."""

    exit_code: Literal[0, 1]
    meaning: str
    """The reason for the exit code."""
    states: dict[str, int]
    """Number of images in each state of :attr:`ImageRow.state`."""
    failures: tuple[FailureRow, ...]
    stored_before: int
    """Bytes of all different blobs of the originals."""
    stored_after: int | None
    """The same of the new images, or of the plan if none is made; None: neither is known."""
    pulled_before: int
    """Bytes of all pulls from one tag to the next."""
    pulled_after: int | None


def summary_of(rows: Sequence[ImageRow], missed: Sequence[Missed], before: Totals, after: Totals | None) -> Summary:
    """Summarize a report; ``after``: of the new images, or of the plan."""
    failures = [
        FailureRow(where=row.name, error_type=row.error_type or "", error=row.error or "")
        for row in rows
        if row.state == "failed"
    ]
    what = [f"images that failed: {len(failures)}"] if failures else []
    what += [f"sources or parts of them that cannot be read: {len(missed)}"] if missed else []
    failures += [FailureRow(where=one.where, error_type=one.error_type, error=one.error) for one in missed]
    states = Counter(row.state for row in rows)
    return Summary(
        exit_code=1 if failures else 0,
        meaning=", ".join(what) or "no image failed, and all sources were read",
        states=dict(sorted(states.items())),
        failures=tuple(failures),
        stored_before=before.stored,
        stored_after=after.stored if after else None,
        pulled_before=before.pulled,
        pulled_after=after.pulled if after else None,
    )
