"""Content that is in several layers of a catalog: components, and large files that may be worth a rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from layerfarm.jobs.relayer.analysis import LargeFile
from layerfarm.jobs.relayer.planner.plan import Part
from layerfarm.worker.catalog.costs import Row
from layerfarm.worker.catalog.planning import Joint

Remedy = Literal["rule", "source-date-epoch", "replan", "none"]
_ALONE: Final = ("file:", "rule:")
"""Beginnings of the keys of components that an operator, or a file's size, sets apart."""


class DuplicateRow(Row):
    """One version of a component that is, or was, in several layers."""

    what: str
    bytes: int
    """Uncompressed bytes of one copy."""
    before: int
    """Number of layers that hold it."""
    after: int
    """The same by the plan."""


class FileRow(Row):
    """The content of a large file that is in several layers by the plan."""

    content: str
    """Digest."""
    bytes: int
    """Uncompressed bytes of one copy."""
    layers: int
    """Number of layers that hold it."""
    paths: tuple[str, ...]
    components: tuple[str, ...]
    remedy: Remedy
    """``rule``: a rule for its path puts it into one layer; ``source-date-epoch``: its copies differ in metadata, often
    in the time; ``replan``: a new plan may put it into one; ``none``: its paths differ."""


def duplicate_components(joint: Joint) -> tuple[DuplicateRow, ...]:
    """Return the components that were in several layers, by the bytes wasted."""
    before: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    after: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    parts: dict[tuple[str, str], Part] = {}
    for member, layers in zip(joint.members, joint.layers, strict=True):
        homes = {key: layer.digest for layer in layers for key in layer.keys}
        for part in member.analysis.parts:
            which = (part.key, part.digest)
            parts[which] = part
            before[which].add(member.original.layers[part.layer - 1])
            after[which].add(homes[part.key])
    wasted = sorted(parts, key=lambda which: (-(len(before[which]) - 1) * parts[which].size, which))
    return tuple(
        DuplicateRow(
            what=f"{which[0]} {parts[which].version}".strip(),
            bytes=parts[which].size,
            before=len(before[which]),
            after=len(after[which]),
        )
        for which in wasted
        if len(before[which]) > 1
    )


def duplicate_files(joint: Joint) -> tuple[FileRow, ...]:
    """Return the large files that are in several layers by the plan, by the bytes wasted."""
    homes: defaultdict[str, set[str]] = defaultdict(set)
    copies: defaultdict[str, set[LargeFile]] = defaultdict(set)
    for member, layers in zip(joint.members, joint.layers, strict=True):
        layer_of = {key: layer.digest for layer in layers for key in layer.keys}
        for file in member.analysis.large:
            homes[file.content].add(layer_of[file.key])
            copies[file.content].add(file)
    rows = (_row(content, len(found), copies[content]) for content, found in homes.items() if len(found) > 1)
    return tuple(sorted(rows, key=lambda row: (-(row.layers - 1) * row.bytes, row.content)))


def _row(content: str, layers: int, copies: Iterable[LargeFile]) -> FileRow:
    found = sorted(copies)
    keys = _unique(file.key for file in found)
    paths = _unique(file.path for file in found)
    return FileRow(
        content=content,
        bytes=found[0].size,
        layers=layers,
        paths=paths,
        components=keys,
        remedy=_remedy(paths, keys, {file.entry for file in found}),
    )


def _remedy(paths: tuple[str, ...], keys: tuple[str, ...], entries: set[str]) -> Remedy:
    if len(paths) > 1:
        return "none"
    if len(entries) > 1:
        return "source-date-epoch"
    return "replan" if len(keys) == 1 and keys[0].startswith(_ALONE) else "rule"


def _unique(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(sorted(set(texts)))
