"""A tar stream on top of an image: what ``insert`` and ``raw add-layer`` do once they have their stream."""

from __future__ import annotations

from collections.abc import Iterable

from layerfarm.jobs.image.documents import HistoryEntry
from layerfarm.jobs.image.mutate import append_layer
from layerfarm.jobs.image.pack import choose_compression, pack_layer
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer import Codec
from layerfarm.jobs.store import Layout, check_refname


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
) -> Resolved:
    """``base`` with the layer ``tar`` on top, tagged ``tag``.

    ``compress`` is a choice of :func:`~layerfarm.jobs.image.pack.choose_compression`; ``created`` (RFC 3339)
    becomes that of the image, if given; ``history`` None writes no entry.

    Raises:
        InvalidReference: the tag breaks the grammar; nothing has been written.
        LayerfarmError: whatever making the stream raises; the tag stays as it was.
    """
    check_refname(tag)
    codec = Codec(choose_compression(compress, base), level=level, threads=threads)
    image = append_layer(layout, base, pack_layer(layout, tar, codec), history, created)
    layout.tag(tag, image.path[0], needs=image.blobs)
    return image
