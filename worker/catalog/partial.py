"""Bytes that a client fetches from one tag to the next if it pulls layers in part, by file.

Of a new layer with a table of contents (zstd:chunked, eStargz) it fetches the table and the frames of the files and
parts whose digests it does not have: those of the layers of the preceding tag that have a table, too. Other layers are
fetched whole. podman fetches a little more, because it joins ranges that are close to each other; stargz-snapshotter
fetches a file when it is opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress
from typing import Final, NamedTuple

from layerfarm.jobs.compress.toc.check import FileContent, Lie
from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.image.check_layer import toc_of
from layerfarm.jobs.image.layers import reading
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.catalog.costs import Holding, Pullable

_MOST_FILES: Final = 500_000
"""Files of layers that are in memory at a time, about 150 MB."""


class _Layer(NamedTuple):
    """A layer that a client can pull in part."""

    files: tuple[FileContent, ...]
    digests: frozenset[str]
    """Digests of the contents of its files, and of their parts."""
    table: int
    """Bytes of the table of contents, and of other data beside the files."""


class InPart:
    """Computes pulls in part of images whose layers are in one of the layouts."""

    def __init__(self, layouts: Iterable[Layout]) -> None:
        self._layouts = list(layouts)
        self._known: dict[str, _Layer | None] = {}
        self._files = 0

    def fetched(self, wanted: Pullable, there: Pullable) -> int:
        """Return the bytes to fetch of ``wanted`` for a client that has ``there``."""
        missing = {digest: size for digest, size in wanted.blobs.items() if digest not in there.blobs}
        if wanted.tables.keys().isdisjoint(missing):
            return sum(missing.values())
        held = self._held(there)
        return sum(self._cost(wanted.tables.get(digest), size, held) for digest, size in missing.items())

    def _held(self, there: Pullable) -> Collection[str]:
        layers = map(self._layer, there.tables.values())
        return frozenset().union(*(layer.digests for layer in layers if layer is not None))

    def _cost(self, descriptor: Descriptor | None, size: int, held: Collection[str]) -> int:
        layer = None if descriptor is None else self._layer(descriptor)
        if layer is None:
            return size
        # Small files of eStargz layers share a frame.
        frames = {
            frame.offset: frame.bytes
            for file in layer.files
            if file.digest not in held
            for frame in file.frames
            if frame.digest not in held
        }
        return layer.table + sum(frames.values())

    def _layer(self, descriptor: Descriptor) -> _Layer | None:
        digest = descriptor.digest
        if digest not in self._known:
            if self._files > _MOST_FILES:
                self._known.clear()
                self._files = 0
            self._known[digest] = layer = self._read(descriptor)
            self._files += 0 if layer is None else len(layer.files)
        return self._known[digest]

    def _read(self, descriptor: Descriptor) -> _Layer | None:
        """Return the layer; None: its table of contents cannot be used, so clients pull the layer whole."""
        for layout in self._layouts:
            with suppress(LayerfarmError, Lie):
                return _read(layout, descriptor)
        return None


def _read(layout: Layout, descriptor: Descriptor) -> _Layer | None:
    """Read the table of contents of a layer; None: it is damaged.

    Raises:
        BlobNotFound, SizeMismatch: the layout does not hold the layer.
        LimitExceeded, Lie: the table cannot be used.
    """
    faults: list[str] = []
    with closing(layout.open_blob(descriptor)) as blob:
        toc = toc_of(reading(blob), descriptor, lambda *fault: faults.append(" ".join(fault)))
        if toc is None or faults:
            return None
        files = tuple(toc.files())
    digests = {digest for file in files for digest in (file.digest, *(frame.digest for frame in file.frames))}
    return _Layer(files, frozenset(digests - {""}), toc.table_bytes)


def has_tables(images: Mapping[str, Holding]) -> bool:
    """Return True if a layer of the images has a table of contents."""
    return any(each.tables for holding in images.values() for each in holding.values())
