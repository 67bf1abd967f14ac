"""Walk a tree once, a large one by several processes.

A process that has met many entries gives the directories that are left to helper processes, a few at a time. Each
walks for a while and returns the text of what it has walked and the directories that are left. Both are in the order of
the walk file, so they take the place of what was given away, and the bytes are those of one process. A helper leaves to
the caller what fails, or needs a mode to be widened: an error is the one that the caller meets.
"""

from __future__ import annotations

import io
import os
import pickle
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from layerfarm.jobs.fs import DirectoryCache, Rootfs
from layerfarm.jobs.helpers import started
from layerfarm.jobs.mtree.clock import NO_CLOCK, Clock
from layerfarm.jobs.mtree.walk import DIRECTORY, Part, Pending, TreeWalk, Walk

WORTH_IT: Final = 50_000
"""Entries after which helpers are started: that takes 100 to 250 ms of processor time, an entry 3 to 10 us."""
FEWEST: Final = 4
"""Processors from which they are started. Two walked 0 to 10 % faster than one, with a third more processor time."""
MOST_HELPERS: Final = 7
_LIMIT: Final = 4000
"""Entries that a helper walks before it answers."""
_OWN_LIMIT: Final = 1000
"""Entries that the caller walks before it looks for answers."""
_MOST_AT_ONCE: Final = 64
"""Directories given away at once."""


def walk_tree(root: Path, out: IO[bytes], clock: Clock = NO_CLOCK, processes: int = 1) -> Walk:
    """Write the walk file of the tree at ``root`` to ``out``, which must be seekable.

    Links from outside the tree are not part of an image, so the link counts of files with several links are corrected
    once the whole tree is known. Mounts below the root are walked. Names may be any bytes, and paths longer than
    PATH_MAX. ``clock`` was read just before: a ctime that is not older, or by another file system's clock, is not
    recorded, nor is that of a socket (a comparison must meet each of them, to warn of it). ``processes`` changes the
    speed, never the bytes.

    Raises:
        RootfsNotFound: the root does not exist or is not a directory.
        RootfsError: a directory cannot be read.
        TreeChanged: an entry was removed or changed its type during the walk.
    """
    with Rootfs(root, to_be_read=True) as opened:
        tree = TreeWalk(out, clock)
        fd = os.open(".", DIRECTORY, dir_fd=opened.fd)
        left = tree.walk(fd, opened.found, WORTH_IT if processes >= FEWEST else None)
        if left:
            with _helpers(min(processes - 1, MOST_HELPERS), opened.fd, clock) as helpers:
                _Walk(tree, opened.fd, clock, helpers, [_Item(left)]).to_end()
    tree.correct_link_counts()
    return Walk(tree.entries, tree.racy)


def walk_some(root: int, clock: Clock, directories: Sequence[Pending], limit: int | None) -> tuple[Part, list[Pending]]:
    """Walk directories below the open root, one after the other, until ``limit`` entries; also return those left."""
    out = io.BytesIO()
    tree = TreeWalk(out, clock)
    left: list[Pending] = []
    with DirectoryCache(root) as opened:
        for number, directory in enumerate(directories, 1):
            left = tree.walk_pending(opened, directory, limit)
            if left or (limit is not None and tree.entries >= limit):
                left += directories[number:]
                break
    return Part(out.getvalue(), tree.entries, tree.racy, tree.links), left


@dataclass(eq=False)
class _Item:
    """A piece of the walk file: walked, being walked, or not yet."""

    directories: list[Pending] = field(default_factory=list)
    """Walked by a helper, if it is ``given``; otherwise by anyone."""
    given: bool = False
    part: Part | None = None


