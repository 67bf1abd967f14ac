"""Set the tags of many images with one write of the index: those that one thread's work leaves to be set together.

A run of a catalog sets two tags for each of its images. If each were a new ``index.json``, the bytes written would grow
with the square of the catalog: 80 GB for 10,000 images. The thread works on some images, writes their tags together,
and only then records these images as done. If its process dies before, the images are done again.
Names of new blobs become durable together too, just before the index that names them: one sync of a directory for all.

Jobs of a farm form no groups. There the tag is the job's effect: it is set under the job's lease and the fence of its
attempt, before the job counts as done. A tag that another process sets later would come after both, and if that dies, a
job is done whose image has no tag. A worker cannot wait for more jobs either, it has one at a time. Workers that set
tags at the same time share a write of the index (:mod:`layerfarm.jobs.store.tag_batch`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.store.atomic_file import Renames
from layerfarm.jobs.store.descriptor import Descriptor
from layerfarm.jobs.store.tag_batch import TagRequest

if TYPE_CHECKING:
    from layerfarm.jobs.store.layout import Layout

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_MOST: Final = 256
"""Pieces of work in a group."""
_SECONDS: Final = 2.0
"""Age at which a group is written: the most work that is lost with its process, beside one piece."""


class _Change(NamedTuple):
    """One call of :meth:`Layout.tag` or :meth:`Layout.attach`."""

    layout: Layout
    request: TagRequest | None
    referrers: Sequence[Descriptor] = ()


class TagGroup:
    """Changes of the indexes of some layouts, to be written together; for one thread.

    Other layouts, such as a temporary one, are written at once.
    """

    def __init__(self, *layouts: Path) -> None:
        self.layouts = set(layouts)
        self._pieces: list[list[_Change]] = []
        self._open: list[_Change] = []
        self._tags: dict[tuple[Path, str], Descriptor] = {}
        self._oldest = time.monotonic()
        self._renames = Renames()

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Collect what this thread tags and attaches meanwhile; drop it if the work fails."""
        self._open = []
        token = _current.set(self)
        try:
            with self._renames.collected():
                yield
            self._pieces.append(self._open)
            self._tags |= _tags(self._open)
        finally:
            self._open = []
            _current.reset(token)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Make everything durable together that is written of the pieces inside the block."""
        with self._renames.collected():
            yield
        self._renames.sync()

    @property
    def is_full(self) -> bool:
        """Return True if the group is to be written now."""
        return len(self._pieces) >= _MOST or time.monotonic() - self._oldest > _SECONDS

    def tag(self, layout: Layout, request: TagRequest) -> None:
        """Add a tag to the open piece. Raises InvalidReference: it breaks the grammar."""
        _ = request.entry
        self._open.append(_Change(layout, request))

    def attach(self, layout: Layout, referrers: Sequence[Descriptor]) -> None:
        """Add referrers to the open piece."""
        self._open.append(_Change(layout, None, referrers))

    def named(self, layout: Layout, tag: str) -> Descriptor | None:
        """Return the entry to which the group sets the tag, if it does."""
        return _tags(self._open).get((layout.path, tag)) or self._tags.get((layout.path, tag))

    def write(self) -> list[LayerfarmError | None]:
        """Write the changes of all pieces and begin again; return the error of each piece, in order.

        The tags of a piece without an error are then in the index, durably.
        """
        pieces, self._pieces, self._tags = self._pieces, [], {}
        self._oldest = time.monotonic()
        errors: list[LayerfarmError | None] = [None] * len(pieces)
        try:
            self._renames.sync()
        except LayerfarmError as error:
            return [error] * len(pieces)
        by_layout: dict[Path, list[tuple[int, _Change]]] = {}
        for number, piece in enumerate(pieces):
            for change in piece:
                by_layout.setdefault(change.layout.path, []).append((number, change))
        for changes in by_layout.values():
            requests = [(number, change.request) for number, change in changes if change.request is not None]
            referrers = [each for _, change in changes for each in change.referrers]
            layout = changes[0][1].layout
            try:
                found = layout.tag_all([request for _, request in requests], referrers)
            except LayerfarmError as error:
                for number, _ in changes:
                    errors[number] = errors[number] or error
            else:
                for (number, _), failed in zip(requests, found, strict=True):
                    errors[number] = errors[number] or failed
        return errors


def in_groups(
    items: Iterable[ItemT],
    layout: Path,
    work: Callable[[ItemT], ResultT],
    ended: Callable[[ItemT, ResultT, LayerfarmError | None], None],
) -> None:
    """Do ``work`` on each item; call ``ended`` with its result when its tags in the layout are written, or the error.

    If the work raises, the items before it end too.
    """
    group = TagGroup(layout)
    done: list[tuple[ItemT, ResultT]] = []

    def write() -> None:
        errors = group.write()
        with group.recording():
            for (item, result), error in zip(done, errors, strict=True):
                ended(item, result, error)
        done.clear()

    try:
        for item in items:
            with group.piece():
                result = work(item)
            done.append((item, result))
            if group.is_full:
                write()
    finally:
        write()


def _tags(piece: Sequence[_Change]) -> dict[tuple[Path, str], Descriptor]:
    return {(each.layout.path, each.request.tag): each.request.entry for each in piece if each.request is not None}


_current: ContextVar[TagGroup | None] = ContextVar("layerfarm_tag_group", default=None)


def group_for(layout: Path) -> TagGroup | None:
    """Return the group that collects this thread's tags in the layout now, if any."""
    group = _current.get()
    return group if group is not None and layout in group.layouts else None
