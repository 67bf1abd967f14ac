"""A server of one catalog with runs that only remember what they were for: ``python -m tests.farm.serving``.

Arguments: the catalog file, the port, the directory of secrets, and the file to which each run appends two lines, at
its begin and at its end. A run takes as many milliseconds as it has names, and some names fail in one run of five.
Connections, and the wait for a new attempt, are shorter than those of a real server.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def serve() -> None:
    """Serve until SIGTERM."""
    file, port, secrets, record = sys.argv[1:]
    from layerfarm.worker.catalog.serve import server
    from layerfarm.worker.catalog.serve.authentication import read_secrets
    from layerfarm.worker.catalog.serve.runner import Child
    from layerfarm.worker.catalog.serve.times import Times

    times = Times(settle=0.1, first_wait=0.1, connection=5.0)
    child = Child((sys.executable, __file__, "run"), {"record": record})
    server.serve([Path(file)], ("127.0.0.1", int(port)), read_secrets(Path(secrets)), child, times)


def run() -> None:
    """Do one run."""
    request = json.loads(sys.stdin.readline())
    names = request["names"]
    failed = names[::7] if time.time_ns() % 5 == 0 else []
    line = {"began": time.monotonic_ns(), "names": names, "run": os.getpid(), "failed": failed}
    with open(request["record"], "a") as record:
        print(json.dumps(line), file=record, flush=True)
        time.sleep(len(names) / 1000)
        print(json.dumps(line | {"ended": time.monotonic_ns()}), file=record, flush=True)
    print(json.dumps({"failed": dict.fromkeys(failed, "as the test wants")}))


if __name__ == "__main__":
    run() if sys.argv[1:] == ["run"] else serve()
