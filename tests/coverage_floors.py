"""``make coverage``: a floor for lines and one for branches; coverage.py's ``fail_under`` is one for both together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FLOORS = {"statements": 98.0, "branches": 95.0}
"""Per cent of jobs/ that the tests must run."""


def main(report: str) -> int:
    totals = json.loads(Path(report).read_text())["totals"]
    below = 0
    for kind, floor in FLOORS.items():
        reached = totals[f"percent_{kind}_covered"]
        below += reached < floor
        print(f"{kind}: {reached:.2f} % of jobs/ (at least {floor:g} %)")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
