"""Deltas into a layer: the raw tar of what was added and changed, and whiteouts for what is gone.

The mirror of :mod:`layerfarm.jobs.layer.extract`. Every rule is one of umoci.md B1, without its BUGs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from layerfarm.jobs.errors import LayerError, TreeChanged, UnsafePath
from layerfarm.jobs.fs import DirectoryCache, Rootfs, unreadable
from layerfarm.jobs.layer.builder import GenerateOptions, Packer
from layerfarm.jobs.layer.whiteouts import check_real_name, whiteout_name
from layerfarm.jobs.mtree.model import ROOT, Delta, DeltaKind

__all__ = ["GenerateOptions", "generate_layer"]


def generate_layer(root: Path, deltas: Iterable[Delta], options: GenerateOptions | None = None) -> Iterator[bytes]:
    """The raw tar of a layer that turns the old tree into the one at ``root``.

    Only the kind and the path of a delta are used, in any order. Entries come out depth first, each
    directory's names bytewise and its whiteouts before everything else (B1.10); the same tree and deltas
    give the same bytes. Nothing inside ``root`` is followed, only regular files are opened.

    Raises (while iterating):
        RootfsNotFound: ``root`` is not a directory.
        TreeChanged: an entry has vanished, appeared or changed since the comparison, or does so now.
        LayerError: an entry cannot be stored in a layer.
        UnsafePath: a path leads out of the root.
        UnmappedId: an owner has no place in the id maps.
    """
    keys = sorted({_key(delta) for delta in deltas})
    with Rootfs(root, to_be_read=True) as rootfs, DirectoryCache(rootfs.fd) as directories:
        packer = Packer(options or GenerateOptions())
        for position, key in enumerate(keys):
            # A path is needed once: a million of them are 100 MB.
            keys[position] = b""
            path, is_whiteout = _path(key)
            try:
                directory, base = directories.parent(path)
                # The root by what it was: its mode may be widened now.
                found = rootfs.found if path == ROOT else _lstat(directory, base)
            except UnsafePath as error:
                if is_whiteout:
                    continue
                raise TreeChanged("a parent directory became a symbolic link", where=path) from error
            except (FileNotFoundError, NotADirectoryError) as error:
                if is_whiteout:
                    # The directory above is itself gone or no directory any more: its own entry says
                    # so. A whiteout here would reach through what stands there now (B1.11, B1.12).
                    continue
                raise TreeChanged("entry has vanished since the trees were compared", where=path) from error
            except OSError as error:
                raise unreadable(error, path) from error
            if is_whiteout:
                if found is not None:
                    raise TreeChanged("entry has appeared since the trees were compared", where=path)
                check_real_name(path)
                yield from packer.whiteout(whiteout_name(path))
                continue
            if found is None:
                raise TreeChanged("entry has vanished since the trees were compared", where=path)
            try:
                yield from packer.entry(directory, base, found, path)
            except FileNotFoundError as error:
                raise TreeChanged("entry has vanished while the layer was written", where=path) from error
            except OSError as error:
                raise unreadable(error, path) from error
        yield from packer.end()


def _key(delta: Delta) -> bytes:
    """A key that sorts deltas into the layer's order and holds all that is needed of them.

    The path with NUL for its slashes: a directory before what is below it, names bytewise. A whiteout
    has one NUL more before its name, which puts it before its siblings.
    """
    path = delta.path
    if path == ROOT:
        if delta.kind is DeltaKind.MISSING:
            raise LayerError("a layer cannot delete the root")
        return b""
    parts = path.split(b"/")
    if not path or b"\0" in path or b"" in parts or b"." in parts or b".." in parts:
        raise UnsafePath("not a path below the root", where=path)
    if delta.kind is DeltaKind.MISSING:
        parts[-1] = b"\0" + parts[-1]
    elif delta.kind not in (DeltaKind.EXTRA, DeltaKind.MODIFIED):
        raise LayerError(f"delta of unknown kind {delta.kind!r}", where=path)
    return b"\0".join(parts)


def _path(key: bytes) -> tuple[bytes, bool]:
    """The path of a key, and whether it is a whiteout."""
    if not key:
        return ROOT, False
    head, mark, name = key.rpartition(b"\0\0")
    if mark:
        return head.replace(b"\0", b"/") + b"/" + name, True
    if key.startswith(b"\0"):
        return key[1:], True
    return key.replace(b"\0", b"/"), False


def _lstat(directory: int, base: bytes) -> os.stat_result | None:
    try:
        return os.stat(base, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
