"""A user's program: an embedded farm that works until it is asked to leave.

Arguments: the allowed directory, and the state directory of the farm.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from toy_flow import ToyRequest

from layerfarm.worker.embedded import EmbeddedFarm

if __name__ == "__main__":
    allowed = Path(sys.argv[1])
    with EmbeddedFarm(state_dir=Path(sys.argv[2]), roots=[allowed], stores=[allowed], flows=["toy_flow"]) as embedded:
        with embedded.farm() as farm:
            farm.submit(ToyRequest(directory=allowed, numbers=2, sleep=60))
        while len(list(allowed.glob("run-*"))) < 2:
            time.sleep(0.02)
        print("ready", flush=True)
        time.sleep(120)
