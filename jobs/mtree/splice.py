"""How a tree became another one, entry by entry without naming any: the *script*.

A script is a list of steps in mtree order. It says of the old tree which entries are still what they were,
by counting them; so neither an old entry nor a new one has to be looked at to know where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from layerfarm.jobs.errors import MtreeSyntaxError


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
