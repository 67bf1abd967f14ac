"""Set many tags at once: the holder of the index's lock writes the tags of all waiting writers.

If each tag were a new ``index.json``, 64 writers of 1,000 tags would write 64,000 of them, 450 GB. So a writer that
finds the index locked leaves a request in ``.layerfarm/tagging/``, as a file; the holder of the lock puts all of them
into one new index, and then writes into each request that it is granted, or which blob is missing. The answer is in the
file that its writer created, because opening a known file asks the server also on NFS, where a new name may stay
invisible for a minute.

A request is granted only while its writer lives: one untouched for ``PATIENCE`` is dropped, so that the request of a
dead writer does not overwrite newer tags a day later. A holder that dies between the index and the answers leaves
requests that the next one grants again, oldest first, to the same effect.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from layerfarm.jobs.errors import BlobNotFound, LayerfarmError, MalformedDocument, UnsafePath
from layerfarm.jobs.fs.names import ask_for_names
from layerfarm.jobs.store.atomic_file import (
    BLOBS,
    PRIVATE_DIRECTORY,
    explained,
    files_of,
    make_directory,
    new_file,
    pauses,
)
from layerfarm.jobs.store.descriptor import Descriptor, named
from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.index import IndexFile
from layerfarm.jobs.store.index_text import IndexText
from layerfarm.jobs.store.locks import Lock, LockLost
from layerfarm.jobs.store.retention import Commit, Commits

PATIENCE: Final = 60.0
"""Seconds on the store's clock after which an untouched request is dropped."""
TOUCH: Final = 5.0
"""Seconds between two touches by the waiting writer."""
_LONGEST: Final = 0.5
"""Seconds between two looks at a request that another writer is to grant, at most on average."""
_MOST: Final = 512
"""Requests that are granted at once; as many files are open then."""
_GRANTED: Final = b"granted"
_REFUSED: Final = b"refused "
_LARGEST: Final = 1 << 20
"""Bytes of a request: far more than the image with the most layers needs."""


class TagRequest(Document):
    """Let ``tag`` name ``descriptor``, if the blobs of ``needs`` exist."""

    tag: str
    descriptor: Descriptor
    needs: list[Descriptor] = []
    once: str = Field(default="", pattern=r"^[0-9a-z_-]{0,80}$")
    """See :class:`layerfarm.jobs.store.retention.Commits`."""
    referrers: list[Descriptor] = []
    """Entries without tags that are added with the tag."""

    @property
    def entry(self) -> Descriptor:
        """Return the entry of the index. Raises InvalidReference: ``tag`` breaks the grammar."""
        return named(self.descriptor, self.tag)


@dataclass
class _Waiting:
    """The request of another writer, open for the answer."""

    fd: int
    request: TagRequest


