"""The figures as one table for people and as JSON for the next run to be held against."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench.measure import Series
from tests.bench.operations import SMALL_TREE_TARGET, Comparison

_COLUMNS = (
    "tree",
    "on",
    "operation",
    "subject",
    "wall s",
    "ratio",
    "target",
    "",
    "of limit",
    "target",
    "",
    "CPU s",
    "ratio",
    "RSS MB",
    "target",
    "size MB",
    "ratio",
    "target",
    "",
)
_WIDTHS = (13, 5, 22, 22, 8, 6, 7, 4, 8, 6, 4, 7, 6, 7, 6, 8, 6, 6, 4)
_LEFT = 4


def table(comparisons: list[Comparison]) -> str:
    """A line for each subject; ratios are to the first subject of its operation, each beside its target.

    Those in the column ``of limit`` are ratios of wall time to the plainest tool that does the least of the operation.
    """
    lines = [_line(_COLUMNS)]
    for comparison in comparisons:
        lines += [_line(row) for row in _rows(comparison)]
    return "\n".join(lines)


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    first = next(iter(comparison.series.values()))
    limit = comparison.series.get(comparison.limit)
    rows: list[tuple[str, ...]] = []
    for number, (name, series) in enumerate(comparison.series.items()):
        ratio = series.wall() / first.wall()
        target, met = target_of(comparison, name, series, ratio)
        memory = comparison.most_memory.get(name)
        if memory is not None:
            met = met and series.peak_rss() <= memory
        size_ratio = series.size / first.size if series.size and first.size else None
        size_target = comparison.size_targets.get(name)
        of_limit = None if limit is None or series is limit else series.wall() / limit.wall()
        limit_target = comparison.limit_targets.get(name)
        rows.append(
            (
                comparison.tree if number == 0 else "",
                comparison.on if number == 0 else "",
                comparison.operation if number == 0 else "",
                name,
                f"{series.wall():.2f}",
                f"{ratio:.2f}" if number else "",
                target,
                _verdict(met) if target or memory is not None else "",
                "limit" if series is limit else "" if of_limit is None else f"{of_limit:.2f}",
                "" if limit_target is None else f"{limit_target:.2f}",
                "" if limit_target is None or of_limit is None else _verdict(of_limit <= limit_target),
                f"{series.processor():.2f}",
                f"{series.processor() / first.processor():.2f}" if number and first.processor() else "",
                f"{series.peak_rss() / 1e6:.0f}",
                "" if memory is None else f"{memory / 1e6:.0f}",
                "" if series.size is None else f"{series.size / 1e6:.1f}",
                "" if size_ratio is None or not number else f"{size_ratio:.3f}",
                "" if size_target is None else f"{size_target:.2f}",
                "" if size_target is None or size_ratio is None else _verdict(size_ratio <= size_target),
            )
        )
    return rows


def target_of(comparison: Comparison, name: str, series: Series, ratio: float) -> tuple[str, bool]:
    """The target of a subject's time as text, and whether it is met; empty where there is none."""
    if name in comparison.most_seconds:
        return f"{comparison.most_seconds[name]:.2f} s", series.wall() <= comparison.most_seconds[name]
    target = comparison.targets.get(name)
    if target is None:
        return "", True
    if comparison.tree == "minbase" and comparison.operation not in _OWN_TARGET:
        target = SMALL_TREE_TARGET
    return f"{target:.2f}", ratio <= target


_OWN_TARGET = frozenset(("build", "hash to manifest"))
"""Not held against umoci, so they have their own targets on the small tree too."""


def _verdict(met: bool) -> str:
    return "ok" if met else "MISS"


def _line(cells: Sequence[str]) -> str:
    padded = [
        cell.ljust(width) if column < _LEFT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ]
    return " ".join(padded).rstrip()


def write_json(comparisons: list[Comparison], path: Path, conditions: dict[str, object]) -> None:
    """Every single run, and the machine and programs it was made with."""
    document = {
        "conditions": conditions | {"machine": platform.platform(), "umoci": _version("umoci"), "tar": _version("tar")},
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1))


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
