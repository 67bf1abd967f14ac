"""A tar stream on top of an image: what ``insert`` and ``raw add-layer`` do once they have their stream."""

from __future__ import annotations

from collections.abc import Iterable

from layerfarm.jobs.compress import Codec
from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.image.check_layer import check_layer
from layerfarm.jobs.image.documents import HistoryEntry
from layerfarm.jobs.image.mutate import append_layer
from layerfarm.jobs.image.pack import PackedLayer, choose_compression, pack_layer
from layerfarm.jobs.image.resolve import Resolved
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
    for name, what in check_layer(layout, layer.descriptor, lambda nbytes: None).faults:
        raise MalformedLayer(what, where=name)