class _Helper:
    """A process that walks, as its caller sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.item: _Item | None = None
        self.ready = False
        self._answers = connection.makefile("rb")

    def ask(self, item: _Item) -> None:
        self.item = item
        self.connection.sendall(pickle.dumps((item.directories, _LIMIT), pickle.HIGHEST_PROTOCOL))

    def answer(self) -> tuple[Part, list[Pending]] | None:
        """Return what it has walked; None: its greeting, or it failed.

        Raises:
            EOFError, OSError, UnpicklingError: it was killed.
        """
        found: tuple[Part, list[Pending]] | None = pickle.load(self._answers)
        return found

    def close(self) -> None:
        self._answers.close()
        self.connection.close()


@dataclass
class _Walk:
    _tree: TreeWalk
    _root: int
    _clock: Clock
    _helpers: list[_Helper]
    _items: list[_Item]
    """In the order of the walk file."""

    def to_end(self) -> None:
        while self._items:
            for helper in [*self._helpers]:
                if helper.ready and helper.item is None and (item := self._taken()) is not None:
                    self._ask(helper, item)
            own = self._taken()
            if own is not None:
                self._done(own, *walk_some(self._root, self._clock, own.directories, _OWN_LIMIT))
            self._hear(wait=own is None)
            while self._items and (part := self._items[0].part) is not None:
                self._tree.append(part)
                del self._items[0]

    def _taken(self) -> _Item | None:
        """Give away the first directories that wait, few enough that all processes get some."""
        for place, item in enumerate(self._items):
            if item.part is None and not item.given:
                count = len(item.directories) // (2 * len(self._helpers) + 1)
                count = min(max(count, 1), _MOST_AT_ONCE)
                taken = _Item(item.directories[:count], given=True)
                del item.directories[:count]
                self._items[place : place + (not item.directories)] = [taken]
                return taken
        return None

    def _done(self, item: _Item, part: Part, left: list[Pending]) -> None:
        item.part = part
        if left:
            place = self._items.index(item) + 1
            after = self._items[place] if place < len(self._items) else None
            if after is not None and after.part is None and not after.given:
                after.directories[:0] = left
            else:
                self._items.insert(place, _Item(left))

    def _ask(self, helper: _Helper, item: _Item) -> None:
        try:
            helper.ask(item)
        except OSError:
            self._lose(helper)

    def _hear(self, *, wait: bool) -> None:
        """Take the answers that have come; ``wait`` for one of those who walk."""
        asked = [helper for helper in self._helpers if helper.item is not None]
        heard = [helper for helper in self._helpers if not helper.ready] if not wait else []
        if not asked and not heard:
            return
        ready, _, _ = select.select([helper.connection for helper in asked + heard], [], [], None if wait else 0)
        for helper in asked + heard:
            if helper.connection not in ready:
                continue
            try:
                answer = helper.answer()
            except (EOFError, OSError, pickle.UnpicklingError):
                self._lose(helper)
                continue
            item, helper.item = helper.item, None
            helper.ready = True
            if item is not None:
                # The caller walks what a helper could not, at once and to its end: modes may have to be widened.
                self._done(item, *(answer or walk_some(self._root, self._clock, item.directories, None)))

    def _lose(self, helper: _Helper) -> None:
        """Go on without a helper; its directories wait again."""
        self._helpers.remove(helper)
        helper.close()
        if helper.item is not None:
            helper.item.given = False


@contextmanager
def _helpers(count: int, root: int, clock: Clock) -> Iterator[list[_Helper]]:
    """Yield the helpers: none if a process cannot be started."""
    helpers: list[_Helper] = []
    with ExitStack() as stack:
        with suppress(OSError), ExitStack() as passed:
            others = []
            for _ in range(count):
                own, other = socket.socketpair()
                others.append(passed.enter_context(other).fileno())
                helpers.append(_Helper(own))
                stack.callback(helpers[-1].close)
            stack.enter_context(started(f"{__package__}.walk_helper", root, *others))
            for helper in helpers:
                helper.connection.sendall(pickle.dumps(clock, pickle.HIGHEST_PROTOCOL))
        yield helpers
        for helper in helpers:
            helper.close()
