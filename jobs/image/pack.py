"""A tar stream becomes a layer blob in one pass: digest, compress, digest, ingest."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from layerfarm.jobs.compress.codecs import Codec, Compression, codec_id, compress, compression_of, media_type_for
from layerfarm.jobs.errors import MalformedLayer, RequestError, UnsupportedMediaType
from layerfarm.jobs.image.check_layer import check_layer
from layerfarm.jobs.image.documents import ANNOTATION_CODEC, ANNOTATION_UNCOMPRESSED_SIZE
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.store import Descriptor, Layout

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor
from layerfarm.jobs.image.documents import HistoryEntry
from layerfarm.jobs.image.mutate import append_layer
from layerfarm.jobs.store import check_refname

_MOST_BEHIND: Final = 8
"""Chunks that the digest may lag: what they hold of memory is bounded."""


class PackedLayer(BaseModel):
    """A layer that is in the store and in no image yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    descriptor: Descriptor
    diff_id: str
    """``sha256:`` digest of the uncompressed tar stream."""
    uncompressed_size: int
    """Bytes of that stream."""


def pack_layer(layout: Layout, tar: Iterable[bytes], codec: Codec) -> PackedLayer:
    """Compress ``tar`` by ``codec`` into a blob of ``layout``. Nothing is read twice.

    Raises:
        StoreError: the blob cannot be written.
        LayerfarmError: whatever making the stream raises; no blob is left then.
    """
    with _Measured(tar, beside=codec.threads > 1) as measured, layout.ingest() as blob:
        for chunk in compress(iter(measured), codec):
            blob.write(chunk)
        digest, size = blob.commit()
    annotations = None
    if codec.compression != Compression.NONE:
        annotations = {ANNOTATION_UNCOMPRESSED_SIZE: str(measured.size), ANNOTATION_CODEC: codec_id(codec)}
    descriptor = Descriptor(
        mediaType=media_type_for(codec.compression), digest=digest, size=size, annotations=annotations
    )
    return PackedLayer(descriptor=descriptor, diff_id=measured.digest(), uncompressed_size=measured.size)


def choose_compression(choice: str, base: Resolved | None, level: int | None = None) -> Compression:
    """The compression for a new layer on ``base``.

    ``auto`` is that of the newest layer below that layerfarm can write and that is compressed at all,
    else gzip (umoci.md A, "compress").

    Raises:
        RequestError: there is no such compression, or it has no such ``level``.
    """
    compression = _chosen(choice, base)
    Codec(compression, level=level)  # refuses a level that is none
    return compression


def _chosen(choice: str, base: Resolved | None) -> Compression:
    if choice != "auto":
        try:
            return Compression(choice)
        except ValueError as error:
            raise RequestError(f"no such compression: {choice!r}", hint="auto, gzip, zstd or none") from error
    for layer in reversed(base.manifest.layers if base else []):
        try:
            compression = compression_of(layer.media_type)
        except UnsupportedMediaType:
            continue
        if compression is not Compression.NONE:
            return compression
    return Compression.GZIP


class _Measured:
    """Passes chunks on, and knows their number of bytes and digest at the end."""

    def __init__(self, chunks: Iterable[bytes], *, beside: bool) -> None:
        """``beside``: the digest is computed by a thread of its own, beside the one that makes the chunks.

        That one is what a layer of many small files waits for; a third of its time went into the digest.
        """
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        if beside:
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="diff_id")
        self.size = 0

    def __enter__(self) -> _Measured:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[bytes]:
        if self._thread is None:
            for chunk in self._chunks:
                self.size += len(chunk)
                self._hash.update(chunk)
                yield chunk
            return
        behind: deque[Future[None]] = deque()
        for chunk in self._chunks:
            self.size += len(chunk)
            behind.append(self._thread.submit(self._hash.update, chunk))
            if len(behind) > _MOST_BEHIND:
                behind.popleft().result()
            yield chunk
        while behind:
            behind.popleft().result()

    def digest(self) -> str:
        """Once all chunks have passed."""
        return f"sha256:{self._hash.hexdigest()}"


def add_layer(
    layout: Layout,
    base: Resolved,
    tar: Iterable[bytes],
    tag: str,
    *,
    compress: str = "auto",
    level: int | None = None,
    threads: int = 1,
    history: HistoryEntry | None,
    created: str | None = None,
    checked: bool = False,
) -> Resolved:
    """``base`` with the layer ``tar`` on top, tagged ``tag``.

    ``compress`` is a choice of :func:`~layerfarm.jobs.image.pack.choose_compression`; ``created`` (RFC 3339)
    becomes that of the image, if given; ``history`` None writes no entry. With ``checked``, for a stream of unknown
    origin, the stored layer is read again: what cannot be unpacked gets no tag.

    Raises:
        InvalidReference: the tag breaks the grammar; nothing has been written.
        LayerError, LimitExceeded: the layer is ``checked`` and no tar that can be unpacked.
        LayerfarmError: whatever making the stream raises; the tag stays as it was.
    """
    check_refname(tag)
    codec = Codec(choose_compression(compress, base), level=level, threads=threads)
    layer = pack_layer(layout, tar, codec)
    if checked:
        _check(layout, layer)
    image = append_layer(layout, base, layer, history, created)
    layout.tag(tag, image.path[0], needs=image.blobs)
    return image


def _check(layout: Layout, layer: PackedLayer) -> None:
    for name, what in check_layer(layout, layer.descriptor).faults:
        raise MalformedLayer(what, where=name)
