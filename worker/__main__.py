"""``python -m layerfarm.worker``: a worker configured by the environment alone."""

from __future__ import annotations

import sys

from layerfarm.worker.import_path import ours_first


def main() -> int:
    ours_first()
    from layerfarm.jobs.errors import LayerfarmError
    from layerfarm.worker.settings import load_settings
    from layerfarm.worker.worker_main import run_worker

    try:
        return run_worker(load_settings())
    except LayerfarmError as error:
        print(f"layerfarm: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
