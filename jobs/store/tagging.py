"""Give many tags at once: whoever gets the lock writes the index for all who wait for it.

The index is one file, and a tag is given when it is in there, durably. Were each tag a new ``index.json``,
64 writers of 1,000 tags would write 64,000 of them, 450 GB. So who finds the index locked leaves its wish in
``.layerfarm/tagging/``, as a file; the holder of the lock collects the wishes, puts all into one new index, and
only then writes into each wish that it is granted, or which blob is missing. The answer stands in the file that
its writer made, because opening a file that one knows asks the server also on NFS, where a new name may stay
unseen for a minute.

A wish is granted while its writer lives and looks after it, or not at all: one that nobody has touched for
``PATIENCE`` is dropped, so that the wish of a writer that died does not come true a day later, on top of newer
ones. A holder that dies between the index and the answers leaves wishes that the next one grants once more,
oldest first, to the same effect.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from layerfarm.jobs.errors import BlobNotFound, LayerfarmError, MalformedDocument, UnsafePath
from layerfarm.jobs.store.commits import Commit, Commits
from layerfarm.jobs.store.descriptor import Descriptor
from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.durable import create_file, explained, files_of, make_directory, write_all
from layerfarm.jobs.store.indexfile import PRIVATE_DIRECTORY, IndexFile
from layerfarm.jobs.store.indextext import IndexText
from layerfarm.jobs.store.locks import pauses
from layerfarm.jobs.store.refs import named

PATIENCE: Final = 60.0
"""Seconds on the store's clock after which a wish that nobody touches is one of the dead."""
TOUCH: Final = 5.0
"""Seconds between two touches by the writer that waits."""
_MOST: Final = 512
"""Wishes that are granted at once; as many files are open then."""
_GRANTED: Final = b"granted"
_REFUSED: Final = b"refused "
_LARGEST: Final = 1 << 20
"""Bytes of a wish: far more than an image of the most layers needs."""


class Wish(Document):
    """``tag`` is to name ``descriptor``, for which the blobs of ``needs`` have to be there."""

    tag: str
    descriptor: Descriptor
    needs: list[Descriptor] = []
    once: str = Field(default="", pattern=r"^[0-9a-z_-]{0,80}$")
    """See :mod:`layerfarm.jobs.store.commits`."""

    @property
    def entry(self) -> Descriptor:
        """The entry of the index. Raises InvalidReference: ``tag`` breaks the grammar."""
        return named(self.descriptor, self.tag)


@dataclass
class _Left:
    """The wish of somebody, open for the answer."""

    fd: int
    wish: Wish


