"""Format the quantities of a report."""

from __future__ import annotations

from collections.abc import Mapping


def percent(part: int, whole: int) -> str:
    """Format ``part`` of ``whole``; 0 of 0 is 100 %."""
    return f"{100 * part / whole:.1f} %" if whole else "100.0 %"


def size_text(count: int | None) -> str:
    """Format bytes in powers of 1000."""
    if count is None:
        return "-"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} B"


def requests_text(requests: Mapping[str, int]) -> str:
    """Format numbers of requests by method: ``53 (13 GET, 40 HEAD)``."""
    return f"{sum(requests.values()):,} ({', '.join(f'{count:,} {method}' for method, count in requests.items())})"
