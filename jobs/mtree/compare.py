"""Compare two trees, in one pass over both, into the deltas between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from layerfarm.jobs.errors import MtreeError
from layerfarm.jobs.fs import HOST_XATTRS
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.holding import Held
from layerfarm.jobs.mtree.keywords import BILLION
from layerfarm.jobs.mtree.model import ROOT, UNRECORDED, UNRECORDED_TIME, Delta, DeltaKind, Entry, Xattrs


def compare(old: Iterable[Entry], new: Iterable[Entry]) -> Iterator[Delta]:
    """What has to be done to ``old`` to get ``new``; both in mtree order, and so are the deltas.

    Compared are type, mode, uid, gid, size and nlink (not of directories, whose are the file system's
    affair: umoci.md D limit 5), mtime in whole seconds, link, sha256, device and xattrs but the host's. What one
    side does not record is not compared.

    A directory that became something else, or the reverse, is one Modified with ``type`` among its keys.
    What was in a directory that became something else is not reported: a whiteout for it would reach
    through the new symlink and delete other files (umoci.md B1.12).

    Raises:
        MtreeError: a side is not in mtree order or holds a path twice.
    """
    held = Held()
    for delta in _merge(old, new, held):
        if held.waiting:
            held.append(delta)
        else:
            yield from held.release()
            yield delta
    held.settle(None)
    yield from held.release()


def _merge(old: Iterable[Entry], new: Iterable[Entry], held: Held) -> Iterator[Delta]:
    olds, news = _keyed(old, "old"), _keyed(new, "new")
    old_key, before = next(olds, _END)
    new_key, after = next(news, _END)
    while before is not None or after is not None:
        if held.waiting:
            held.settle(min(old_key, new_key))
        elif before is None:
            # Most of a new tree comes after all of the old one: nothing of the rest can be another entry's counterpart.
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
                # Where the other tree has a directory of this name it comes later in mtree order.
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


_AFTER_ALL = b"\xff"
"""Greater than any mtree key: those begin with 0 or 1."""
_END: tuple[bytes, Entry | None] = (_AFTER_ALL, None)


def _keyed(entries: Iterable[Entry], side: str) -> Iterator[tuple[bytes, Entry | None]]:
    """Each entry with its mtree key (model.mtree_key, here with the part of the directory remembered)."""
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
    """The key that a directory would have in the place of a non-directory with ``key``."""
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
        # What was held back is of the same tree.
        only = before or after
        where = None if only is None else only.path
        raise MtreeError("a tree holds a path both as a directory and as something else", where=where)
    return Delta(DeltaKind.MODIFIED, after.path, before, after, differing_keys(before, after))


def differing_keys(old: Entry, new: Entry) -> tuple[str, ...]:
    """The mtree keywords in which two entries of one path differ, sorted."""
    _, kind, mode, uid, gid, size, nlink, mtime, link, sha256, xattrs, device = old
    _, kind2, mode2, uid2, gid2, size2, nlink2, mtime2, link2, sha2562, xattrs2, device2 = new
    # The usual case first: this decides over the speed of a comparison.
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


def simplify(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Drop a Missing whose ancestor is Missing: one whiteout removes a directory whole (umoci.md B1.11)."""
    below = None
    for delta in deltas:
        if delta.kind is DeltaKind.MISSING:
            if below is not None and delta.path.startswith(below):
                continue
            below = delta.path + b"/"
        yield delta


def mask(deltas: Iterable[Delta], paths: Sequence[bytes]) -> Iterator[Delta]:
    """Drop the deltas of ``paths`` and of everything below them; compared as text, no link is looked at.

    The paths may be written absolute, as an image's volumes are. The root's path masks everything.
    """
    masked = {_normal(path) for path in paths}
    if not masked:
        yield from deltas
        return
    if ROOT in masked:
        return
    for delta in deltas:
        path = delta.path
        while path and path not in masked:
            path = path.rpartition(b"/")[0]
        if not path:
            yield delta


def _normal(path: bytes) -> bytes:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts) or ROOT
