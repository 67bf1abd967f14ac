"""Layers made of layers: the tar that turns one stack's tree into another's. Nothing is unpacked.

The trees say which members survive (:mod:`layerfarm.jobs.layer.stack`); their content is then copied from the layers
that hold it, each read once more (:mod:`layerfarm.jobs.layer.contents`). So memory holds headers only.

Entries come as a walk finds them: a directory, its whiteouts, then all below it, names in the order of their bytes. A
program that unpacks them one by one is done with a directory when its last entry has passed: GNU tar sets time and
mode of a directory at the first entry that is not below it, and writes into none thereafter.

The layer stands on its own: it has an entry for every directory above what it holds, and every name of a
file that has several, for unpackers that see one layer at a time (a hard link to a lower layer fails there,
and a parent that is not named gets whatever mode they like).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from layerfarm.jobs.layer.contents import Contents, OpenLayer
from layerfarm.jobs.layer.stack import REGULAR, SYMLINK, Source, Stack, source_of
from layerfarm.jobs.layer.tree import Child, Directory, Metadata
from layerfarm.jobs.layer.whiteouts import whiteout_name
from layerfarm.jobs.mtree.model import ROOT
from layerfarm.jobs.tar.writer import DIRECTORY, TRAILER, Header, encode_header, hardlink, padding
from layerfarm.jobs.tar.writer import REGULAR as FILE

CHUNK: Final = 1 << 20
"""Bytes of the pieces that a layer comes in."""
_NS: Final = 10**9


@dataclass(frozen=True)
class MergeOptions:
    """How the layer is written."""

    source_date_epoch: int | None = None
    """Seconds; mtimes newer than it become it."""
    gone: Callable[[bytes], bool] = field(default=lambda path: False)
    """Paths for which this says yes are in neither tree, with all below them."""
    scratch: Path | None = None
    """Where content waits that its layer has too early; None: in the directory for temporary files."""


def merge_layers(
    old: Stack | None, new: Stack, open_layer: OpenLayer, options: MergeOptions | None = None
) -> Iterator[bytes]:
    """The raw tar of a layer that turns the tree of ``old``, by default an empty one, into that of ``new``.

    The same stacks give the same bytes.

    Raises (while iterating):
        LayerError, LimitExceeded: as reading the layers; OSError: the scratch file cannot be written.
    """
    options = options or MergeOptions()
    plan = _Plan(old or Stack(), new, options.gone)
    pieces = _Pieces()
    with Contents(filter(_has_content, plan.sources), open_layer, options.scratch) as contents:
        for block in _written(plan, contents, _Encoder(options.source_date_epoch, ROOT in plan.directories)):
            yield from pieces.put(block)
    yield from pieces.put(TRAILER)
    yield from pieces.rest()


def _written(plan: _Plan, contents: Contents, encoder: _Encoder) -> Iterator[bytes | memoryview]:
    for path, what in plan.entries():
        if what is None:
            yield encoder.whiteout(path)
        elif isinstance(what, Directory):
            yield encoder.directory(path, what)
        elif path != plan.sources[what]:
            yield encoder.link(what, path, plan.sources[what])
        else:
            yield encoder.source(what, path)
            if _has_content(what):
                yield from contents.of(what)
                yield padding(what.member.size)


def _has_content(source: Source) -> bool:
    return source.member.type == REGULAR and source.member.size > 0


class _Plan:
    """What the layer has to hold."""

    def __init__(self, old: Stack, new: Stack, gone: Callable[[bytes], bool]) -> None:
        self._gone = gone
        self.directories: dict[bytes, Directory] = {}
        """Those that get an entry, by path."""
        self.whiteouts: list[bytes] = []
        self.sources: dict[Source, bytes] = {}
        """Each inode that is written, and the first of its paths; the others are links to that."""
        self._paths: dict[bytes, Source] = {}
        self._everywhere: dict[bytes, Directory] = {}
        single: dict[Source, bytes] = {}
        changed: list[bytes] = []
        for path, before, after in self._pairs(old, new):
            if isinstance(after, Directory):
                self._everywhere[path] = after
                if not isinstance(before, Directory) or _differ(before, after):
                    changed.append(path)
            elif after is None:
                self.whiteouts.append(path)
            elif before is None or isinstance(before, Directory) or not _is_same(source_of(before), source_of(after)):
                single[source_of(after)] = path
        names = new.names()
        for source, path in single.items():
            paths = [name for name in names.get(source, ()) if not gone(name)] or [path]
            self.sources[source] = min(paths, key=_depth_first)
            self._paths.update(dict.fromkeys(paths, source))
        # An empty stack's root is implied like any other that nothing names.
        for path in changed:
            self.directories[path] = self._everywhere[path]
        for path in [*changed, *self.whiteouts, *self._paths]:
            self._add_parents(path)

    def entries(self) -> Iterator[tuple[bytes, Directory | Source | None]]:
        """All that is written, in the order of a walk, the whiteouts of a directory first; None: a whiteout."""
        keys: list[tuple[bytes, bytes]] = [(_depth_first(path), path) for path in (*self.directories, *self._paths)]
        whiteouts = {}
        for path in self.whiteouts:
            head, _, name = path.rpartition(b"/")
            # A NUL before the name: it sorts before every sibling.
            key = _depth_first(head) + (b"\0\0" if head else b"\0") + name
            whiteouts[key] = path
            keys.append((key, path))
        for key, path in sorted(keys):
            yield path, None if key in whiteouts else self.directories.get(path) or self._paths[path]

    def _pairs(self, old: Stack, new: Stack) -> Iterator[tuple[bytes, Child | None, Child | None]]:
        """What stands at each path of the new tree, and what stood there; with None what is to be deleted."""
        pending: list[tuple[bytes, Directory | None, Directory]] = [(ROOT, old.root, new.root)]
        while pending:
            path, before, after = pending.pop()
            yield path, before, after
            prefix = b"" if path == ROOT else path + b"/"
            olds = before.children or {} if before is not None else {}
            news = after.children or {}
            for name in olds.keys() - news.keys():
                if not self._gone(prefix + name):
                    yield prefix + name, olds[name], None
            for name, child in news.items():
                below = prefix + name
                if self._gone(below):
                    continue
                known = olds.get(name)
                if isinstance(child, Directory):
                    pending.append((below, known if isinstance(known, Directory) else None, child))
                else:
                    yield below, known, child

    def _add_parents(self, path: bytes) -> None:
        head = path.rpartition(b"/")[0]
        while head and head not in self.directories:
            self.directories[head] = self._everywhere[head]
            head = head.rpartition(b"/")[0]


class _Encoder:
    """Entries as tar bytes."""

    def __init__(self, epoch: int | None, has_root: bool) -> None:
        """``has_root``: the root has an entry, and the names show that all is below it."""
        self._epoch = epoch
        # After "." GNU tar sets the root's time and mode at the first name that does not begin with "./".
        self._prefix = b"./" if has_root else b""

    def whiteout(self, path: bytes) -> bytes:
        return encode_header(Header(self._prefix + whiteout_name(path), FILE))

    def directory(self, path: bytes, node: Directory) -> bytes:
        metadata = node.metadata
        assert metadata is not None
        seconds, nanoseconds = self._time(metadata.mtime)
        return encode_header(
            Header(
                self._prefix if path == ROOT else self._prefix + path + b"/",
                DIRECTORY,
                metadata.mode,
                metadata.uid,
                metadata.gid,
                mtime=seconds,
                xattrs=metadata.xattrs,
                nanoseconds=nanoseconds,
            )
        )

    def source(self, source: Source, path: bytes) -> bytes:
        return encode_header(self._header(source, path))

    def link(self, source: Source, path: bytes, first: bytes) -> bytes:
        """A further name of an inode that was written as ``first``."""
        return encode_header(hardlink(self._header(source, first), self._prefix + path))

    def _header(self, source: Source, path: bytes) -> Header:
        member = source.member
        seconds, nanoseconds = self._time(member.mtime)
        return Header(
            self._prefix + path,
            bytes((member.type,)),
            member.mode,
            member.uid,
            member.gid,
            member.size,
            seconds,
            member.link if member.type == SYMLINK else b"",
            member.device,
            member.xattrs,
            nanoseconds,
        )

    def _time(self, mtime: int) -> tuple[int, int]:
        if self._epoch is not None and mtime > self._epoch * _NS:
            return self._epoch, 0
        return divmod(mtime, _NS)


class _Pieces:
    """Joins blocks into pieces of about :data:`CHUNK` bytes."""

    def __init__(self) -> None:
        self._held = bytearray()

    def put(self, block: bytes | memoryview) -> Iterator[bytes]:
        self._held += block
        if len(self._held) >= CHUNK:
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        yield bytes(self._held)
        self._held.clear()


def _differ(before: Directory, after: Directory) -> bool:
    return _facts(before.metadata) != _facts(after.metadata)


def _facts(metadata: Metadata | None) -> tuple[object, ...]:
    assert metadata is not None
    return metadata.mode, metadata.uid, metadata.gid, metadata.mtime, metadata.xattrs


def _is_same(before: Source, after: Source) -> bool:
    """Whether two stacks of the same lower layers mean the same member of the same layer."""
    return (before.layer, before.ordinal) == (after.layer, after.ordinal)


def _depth_first(path: bytes) -> bytes:
    """A key that puts a directory before what is below it, names bytewise."""
    return b"" if path == ROOT else b"\0" + path.replace(b"/", b"\0")