class Tagging:
    """The tags of one layout being given. ``has``: whether the layout holds a blob."""

    def __init__(self, layout: Path, index: IndexFile, has: Callable[[Descriptor], bool]) -> None:
        self._layout = layout
        self._index = index
        self._has = has
        self._commits = Commits(layout)
        self._directory = layout / PRIVATE_DIRECTORY / "tagging"
        self._files = files_of(layout)

    def give(self, wish: Wish) -> None:
        """Return when the tag is in the index, durably.

        Raises:
            InvalidReference: the tag breaks the grammar.
            BlobNotFound: a blob of ``needs`` is not there.
        """
        _ = wish.entry
        with explained("tag cannot be given", self._layout), self._index.lock() as lock:
            if lock.take_if_free():
                self._grant(wish)
                return
            with self._waiting(wish) as path:
                touched = time.monotonic()
                for pause in pauses():
                    time.sleep(pause)
                    if self._is_granted(path):
                        return
                    if lock.take_if_free():
                        self._settle(path, wish)
                        return
                    if time.monotonic() - touched > TOUCH:
                        touched = time.monotonic()
                        with suppress(FileNotFoundError):
                            self._files.touch(path)

    # --- who waits ---------------------------------------------------------------------------------

    @contextmanager
    def _waiting(self, wish: Wish) -> Iterator[Path]:
        """The wish as a file that others find whole or not at all."""
        staging = self._layout / PRIVATE_DIRECTORY / "ingest"
        for directory in (staging, self._directory):
            make_directory(directory, self._layout)
        fd, temporary = create_file(staging, self._layout)
        # Their order in time is that of their names; a touch does not change it.
        path = self._directory / f"{os.fstat(fd).st_mtime_ns:020d}-{temporary.name}"
        try:
            try:
                write_all(fd, encode_document(wish))
            finally:
                os.close(fd)
            self._files.rename(temporary, path)
            yield path
        finally:
            for name in (temporary, path):
                with suppress(FileNotFoundError):
                    self._files.unlink(name)

    def _settle(self, path: Path, wish: Wish) -> None:
        """Grant the own wish, now that nobody else can: unless it was, it was dropped or not come to yet."""
        if not self._is_granted(path):
            with suppress(FileNotFoundError):
                self._files.unlink(path)
            self._grant(wish)

    def _is_granted(self, path: Path) -> bool:
        """False: not answered, or dropped.

        Raises:
            BlobNotFound: it was refused.
        """
        try:
            answer = self._files.read(path, 300).partition(b"\n")[0]
        except FileNotFoundError:
            return False
        if answer.startswith(_REFUSED):
            raise _gone(answer[len(_REFUSED) :].decode())
        return answer == _GRANTED

    # --- who holds the lock ------------------------------------------------------------------------

    def _grant(self, own: Wish) -> None:
        """Put all that is wished for into the index. The own wish is the newest."""
        with ExitStack() as stack:
            left = self._collect(stack)
            seen: dict[tuple[str, int], bool] = {}
            granted: dict[str, Descriptor] = {}
            answers: list[str | None] = []
            begun: dict[str, Commit] = {}
            for each in (*(one.wish for one in left), own):
                named = self._named(each.tag) if each.once else []
                if each.once and (each.once in begun or self._commits.is_done(each.once, each.tag, named)):
                    answers.append(None)
                    continue
                missing = self._missing(each, seen)
                answers.append(missing)
                if missing is None:
                    granted.pop(each.tag, None)
                    granted[each.tag] = each.entry
                    if each.once:
                        begun[each.once] = Commit(tag=each.tag, before=named, after=each.descriptor.digest)
                        self._commits.begin(each.once, begun[each.once])

            def change(index: IndexText) -> IndexText:
                return index.change(granted)

            self._index.replace(change)
            for name, commit in begun.items():
                self._commits.end(name, commit)
            for one, missing in zip(left, answers, strict=False):
                answer = _GRANTED if missing is None else _REFUSED + missing.encode()
                os.pwrite(one.fd, answer + b"\n", 0)
        if answers[-1] is not None:
            raise _gone(answers[-1])

    def _collect(self, stack: ExitStack) -> list[_Left]:
        """The wishes of those who wait, oldest first; those of the dead are removed."""
        names = sorted(self._files.names(self._directory))
        if not names:
            return []
        oldest = self._index.now() - PATIENCE
        found = []
        for name in names[:_MOST]:
            path = self._directory / name
            with suppress(FileNotFoundError):
                if self._files.lstat(path).st_mtime < oldest:
                    self._files.remove(path)
                elif (one := self._opened(path, stack)) is not None:
                    found.append(one)
        return found

    def _named(self, tag: str) -> list[str]:
        """The digests that the tag names; an entry of another tool that is no descriptor names none."""
        with suppress(MalformedDocument):
            return [found.digest for found in self._index.read().find(tag)]
        return []

    def _opened(self, path: Path, stack: ExitStack) -> _Left | None:
        """None: no wish, answered already, or not to be answered by us; its writer sees to it itself."""
        try:
            fd = self._files.open(path, os.O_RDWR)
        except (PermissionError, IsADirectoryError, UnsafePath):
            return None
        stack.callback(os.close, fd)
        raw = os.read(fd, _LARGEST)
        if not raw.startswith(b"{"):
            return None
        try:
            wish = parse_document(Wish, raw, path.name)
            _ = wish.entry
        except LayerfarmError:
            return None
        return _Left(fd, wish)

    def _missing(self, wish: Wish, seen: dict[tuple[str, int], bool]) -> str | None:
        """The digest of a blob that the wish needs and the layout does not hold."""
        for blob in wish.needs:
            key = (blob.digest, blob.size)
            if key not in seen:
                seen[key] = bool(blob.urls or blob.data is not None or self._has(blob))
            if not seen[key]:
                return blob.digest
        return None


def _gone(digest: str) -> BlobNotFound:
    return BlobNotFound(
        "store does not hold the blob any more",
        where=digest,
        hint="removed by a gc? try again; see docs/store.md#leases",
    )
