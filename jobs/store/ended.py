"""How jobs ended, for a farm whose Redis forgot its newest writes: by a power cut, or a failover to a late replica.

By then what a job did to a store is done, and what it had staged for that is gone. Going on where Redis believes it
to be, the job would miss that, or find its own bundle in its way; so how it ended is written down beside its effect
before anything is removed. ``.layerfarm/ended/<hour>/<job>``: the hours are those of the store's clock. They are kept
for as long as a Redis may be away, and removed by whoever writes the first one of a later hour.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from jobs.store.durable import make_directory, replace_file
from jobs.store.indexfile import PRIVATE_DIRECTORY, IndexFile, read_file

_HOUR: Final = 3600
_KEPT: Final = 2
"""Hours that are kept, beside the one that it is."""


def write_ending(layout: Path, job_id: str, text: str) -> None:
    """Keep how a job ended, for two hours at least.

    Raises:
        OSError, StoreError: the store cannot be written.
    """
    hour = int(IndexFile(layout).now()) // _HOUR
    directory = _directory(layout) / str(hour)
    if not directory.is_dir():
        _forget(layout, hour - _KEPT)
    staging = layout / PRIVATE_DIRECTORY / "ingest"
    for each in (directory, staging):
        make_directory(each, layout)
    replace_file(directory / job_id, text.encode(), staging, layout)


def read_ending(layout: Path, job_id: str) -> str | None:
    """How a job ended; None: nobody wrote it down, or it is long ago.

    Raises:
        StoreError: it cannot be read.
    """
    for hour in sorted(_hours(layout), reverse=True):
        path = _directory(layout) / str(hour) / job_id
        if path.is_file():
            return read_file(path, "document_bytes").decode()
    return None


def _forget(layout: Path, oldest: int) -> None:
    for hour in _hours(layout):
        if hour < oldest:
            shutil.rmtree(_directory(layout) / str(hour), ignore_errors=True)


def _hours(layout: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(_directory(layout)) if name.isdigit()]
    except FileNotFoundError:
        return []


def _directory(layout: Path) -> Path:
    return layout / PRIVATE_DIRECTORY / "ended"
