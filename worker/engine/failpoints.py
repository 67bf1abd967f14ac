"""Named steps at which a worker can be made to kill itself, to test recovery from crashes.

With ``LAYERFARM_KILL_AT=STEP`` a worker's process sends itself SIGKILL when it reaches that step, in the pool or not;
with ``LAYERFARM_KILL_ONCE=FILE`` only the process that creates the file. Without the variable a step costs one
comparison.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

STEPS: Final = (
    "advance.claimed",
    "advance.joined",
    "stage.opened",
    "units.sent",
    "unit.taken",
    "unit.claimed",
    "unit.working",
    "unit.done",
    "unit.recorded",
    "work.taken",
    "work.done",
    "job.decided",
    "close.claimed",
    "close.cleaned",
    "close.closed",
)
"""In the order in which a job passes them."""

_KILL_AT: Final = os.environ.get("LAYERFARM_KILL_AT")


def reached(step: str) -> None:
    """Kill this process, if requested."""
    if step == _KILL_AT:
        once = os.environ.get("LAYERFARM_KILL_ONCE")
        with suppress(FileExistsError):
            if once is not None:
                Path(once).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
