"""Layers that put one tree at one path, or delete one path, without a comparison (``umoci insert``, B1.18)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from layerfarm.jobs.errors import RequestError, RootfsNotFound, TreeChanged
from layerfarm.jobs.fs import DirectoryCache, Widened, unreadable
from layerfarm.jobs.fs.unprivileged import is_locked
from layerfarm.jobs.layer.builder import GenerateOptions, Packer
from layerfarm.jobs.layer.modeltree import clean
from layerfarm.jobs.layer.whiteouts import OPAQUE, check_real_name, whiteout_name
from layerfarm.jobs.mtree.model import ROOT

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def insert_layer(
    source: Path, target: bytes, *, opaque: bool = False, options: GenerateOptions | None = None
) -> Iterator[bytes]:
    """The raw tar of a layer that puts ``source``, a directory or a single entry, at ``target``.

    A directory is merged with what lower layers have there, or hides it if ``opaque``. ``target`` is
    taken from the root of the image; its parents get no entries. A ``source`` that is a symbolic link is
    stored as such.

    Raises (while iterating):
        RootfsNotFound: ``source`` does not exist.
        RequestError: ``target`` is the root and ``source`` is no directory.
        TreeChanged, LayerError, UnmappedId: as :func:`layerfarm.jobs.layer.generate_layer`.
    """
    base = b"/".join(clean(target))
    # The parent is the operator's own path; below it, names are walked by descriptor.
    place = os.fsencode(source)
    parent, name = os.path.split(place.rstrip(b"/") or b"/")
    if name in (b"", b".", b".."):
        parent, name = place, b"."
    packer = Packer(options or GenerateOptions())
    try:
        above = os.open(parent or b".", _DIRECTORY)
    except OSError as error:
        raise RootfsNotFound(f"source cannot be opened, {error.strerror}", where=source) from error
    try:
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            if not base:
                raise RequestError("only a directory can be inserted at the root", where=source)
            yield from packer.entry(above, name, found, base)
        else:
            with ExitStack() as opened:
                widened = opened.enter_context(Widened(above, name)) if is_locked(above, name, found) else None
                top = _top(above, name) if widened is None else widened.open(lambda: _top(above, name))
                opened.callback(os.close, top)
                yield from _tree(top, found, base, opaque, packer)
    except FileNotFoundError as error:
        raise RootfsNotFound("source does not exist, or something in it has vanished", where=source) from error
    except OSError as error:
        raise unreadable(error, source) from error
    finally:
        os.close(above)
    yield from packer.end()


def _top(above: int, name: bytes) -> int:
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)


def whiteout_layer(target: bytes) -> Iterator[bytes]:
    """The raw tar of a layer that deletes ``target``.

    Raises (while iterating):
        RequestError: ``target`` is the root.
        LayerError: its name cannot be that of a whiteout.
    """
    parts = clean(target)
    if not parts:
        raise RequestError("the root of an image cannot be deleted")
    path = b"/".join(parts)
    check_real_name(path)
    packer = Packer(GenerateOptions())
    yield from packer.whiteout(whiteout_name(path))
    yield from packer.end()


def _tree(top: int, found: os.stat_result, base: bytes, opaque: bool, packer: Packer) -> Iterator[bytes]:
    """A directory and everything below it, in the order of :func:`layerfarm.jobs.layer.generate_layer`."""
    yield from packer.entry(top, b".", found, base or ROOT)
    if opaque:
        yield from packer.whiteout(base + b"/" + OPAQUE if base else OPAQUE)
    with DirectoryCache(top) as directories:
        pending = _names(top, b"")
        while pending:
            path = pending.pop()
            directory, name = directories.parent(path)
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            yield from packer.entry(directory, name, found, base + b"/" + path if base else path)
            if stat.S_ISDIR(found.st_mode):
                try:
                    pending += _names(directories.directory(path), path + b"/")
                except NotADirectoryError as error:
                    raise TreeChanged("directory became something else while it was read", where=path) from error


def _names(directory: int, prefix: bytes) -> list[bytes]:
    return [prefix + name for name in sorted(map(os.fsencode, os.listdir(directory)), reverse=True)]
