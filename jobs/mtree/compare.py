"""Compare two trees, in one pass over both, into the deltas between them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from layerfarm.jobs.errors import MtreeError
from layerfarm.jobs.fs import HOST_XATTRS
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.model import BILLION, ROOT, UNRECORDED, UNRECORDED_TIME, Delta, DeltaKind, Entry, Xattrs

_AFTER_ALL: Final = b"\xff"
"""Greater than any mtree key, which begin with 0 or 1."""
_END: Final[tuple[bytes, Entry | None]] = (_AFTER_ALL, None)
_HELD_IN_MEMORY: Final = 20_000


def compare(old: Iterable[Entry], new: Iterable[Entry]) -> Iterator[Delta]:
    """Yield the deltas that turn ``old`` into ``new``; all three in mtree order.

    Compares type, mode, uid, gid, size and nlink (not of directories, where they depend on the file system: umoci.md D
    limit 5), mtime in whole seconds, link, sha256, device and xattrs but the host's. A value that one side does not
    record is not compared.

    A directory that became something else, or the reverse, is one Modified with ``type`` among its keys. The old
    contents of a directory that became something else are not reported: a whiteout for them would reach through the
    new symlink and delete other files (umoci.md B1.12).

    Raises:
        MtreeError: a side is not in mtree order or holds a path twice.
    """
    held = TypeChangeBuffer()
    for delta in _merge(old, new, held):
        if held.waiting:
            held.append(delta)
        else:
            yield from held.release()
            yield delta
    held.settle(None)
    yield from held.release()


def _merge(old: Iterable[Entry], new: Iterable[Entry], held: TypeChangeBuffer) -> Iterator[Delta]:
    olds, news = _keyed(old, "old"), _keyed(new, "new")
    old_key, before = next(olds, _END)
    new_key, after = next(news, _END)
    while before is not None or after is not None:
        if held.waiting:
            held.settle(min(old_key, new_key))
        elif before is None:
            # With an empty or short old tree, no remaining entry has a counterpart.
            for _, entry in chain(((new_key, after),), news):
                assert entry is not None
                yield tuple.__new__(Delta, (DeltaKind.EXTRA, entry.path, None, entry, ()))
            return
        if old_key == new_key:
            assert before is not None and after is not None
            keys = differing_keys(before, after)
            if keys:
                yield Delta(DeltaKind.MODIFIED, after.path, before, after, keys)
            old_key, before = next(olds, _END)
            new_key, after = next(news, _END)
        elif old_key < new_key:
            assert before is not None
            other = held.counterpart(before)
            if before.type != "dir":
                # A directory of this name in the other tree comes later in mtree order.
                place = _directory_key(old_key)
                if new_key <= place:
                    held.wait(place, Delta(DeltaKind.MISSING, before.path, old=before))
                else:
                    yield Delta(DeltaKind.MISSING, before.path, old=before)
                old_key, before = next(olds, _END)
            elif other is not None:
                held.resolve(before.path, _retyped(before, other.new))
                old_key, before = _skip_children(olds, before.path)
            else:
                yield Delta(DeltaKind.MISSING, before.path, old=before)
                old_key, before = next(olds, _END)
        else:
            assert after is not None
            other = held.counterpart(after)
            if after.type != "dir":
                place = _directory_key(new_key)
                if old_key <= place:
                    held.wait(place, Delta(DeltaKind.EXTRA, after.path, new=after))
                else:
                    yield Delta(DeltaKind.EXTRA, after.path, new=after)
            elif other is not None:
                held.resolve(after.path, None)
                yield _retyped(other.old, after)
            else:
                yield Delta(DeltaKind.EXTRA, after.path, new=after)
            new_key, after = next(news, _END)


def _keyed(entries: Iterable[Entry], side: str) -> Iterator[tuple[bytes, Entry | None]]:
    """Yield each entry with its mtree key (:func:`mtree_key`, the directory's part cached)."""
    directory: bytes | None = None
    prefix = b""
    last = None
    for entry in entries:
        path = entry.path
        if path == ROOT:
            key = b""
        else:
            head, _, name = path.rpartition(b"/")
            if head != directory:
                directory = head
                prefix = b"\1" + head.replace(b"/", b"\0\1") + b"\0" if head else b""
            key = prefix + (b"\1" if entry.type == "dir" else b"\0") + name + b"\0"
        if last is not None and key <= last:
            raise MtreeError(f"the {side} tree is not in mtree order, or holds a path twice", where=path)
        last = key
        yield key, entry


def _directory_key(key: bytes) -> bytes:
    """Return the key that a directory would have in the place of a non-directory with ``key``."""
    name = key.rindex(b"\0", 0, -1)
    return key[:name] + b"\1" + key[name + 1 :]


def _skip_children(entries: Iterator[tuple[bytes, Entry | None]], path: bytes) -> tuple[bytes, Entry | None]:
    below = path + b"/"
    for key, entry in entries:
        assert entry is not None
        if not entry.path.startswith(below):
            return key, entry
    return _END


def _retyped(before: Entry | None, after: Entry | None) -> Delta:
    if before is None or after is None:
        # Both come from the same tree.
        only = before or after
        where = None if only is None else only.path
        raise MtreeError("a tree holds a path both as a directory and as something else", where=where)
    return Delta(DeltaKind.MODIFIED, after.path, before, after, differing_keys(before, after))


def differing_keys(old: Entry, new: Entry) -> tuple[str, ...]:
    """Return the mtree keywords in which two entries of one path differ, sorted."""
    _, kind, mode, uid, gid, size, nlink, mtime, link, sha256, xattrs, device = old
    _, kind2, mode2, uid2, gid2, size2, nlink2, mtime2, link2, sha2562, xattrs2, device2 = new
    # The usual case first: it decides the speed of a comparison.
    if (
        mode == mode2
        and kind == kind2
        and uid == uid2
        and gid == gid2
        and ((size == size2 and nlink == nlink2) or kind == "dir")
        and mtime // BILLION == mtime2 // BILLION
        and link == link2
        and sha256 == sha2562
        and xattrs == xattrs2
        and device == device2
    ):
        return ()
    keys = []
    if kind != kind2:
        keys.append("type")
    for name, one, other in (("mode", mode, mode2), ("uid", uid, uid2), ("gid", gid, gid2)):
        if one != other and UNRECORDED not in (one, other):
            keys.append(name)
    if kind != "dir" != kind2:
        for name, one, other in (("size", size, size2), ("nlink", nlink, nlink2)):
            if one != other and UNRECORDED not in (one, other):
                keys.append(name)
    if mtime // BILLION != mtime2 // BILLION and UNRECORDED_TIME not in (mtime, mtime2):
        keys.append("tar_time")
    if link != link2 and link is not None and link2 is not None:
        keys.append("link")
    if sha256 != sha2562 and sha256 is not None and sha2562 is not None:
        keys.append("sha256digest")
    if device != device2 and device is not None and device2 is not None:
        keys.append("device")
    if xattrs != xattrs2:
        keys += _differing_xattrs(xattrs or (), xattrs2 or ())
    return tuple(sorted(keys))


def _differing_xattrs(old: Xattrs, new: Xattrs) -> list[str]:
    before, after = dict(old), dict(new)
    return [
        "xattr." + vis.encode(name).decode("ascii")
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and name not in HOST_XATTRS
    ]


class TypeChangeBuffer:
    """Deltas that wait until it is known whether the other tree has a directory of the same name.

    In mtree order a file comes before a directory of its name, so a file that only one tree has may be one half of a
    change of type. It waits until the other tree has passed that place; later deltas queue behind it, on disk if they
    are many.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, bytes]] = []
        """Heap of (place of the directory, path)."""
        self._open: dict[bytes, Delta] = {}
        self._settled: dict[bytes, Delta | None] = {}
        self._queue: list[Delta | bytes] = []
        self._file: BinaryIO | None = None

    def wait(self, place: bytes, delta: Delta) -> None:
        heappush(self.waiting, (place, delta.path))
        self._open[delta.path] = delta
        self.append(delta.path)

    def append(self, item: Delta | bytes) -> None:
        self._queue.append(item)
        if len(self._queue) >= _HELD_IN_MEMORY:
            if self._file is None:
                self._file = TemporaryFile()
            pickle.dump(self._queue, self._file, pickle.HIGHEST_PROTOCOL)
            self._queue.clear()

    def counterpart(self, entry: Entry) -> Delta | None:
        return self._open.get(entry.path) if self._open and entry.type == "dir" else None

    def resolve(self, path: bytes, delta: Delta | None) -> None:
        """Replace the waiting delta of ``path`` by ``delta``, or drop it."""
        del self._open[path]
        self._settled[path] = delta

    def settle(self, key: bytes | None) -> None:
        """Release deltas that wait for a place before ``key`` (None: the end), which is no change of type."""
        while self.waiting and (key is None or self.waiting[0][0] < key):
            path = heappop(self.waiting)[1]
            delta = self._open.pop(path, None)
            if delta is not None:
                self._settled[path] = delta

    def release(self) -> Iterator[Delta]:
        """Yield all queued deltas in order, once none waits any more."""
        if not self._queue and self._file is None:
            return
        for queue in self._queues():
            for item in queue:
                delta = self._settled.pop(item) if isinstance(item, bytes) else item
                if delta is not None:
                    yield delta
        self._queue.clear()

    def _queues(self) -> Iterator[list[Delta | bytes]]:
        if self._file is not None:
            with self._file as stream:
                end = stream.tell()
                stream.seek(0)
                while stream.tell() < end:
                    yield pickle.load(stream)  # written above, to a file without a name
            self._file = None
        yield self._queue
