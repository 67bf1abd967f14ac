"""Open the layers of an image: from the compressed blob to a verified tar stream."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, Final

from layerfarm.jobs.compress import Compression, compression_of
from layerfarm.jobs.compress.decompress import PlainStream, compression_in, decompress
from layerfarm.jobs.compress.estargz import marks
from layerfarm.jobs.compress.toc.check import ReadAt
from layerfarm.jobs.compress.zstd_chunked import places
from layerfarm.jobs.errors import DigestMismatch, LayerfarmError
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.look_ahead import LookAhead
from layerfarm.jobs.layer.stack import Read, read_members
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.blob import hasher
from layerfarm.jobs.tar.writer import BLOCK

_OF_ESTARGZ: Final = frozenset((marks.TOC_DIGEST, marks.UNCOMPRESSED_SIZE))

Advanced = Callable[[int], None]
"""Progress callback: compressed bytes read since its last call, maybe 0. It may raise to stop the work."""


def unheard(nbytes: int) -> None:
    """Ignore progress."""


@contextmanager
def open_layer(
    layout: Layout,
    layer: Descriptor,
    diff_id: str | None,
    advanced: Advanced = unheard,
    limits: Limits | None = None,
) -> Iterator[PlainStream]:
    """Open the tar stream of one layer, verified by the blob's digest and by ``diff_id`` (None: only computed).

    The end of the ``with`` block reads the rest: the diff_id also covers bytes after the end of the tar (umoci.md B6).

    Raises (while reading, and at the end):
        BlobNotFound, DigestMismatch, SizeMismatch: the layer is missing or corrupt.
        LayerError, LimitExceeded: it is damaged, or larger than ``limits``.
    """
    digest = hasher(diff_id or "sha256:")
    with (
        layout.open_blob(layer) as blob,
        # Decompressing, the diff_id and the caller's work each have a thread; the blob's digest is computed in the
        # first. For an unpack of 125,000 entries of 2.5 GB they take 3.2, 1.4 and 3.6 s.
        decompress(blob, layer.media_type, limits=limits, ahead=True, seen=digest.update, advanced=advanced) as stream,
    ):
        if is_estargz(reading(blob), layer):
            stream.hidden = marks.OWN_NAMES
        yield stream
        while stream.read(1 << 20):
            pass
    stream.diff_id = f"{digest.name}:{digest.hexdigest()}"
    if diff_id is not None and stream.diff_id != diff_id:
        raise DigestMismatch(f"layer unpacks to {stream.diff_id}, its diff_id is {diff_id}", where=layer.digest)


def reading(blob: BinaryIO) -> ReadAt:
    """Return a function that reads an open blob by offset and size."""
    if isinstance(blob, io.BytesIO):
        content = blob.getvalue()
        return lambda at, size: content[at : at + size]
    fd = blob.fileno()
    return lambda at, size: os.pread(fd, size, at)


def is_estargz(read_at: ReadAt, layer: Descriptor) -> bool:
    """Return True if the blob ends as an eStargz layer, whatever its descriptor says: equal blobs are equal trees."""
    size = marks.FOOTER_BYTES
    return layer.size > size and marks.toc_offset(read_at(layer.size - size, size)) is not None


def of_toc(layer: Descriptor) -> dict[str, str]:
    """Return those of a layer's annotations that describe its table of contents."""
    found = (layer.annotations or {}).items()
    return {key: value for key, value in found if key.startswith(places.PREFIX) or key in _OF_ESTARGZ}


def written_as(layer: Descriptor) -> Compression:
    """Return the compression that writes such a layer: zstd:chunked or eStargz where it has a table of contents.

    Raises:
        UnsupportedMediaType: as :func:`~layerfarm.jobs.compress.compression_of`.
    """
    compression = compression_of(layer.media_type)
    annotations = layer.annotations or {}
    if compression is Compression.ZSTD and places.CHECKSUM in annotations:
        return Compression.ZSTD_CHUNKED
    if compression is Compression.GZIP and marks.TOC_DIGEST in annotations:
        return Compression.ESTARGZ
    return compression


def found_compression(layout: Layout, layer: Descriptor) -> Compression:
    """Return the compression of a layer's first bytes; its media type may say another.

    Raises:
        BlobNotFound, SizeMismatch: the layer is missing or has another size.
        UnsupportedMediaType: as :func:`~layerfarm.jobs.compress.compression_of`.
    """
    # closing: leaving the blob's own `with` would read all of it.
    with closing(layout.open_blob(layer)) as blob:
        return compression_in(reading(blob)(0, BLOCK), compression_of(layer.media_type))


def other_compression(stream: PlainStream, layer: Descriptor) -> str | None:
    """Return a warning if an open layer's compression differs from its media type, else None."""
    if stream.compression is compression_of(layer.media_type):
        return None
    what = "are not compressed" if stream.compression is Compression.NONE else f"are {stream.compression}"
    return f"bytes of layer {layer.digest} {what}, its media type is {layer.media_type}"


def read_layer(layout: Layout, layer: Descriptor, diff_id: str, advanced: Advanced = unheard) -> Iterator[Read]:
    """Yield the members of one layer, with the digests of their content. Raises as :func:`open_layer`."""
    with open_layer(layout, layer, diff_id, advanced) as stream:
        yield from read_members(stream)


# --- looking ahead ---------------------------------------------------------------------------------

_SMALLER: Final = 32
"""A layer is scanned ahead if it is this many times smaller than the layers below it together.

Scanning decompresses it once more. For replaced files that costs as much as it saves by not writing the old ones.
It pays for deleted files, and layers that delete much are small. So scanning costs at most 1 %.
"""
_PATIENCE: Final = 0.02
"""Seconds to wait for the scan: layers that only delete need no longer."""


def layers_to_scan(image: Resolved) -> list[int]:
    """Return the layers, 1 for the lowest, that are small compared with those below them."""
    chosen: list[int] = []
    below = 0
    for number, descriptor in enumerate(image.manifest.layers, 1):
        if number > 1 and descriptor.size * _SMALLER <= below:
            chosen.append(number)
        below += descriptor.size
    return chosen


@contextmanager
def look_ahead(store: Layout, image: Resolved, limits: Limits) -> Iterator[LookAhead | None]:
    """Yield the paths that the small upper layers replace or delete; None if no layer is worth a scan.

    A thread adds them while layers are applied. It reports no errors: applying the layer reads the same bytes.
    """
    numbers = layers_to_scan(image)
    if not numbers:
        yield None
        return
    look_ahead = LookAhead(limits)
    layers = [(number, image.manifest.layers[number - 1]) for number in numbers]
    thread = threading.Thread(target=_scan, args=(store, layers, look_ahead, limits), name="look-ahead", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    try:
        yield look_ahead
    finally:
        look_ahead.stop()
        thread.join()


def _scan(store: Layout, layers: list[tuple[int, Descriptor]], look_ahead: LookAhead, limits: Limits) -> None:
    for number, descriptor in layers:
        try:
            # closing: leaving the blob's own `with` would read and verify the rest.
            with (
                closing(store.open_blob(descriptor)) as blob,
                decompress(blob, descriptor.media_type, limits=limits) as plain,
            ):
                look_ahead.add(number, plain)
        except (LayerfarmError, OSError):
            return
