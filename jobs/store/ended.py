"""How jobs ended, for a farm whose Redis forgot its newest writes: by a power cut, or a failover to a late replica.

By then what a job did to a store is done, and what it had staged for that is gone. Going on where Redis believes it
to be, the job would miss that, or find its own bundle in its way; so how it ended is written down beside its effect
before anything is removed, in ``.layerfarm/ended``, for as long as a Redis may be away
(:mod:`layerfarm.jobs.store.hours`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from layerfarm.jobs.store.hours import Hours

_KEPT: Final = 2
"""Hours that are kept, beside the one that it is."""


def write_ending(layout: Path, job_id: str, text: str) -> None:
    """Keep how a job ended, for two hours at least.

    Raises:
        OSError, StoreError: the store cannot be written.
    """
    _endings(layout).write(job_id, text.encode())


def read_ending(layout: Path, job_id: str) -> str | None:
    """How a job ended; None: nobody wrote it down, or it is long ago.

    Raises:
        StoreError: it cannot be read.
    """
    content = _endings(layout).read(job_id)
    return None if content is None else content.decode()


def _endings(layout: Path) -> Hours:
    return Hours(layout, "ended", _KEPT)
