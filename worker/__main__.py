"""``python -m worker``: a worker configured by the environment alone."""

from __future__ import annotations

import sys

from jobs.errors import LayerfarmError
from worker.settings import load_settings
from worker.worker_main import run_worker


def main() -> int:
    try:
        return run_worker(load_settings())
    except LayerfarmError as error:
        print(f"layerfarm: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
