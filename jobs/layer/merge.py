"""Merge layers: write the tar that turns one stack's tree into another's. Nothing is unpacked.

The trees say which members survive (:mod:`layerfarm.jobs.layer.stack`); their content is then copied from the layers
that hold it. So memory holds headers only.

Entries come in the order of a walk: a directory, its whiteouts, then all below it, names bytewise. GNU tar sets time
and mode of a directory at the first entry that is not below it, and must write into none afterwards.

The layer is self-contained: it has an entry for every directory above its entries, and every name of a
file that has several, for unpackers that see one layer at a time (a hard link to a lower layer fails there,
and a parent without an entry gets a default mode).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from layerfarm.jobs.compress.codecs import Blocks
from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.layer.names import path_of_key, walk_key, whiteout_name
from layerfarm.jobs.layer.nodes import Directory
from layerfarm.jobs.layer.stack import REGULAR, SYMLINK, Source, Stack, compare_stacks, is_same, source_of
from layerfarm.jobs.limits import limits
from layerfarm.jobs.mtree.model import ROOT
from layerfarm.jobs.tar.reader import MemberReader, Readable
from layerfarm.jobs.tar.writer import DIRECTORY, TRAILER, Header, encode_header, hardlink, padding
from layerfarm.jobs.tar.writer import REGULAR as FILE

_NS: Final = 10**9
_PIECE: Final = 1 << 20
_MOST_OPEN: Final = 4
"""Layers that are read at once: each takes a thread and some MB."""

OpenLayer = Callable[[int], AbstractContextManager[Readable]]
"""Opens the raw tar of a layer by its number in the stack, 1 for the lowest."""


@dataclass(frozen=True)
class MergeOptions:
    """Options of writing the layer."""

    source_date_epoch: int | None = None
    """Seconds; later mtimes become this value."""
    gone: Callable[[bytes], bool] = field(default=lambda path: False)
    """Paths for which it returns True count as missing from both trees, with everything below them."""
    scratch: Path | None = None
    """Directory for content that a layer has before it is needed; None: that of temporary files."""


def merge_layers(
    old: Stack | None, new: Stack, open_layer: OpenLayer, options: MergeOptions | None = None
) -> Iterator[bytes]:
    """Yield the raw tar of a layer that turns the tree of ``old``, by default an empty one, into that of ``new``.

    The same stacks give the same bytes.

    Raises (while iterating):
        LayerError, LimitExceeded: as reading the layers; OSError: the scratch file cannot be written.
    """
    options = options or MergeOptions()
    plan = _Plan(old or Stack(), new, options.gone)
    encoder = _Encoder(options.source_date_epoch, ROOT in plan.directories)
    blocks = Blocks()
    with _Contents(filter(_has_content, plan.sources), open_layer, options.scratch) as contents:
        for path, what in plan.entries():
            if what is None:
                yield from blocks.put(encoder.whiteout(path))
            elif isinstance(what, Directory):
                yield from blocks.put(encoder.directory(path, what))
            elif path != plan.sources[what]:
                yield from blocks.put(encoder.link(what, path, plan.sources[what]))
            else:
                yield from blocks.put(encode_header(encoder.source(what, path)))
                if _has_content(what):
                    for piece in contents.of(what):
                        yield from blocks.put(piece)
                    yield from blocks.put(padding(what.member.size))
    yield from blocks.put(TRAILER)
    yield blocks.rest()


def _has_content(source: Source) -> bool:
    return source.member.type == REGULAR and source.member.size > 0


class _Plan:
    """The entries of the layer."""

    def __init__(self, old: Stack, new: Stack, gone: Callable[[bytes], bool]) -> None:
        self.directories: dict[bytes, Directory] = {}
        """Those that get an entry, by path."""
        self.sources: dict[Source, bytes] = {}
        """Each inode to be written, and the first of its paths; the others are links to that."""
        self._whiteouts: list[bytes] = []
        self._paths: dict[bytes, Source] = {}
        self._everywhere: dict[bytes, Directory] = {}
        single: dict[Source, bytes] = {}
        changed: list[bytes] = []
        for path, before, after in compare_stacks(old, new, gone):
            if after is None:
                self._whiteouts.append(path)
                continue
            same = is_same(before, after)
            if isinstance(after, Directory):
                self._everywhere[path] = after
                if not same:
                    changed.append(path)
            elif not same:
                single[source_of(after)] = path
        names = new.names()
        for source, path in single.items():
            paths = [name for name in names.get(source, ()) if not gone(name)] or [path]
            self.sources[source] = min(paths, key=walk_key)
            self._paths.update(dict.fromkeys(paths, source))
        # The root of an empty stack is implied, like any directory without an entry.
        for path in changed:
            self.directories[path] = self._everywhere[path]
        for path in [*changed, *self._whiteouts, *self._paths]:
            self._add_parents(path)

    def entries(self) -> Iterator[tuple[bytes, Directory | Source | None]]:
        """Yield all entries in the order of a walk, the whiteouts of a directory first; None: a whiteout."""
        keys = [walk_key(path) for path in (*self.directories, *self._paths)]
        keys += [walk_key(path, whiteout=True) for path in self._whiteouts]
        keys.sort()
        for key in keys:
            path, is_whiteout = path_of_key(key)
            yield path, None if is_whiteout else self.directories.get(path) or self._paths[path]

    def _add_parents(self, path: bytes) -> None:
        head = path.rpartition(b"/")[0]
        while head and head not in self.directories:
            self.directories[head] = self._everywhere[head]
            head = head.rpartition(b"/")[0]


class _Encoder:
    """Entries as tar headers."""

    def __init__(self, epoch: int | None, has_root: bool) -> None:
        """``has_root``: the root has an entry, and all names are relative to it (``./``)."""
        self._epoch = epoch
        # After "." GNU tar sets the root's time and mode at the first name that does not begin with "./".
        self._prefix = b"./" if has_root else b""

    def whiteout(self, path: bytes) -> bytes:
        return encode_header(Header(self._prefix + whiteout_name(path), FILE))

    def directory(self, path: bytes, node: Directory) -> bytes:
        name = self._prefix if path == ROOT else self._prefix + path + b"/"
        assert node.metadata is not None
        mode, uid, gid, mtime, _, xattrs = node.metadata
        seconds, ns = self._time(mtime)
        return encode_header(Header(name, DIRECTORY, mode, uid, gid, mtime=seconds, xattrs=xattrs, nanoseconds=ns))

    def link(self, source: Source, path: bytes, first: bytes) -> bytes:
        """Return another name of an inode that was written as ``first``."""
        return encode_header(hardlink(self.source(source, first), self._prefix + path))

    def source(self, source: Source, path: bytes) -> Header:
        member = source.member
        seconds, ns = self._time(member.mtime)
        link = member.link if member.type == SYMLINK else b""
        name, type_ = self._prefix + path, bytes((member.type,))
        mode, uid, gid, size = member.mode, member.uid, member.gid, member.size
        return Header(name, type_, mode, uid, gid, size, seconds, link, member.device, member.xattrs, ns)

    def _time(self, mtime: int) -> tuple[int, int]:
        if self._epoch is not None and mtime > self._epoch * _NS:
            return self._epoch, 0
        return divmod(mtime, _NS)


class _Contents:
    """The content of files of several layers, in any order, though each layer is read once and from its beginning.

    A context manager. Content that a layer has before it is requested is spooled to an unnamed file.

    That is little: the largest layers are read at once, and most builders write a layer in the order of a walk.
    """

    def __init__(self, sources: Iterable[Source], open_layer: OpenLayer, scratch: Path | None) -> None:
        """Return ``sources``: the files to be requested, each once; ``scratch``: the directory for the unnamed file."""
        self._wanted: dict[int, dict[int, int]] = {}
        for source in sources:
            self._wanted.setdefault(source.layer, {})[source.ordinal] = source.member.size
        self._open_layer = open_layer
        self._scratch = scratch
        self._opened = ExitStack()
        self._layers: dict[int, _Layer] = {}

    def __enter__(self) -> _Contents:
        with ExitStack() as opened:
            spool = _Spool(opened.enter_context(tempfile.TemporaryFile(dir=self._scratch, buffering=0)))
            by_size = sorted(self._wanted, key=lambda layer: (-sum(self._wanted[layer].values()), layer))
            for number in by_size[_MOST_OPEN:]:
                with self._open_layer(number) as stream:
                    self._layers[number] = layer = _Layer(number, stream, self._wanted[number], spool)
                    layer.spool_until(None)
            for number in by_size[:_MOST_OPEN]:
                stream = opened.enter_context(self._open_layer(number))
                self._layers[number] = _Layer(number, stream, self._wanted[number], spool)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, traceback)

    def of(self, source: Source) -> Iterator[bytes | memoryview]:
        """Return the content of a file, zeros in its holes; pieces are valid until the next one.

        Raises (while iterating):
            LayerError, LimitExceeded: as reading the layer.
        """
        return self._layers[source.layer].content(source.ordinal)


class _Layer:
    """One layer, read up to some member."""

    def __init__(self, number: int, stream: Readable, wanted: Mapping[int, int], spool: _Spool) -> None:
        self._number = number
        self._reader = MemberReader(stream, limits())
        self._members = iter(self._reader)
        self._wanted = wanted
        self._spool = spool
        self._spooled: dict[int, tuple[int, int]] = {}

    def content(self, ordinal: int) -> Iterator[bytes | memoryview]:
        if ordinal in self._spooled:
            return self._spool.read(*self._spooled.pop(ordinal))
        return self.spool_until(ordinal)

    def spool_until(self, ordinal: int | None) -> Iterator[bytes | memoryview]:
        """Spool wanted content before this member, and return the member's content; None: spool all."""
        for member in self._members:
            at = self._reader.ordinal
            if at == ordinal:
                return self._reader.expanded(member)
            if at in self._wanted:
                self._spooled[at] = self._spool.write(self._reader.expanded(member))
        if ordinal is not None:
            raise MalformedLayer(f"layer {self._number} has changed since it was read before")
        return iter(())


class _Spool:
    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self._end = 0

    def write(self, pieces: Iterable[bytes | memoryview]) -> tuple[int, int]:
        """Append; return the offset and the size. A hole stays a hole."""
        start = self._end
        for piece in pieces:
            if isinstance(piece, bytes):  # of a hole: content comes as views
                self._end += len(piece)
                os.ftruncate(self._fd, self._end)
                continue
            view = piece
            while view:
                written = os.pwrite(self._fd, view, self._end)
                self._end += written
                view = view[written:]
        return start, self._end - start

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        end = offset + size
        while offset < end:
            piece = os.pread(self._fd, min(_PIECE, end - offset), offset)
            offset += len(piece)
            yield piece
