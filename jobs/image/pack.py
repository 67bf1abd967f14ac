"""Pack a tar stream into a layer blob in one pass: digest, compress, digest, ingest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from pydantic import BaseModel, ConfigDict

from layerfarm.jobs.compress.codecs import (
    Codec,
    Compression,
    Notes,
    codec_id,
    compress,
    media_type_for,
)
from layerfarm.jobs.compress.digest_thread import Buffer, DigestThread
from layerfarm.jobs.errors import MalformedLayer, RequestError, UnsupportedMediaType
from layerfarm.jobs.image.check_layer import check_layer
from layerfarm.jobs.image.documents import ANNOTATION_CODEC, ANNOTATION_UNCOMPRESSED_SIZE, HistoryEntry
from layerfarm.jobs.image.layers import written_as
from layerfarm.jobs.image.mutate import append_layer
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.store import Descriptor, Layout, check_refname


class PackedLayer(BaseModel):
    """A layer in the store that is not yet part of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    descriptor: Descriptor
    diff_id: str
    """``sha256:`` digest of the uncompressed tar stream."""
    uncompressed_size: int
    """Bytes of that stream."""
    warnings: list[str] = []
    """Limitations of the compression."""


def pack_layer(layout: Layout, tar: Iterable[bytes], codec: Codec) -> PackedLayer:
    """Compress ``tar`` with ``codec`` into a blob of ``layout``.

    Raises:
        StoreError: the blob cannot be written.
        LayerfarmError: from ``tar``; no blob is left then.
    """
    measured = _Measured()
    notes = Notes()
    scratch = layout.scratch() if codec.prefetch else None
    # The thread of the loop also reads the files: 10 GB take 4 s; writing their blob takes 6 s and its digest 4 s more.
    # Formats with a table of contents have pieces as small as files, which do not pay for being handed over.
    in_thread = codec.threads > 1 and codec.compression is codec.compression.of_stream
    with (
        closing(compress(tar, codec, notes, measured.add, scratch)) as pieces,
        layout.ingest() as blob,
        closing(DigestThread()) as writing,
        closing(DigestThread()) as digesting,
    ):
        for piece in pieces:
            if in_thread:
                writing.put(blob.append, piece)
                digesting.put(blob.digest, piece)
            else:
                blob.write(piece)
        writing.wait()
        digesting.wait()
        digest, size = blob.commit()
    annotations = None
    if codec.compression != Compression.NONE:
        annotations = {ANNOTATION_UNCOMPRESSED_SIZE: str(measured.size), ANNOTATION_CODEC: codec_id(codec)}
        annotations |= notes.annotations
    descriptor = Descriptor(
        mediaType=media_type_for(codec.compression), digest=digest, size=size, annotations=annotations
    )
    diff_id = f"sha256:{measured.hash.hexdigest()}"
    return PackedLayer(
        descriptor=descriptor,
        diff_id=diff_id,
        uncompressed_size=measured.size,
        warnings=[f"layer {digest}: {warning}" for warning in notes.warnings],
    )


def choose_compression(
    choice: str, base: Resolved | None, level: int | None = None, prefetch: Sequence[str] = ()
) -> Compression:
    """Return the compression for a new layer on ``base``.

    ``auto``: that of the newest compressed layer of ``base`` in a format that layerfarm writes, else gzip (umoci.md
    A, "compress").

    Raises:
        RequestError: there is no such compression, or it does not have ``level`` or ``prefetch``.
    """
    compression = _auto(base) if choice == "auto" else _named(choice)
    Codec(compression, level=level, prefetch=tuple(prefetch))  # checks them
    return compression


def _named(choice: str) -> Compression:
    try:
        return Compression(choice)
    except ValueError as error:
        raise RequestError(f"unknown compression: {choice!r}", hint=f"auto, {', '.join(Compression)}") from error


def _auto(base: Resolved | None) -> Compression:
    for layer in reversed(base.manifest.layers if base else []):
        try:
            compression = written_as(layer)
        except UnsupportedMediaType:
            continue
        if compression is not Compression.NONE:
            return compression
    return Compression.GZIP


class _Measured:
    """Size and digest of a tar stream."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def add(self, chunk: Buffer) -> None:
        self.size += len(chunk)
        self.hash.update(chunk)


def add_layer(
    layout: Layout,
    base: Resolved,
    tar: Iterable[bytes],
    tag: str,
    *,
    compress: str = "auto",
    level: int | None = None,
    prefetch: Sequence[str] = (),
    threads: int = 1,
    history: HistoryEntry | None,
    created: str | None = None,
    checked: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Resolved:
    """Put the layer ``tar`` on ``base`` and tag the image ``tag``: ``insert`` and ``raw add-layer``.

    ``compress``: see :func:`choose_compression`. ``created``, ``history``: see
    :func:`~layerfarm.jobs.image.mutate.append_layer`. ``checked``: read the stored layer back, for a stream of unknown
    origin; a layer that cannot be unpacked is not tagged. ``warn`` is called with limitations of the compression.

    Raises:
        InvalidReference: the tag breaks the grammar; nothing has been written.
        LayerError, LimitExceeded: the layer is ``checked`` and cannot be unpacked.
        LayerfarmError: from ``tar``; the tag stays as it was.
    """
    check_refname(tag)
    compression = choose_compression(compress, base, level, prefetch)
    codec = Codec(compression, level=level, threads=threads, prefetch=tuple(prefetch))
    layer = pack_layer(layout, tar, codec)
    if checked:
        for name, what in check_layer(layout, layer.descriptor).faults:
            raise MalformedLayer(what, where=name)
    if warn is not None:
        for warning in layer.warnings:
            warn(warning)
    image = append_layer(layout, base, layer, history, created)
    layout.tag(tag, image.path[0], needs=image.blobs)
    return image