class TagBatch:
    """Sets tags in one layout. ``has``: whether the layout holds a blob."""

    def __init__(self, layout: Path, index: IndexFile, has: Callable[[Descriptor], bool]) -> None:
        self._layout = layout
        self._index = index
        self._has = has
        self._commits = Commits(layout)
        self._directory = layout / PRIVATE_DIRECTORY / "tagging"
        self._files = files_of(layout)

    def give(self, request: TagRequest) -> None:
        """Return when the tag is in the index, durably.

        Raises:
            InvalidReference: the tag breaks the grammar.
            BlobNotFound: a blob of ``needs`` is missing.
        """
        _ = request.entry
        with explained("tag cannot be set", self._layout):
            try:
                another = self._give(request)
            except LockLost:
                another = self._index.holding(lambda lock: self._grant_one(lock, request))
            if another and request.referrers:
                # A holder of an earlier version gives the tag alone.
                self._index.update(lambda index: index.attached(request.referrers))

    def give_all(self, requests: Sequence[TagRequest], referrers: Iterable[Descriptor]) -> list[BlobNotFound | None]:
        """Set tags in this order, and add entries without tags, with one write of the index.

        Return, for each request, the error if one of its blobs is missing; then its tag is not set.
        """
        with explained("tags cannot be set", self._layout):
            answers = self._index.holding(lambda lock: self._grant(lock, requests, referrers))
        return [None if missing is None else _gone(missing) for missing in answers]

    def _give(self, request: TagRequest) -> bool:
        """Give the tag, or wait until another writer gives it; return True if another one may have.

        Raises:
            LockLost: it is not given.
        """
        with self._index.lock() as lock:
            if lock.take_if_free():
                return self._grant_one(lock, request)
            with self._waiting(request) as path:
                touched = time.monotonic()
                waits = pauses(_LONGEST)
                while True:
                    time.sleep(next(waits))
                    if self._is_granted(path):
                        break
                    if lock.take_if_free():
                        self._settle(lock, path, request)
                        break
                    if time.monotonic() - touched > TOUCH:
                        touched = time.monotonic()
                        with suppress(FileNotFoundError):
                            self._files.touch(path)
        return True

    # --- a writer that waits -----------------------------------------------------------------------

    @contextmanager
    def _waiting(self, request: TagRequest) -> Iterator[Path]:
        """Yield the request as a file that others find whole or not at all."""
        staging = self._layout / PRIVATE_DIRECTORY / "ingest"
        make_directory(self._directory, self._layout)
        temporary = new_file(staging, self._layout, encode_document(request), durable=False)
        # Ordered in time by their names; a touch does not change that.
        path = self._directory / f"{self._files.lstat(temporary).st_mtime_ns:020d}-{temporary.name}"
        try:
            self._files.rename(temporary, path, unique=True)
            yield path
        finally:
            for name in (temporary, path):
                with suppress(FileNotFoundError):
                    self._files.unlink(name)

    def _settle(self, lock: Lock, path: Path, request: TagRequest) -> None:
        """Grant this writer's request under the lock, unless another holder did."""
        if not self._is_granted(path):
            with suppress(FileNotFoundError):
                self._files.unlink(path)
            self._grant_one(lock, request)

    def _is_granted(self, path: Path) -> bool:
        """Return True if the request is granted; False if it is unanswered or was dropped.

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

    # --- the holder of the lock --------------------------------------------------------------------

    def _grant_one(self, lock: Lock, request: TagRequest) -> bool:
        """Return False: no other writer gave the tag."""
        (missing,) = self._grant(lock, [request])
        if missing is not None:
            raise _gone(missing)
        return False

    def _grant(self, lock: Lock, own: Sequence[TagRequest], referrers: Iterable[Descriptor] = ()) -> list[str | None]:
        """Put all requested tags into the index; this writer's requests are the newest.

        Return, for each of ``own``, the digest of a missing blob.

        Raises:
            LockLost: nothing was changed.
        """
        with ExitStack() as stack:
            index = self._index.settled()
            waiting = self._collect(stack)
            requests = [*(one.request for one in waiting), *own]
            for algorithm in {blob.digest.partition(":")[0] for each in requests for blob in each.needs}:
                ask_for_names(self._layout / BLOBS / algorithm)
            seen: dict[tuple[str, int], bool] = {}
            granted: dict[str, Descriptor] = {}
            attached = list(referrers)
            answers: list[str | None] = []
            begun: dict[str, tuple[Path, Commit]] = {}
            for each in requests:
                before = _named_by(index, each.tag) if each.once else []
                names = [found.digest for found in before]
                if each.once and (each.once in begun or self._commits.is_done(each.once, each.tag, names)):
                    answers.append(None)
                    continue
                missing = self._missing(each, seen)
                answers.append(missing)
                if missing is None:
                    granted.pop(each.tag, None)
                    granted[each.tag] = each.entry
                    attached += each.referrers
                    if each.once:
                        # A tag that names this already is not changed, so one record is enough.
                        done = before == [each.entry] and not each.referrers
                        commit = Commit(tag=each.tag, before=names, after=each.descriptor.digest, done=done)
                        begun[each.once] = self._commits.begin(each.once, commit, self._index.now()), commit
            self._index.replace(lock, index, index.change(granted).attached(attached))
            for record, commit in begun.values():
                if not commit.done:
                    self._commits.end(record, commit)
            for one, missing in zip(waiting, answers, strict=False):
                answer = _GRANTED if missing is None else _REFUSED + missing.encode()
                with suppress(OSError):  # A writer without an answer takes the lock.
                    os.pwrite(one.fd, answer + b"\n", 0)
        return answers[len(waiting) :]

    def _collect(self, stack: ExitStack) -> list[_Waiting]:
        """Return the requests of other writers, oldest first; those of dead writers are removed."""
        names = sorted(self._files.names(self._directory))
        if not names:
            return []
        oldest = self._index.now() - PATIENCE
        found = []
        for name in names[:_MOST]:
            path = self._directory / name
            with _unless_removed():
                if self._files.lstat(path).st_mtime < oldest:
                    self._files.remove(path)
                elif (one := self._opened(path, stack)) is not None:
                    found.append(one)
        return found

    def _opened(self, path: Path, stack: ExitStack) -> _Waiting | None:
        """Open a request; None: not a request, answered already, or not writable (its writer grants it)."""
        try:
            fd = self._files.open(path, os.O_RDWR)
        except (PermissionError, IsADirectoryError, UnsafePath):
            return None
        stack.callback(_close, fd)
        raw = os.read(fd, _LARGEST)
        if not raw.startswith(b"{"):
            return None
        try:
            request = parse_document(TagRequest, raw, path.name)
            _ = request.entry
        except LayerfarmError:
            return None
        return _Waiting(fd, request)

    def _missing(self, request: TagRequest, seen: dict[tuple[str, int], bool]) -> str | None:
        """Return the digest of a blob that the request needs and the layout does not hold."""
        for blob in request.needs:
            key = (blob.digest, blob.size)
            if key not in seen:
                seen[key] = bool(blob.urls or blob.data is not None or self._has(blob))
            if not seen[key]:
                return blob.digest
        return None


@contextmanager
def _unless_removed() -> Iterator[None]:
    """Suppress the error of a request that its writer has removed; NFS calls it stale if it was found before."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise


def _close(fd: int) -> None:
    """Close a request. A file server may refuse an answer only now."""
    with suppress(OSError):
        os.close(fd)


def _named_by(index: IndexText, tag: str) -> list[Descriptor]:
    """Return what the tag names; nothing for another tool's invalid entry."""
    with suppress(MalformedDocument):
        return index.find(tag)
    return []


def _gone(digest: str) -> BlobNotFound:
    return BlobNotFound(
        "store does not hold the blob any more",
        where=digest,
        hint="removed by gc? try again; see docs/store.md#leases",
    )
