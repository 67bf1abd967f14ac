"""How a tree became another one, entry by entry without naming any: the *script*.

A script is a list of steps in mtree order. It says of the old tree which entries are still what they were,
by counting them; so neither an old entry nor a new one has to be looked at to know where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple

from jobs.errors import MtreeError, MtreeSyntaxError
from jobs.mtree.model import Entry


class Step(NamedTuple):
    """So many entries of the old tree stay, then so many go, and so many of the new ones take their place."""

    keep: int
    drop: int
    take: int


def write_script(steps: Iterable[Step], out: BinaryIO) -> None:
    """One line for each step."""
    out.writelines(b"%d %d %d\n" % step for step in steps)


def read_script(stream: BinaryIO) -> Iterator[Step]:
    """The steps of a script.

    Raises:
        MtreeSyntaxError: a line is none.
    """
    for line in stream:
        try:
            keep, drop, take = map(int, line.split())
        except ValueError as error:
            raise MtreeSyntaxError("not a line of a script", where=line[:200]) from error
        yield Step(keep, drop, take)


def dropped(old: Iterable[Entry], steps: Iterable[Step]) -> Iterator[Entry]:
    """The entries of the old tree that do not stay.

    Raises:
        MtreeError: the script is one of another tree.
    """
    entries = iter(old)
    for keep, drop, _ in steps:
        for _ in islice(entries, keep):
            pass
        yield from _exactly(entries, drop)
    _nothing_left(entries)


def spliced(old: Iterable[Entry], new: Iterable[Entry], steps: Iterable[Step]) -> Iterator[Entry]:
    """The whole new tree, from the old one and the new entries in mtree order.

    Raises:
        MtreeError: the script is one of other trees.
    """
    entries, fresh = iter(old), iter(new)
    for keep, drop, take in steps:
        yield from _exactly(entries, keep)
        for _ in islice(entries, drop):
            pass
        yield from _exactly(fresh, take)
    _nothing_left(entries)
    _nothing_left(fresh)


def _exactly(entries: Iterator[Entry], count: int) -> Iterator[Entry]:
    entry = None
    for _ in range(count):
        entry = next(entries, None)
        if entry is None:
            raise MtreeError("a tree has fewer entries than the script says")
        yield entry


def _nothing_left(entries: Iterator[Entry]) -> None:
    entry = next(entries, None)
    if entry is not None:
        raise MtreeError("a tree has more entries than the script says", where=entry.path)
