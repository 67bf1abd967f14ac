"""Number of examples on which Hypothesis tries a property."""

from __future__ import annotations

import os


def examples(count: int) -> int:
    """``count``, or a tenth of it with ``BRIEF`` set, as on the further Pythons of a machine: what differs between two
    Pythons shows with any example.
    """
    return max(1, count // 10) if os.environ.get("BRIEF") else count
