"""A user's program: a job by the local runner that works until it is asked to stop.

Arguments: the directory of the job, and how many units it has.
"""

from __future__ import annotations

import sys
from pathlib import Path

from toy_flow import ToyRequest

from layerfarm.worker.engine.local import run

if __name__ == "__main__":
    run(ToyRequest(directory=Path(sys.argv[1]), numbers=int(sys.argv[2]), sleep=60), processes=2)
