"""The same tar in another compression: the diff_id stays, and with it the config and every tool that knows it."""

from __future__ import annotations

from typing import Final

from layerfarm.jobs.compress import Codec, codec_id, compression_of
from layerfarm.jobs.compress.codecs import is_foreign
from layerfarm.jobs.errors import UnsupportedMediaType
from layerfarm.jobs.image import PackedLayer, pack_layer
from layerfarm.jobs.image.documents import ANNOTATION_CODEC, ANNOTATION_UNCOMPRESSED_SIZE
from layerfarm.jobs.image.layers import Advanced, open_layer, unheard
from layerfarm.jobs.store import Descriptor, Layout

_CHUNK: Final = 1 << 20
_OF_THE_BLOB: Final = (
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "containerd.io/snapshot/overlaybd/",
    "com.amazon.soci",
)
"""Annotations that speak of the compressed bytes, such as where their table of contents is: untrue of others."""


def is_wanted(layer: Descriptor, codec: Codec, *, any_level: bool) -> bool:
    """Whether the layer has to be compressed anew to be as ``codec`` makes it.

    ``any_level``: one that is so compressed already, by whomever, is good enough. Layers that are fetched
    from elsewhere are left alone: their urls promise the very bytes.

    Raises:
        UnsupportedMediaType: it is no layer of the image-spec.
    """
    if is_foreign(layer.media_type) or layer.urls:
        return False
    if compression_of(layer.media_type) is not codec.compression:
        return True
    return not any_level and (layer.annotations or {}).get(ANNOTATION_CODEC) != codec_id(codec)


def is_layer(layer: Descriptor) -> bool:
    """Whether the blob is a layer that can be read at all."""
    try:
        compression_of(layer.media_type)
    except UnsupportedMediaType:
        return False
    return True


def recompress_layer(
    source: Layout, target: Layout, layer: Descriptor, diff_id: str, codec: Codec, advanced: Advanced = unheard
) -> PackedLayer:
    """Compress a layer of ``source`` anew into ``target``, and read it back to see that it is the same tar.

    Raises:
        StoreError, LayerError: it cannot be read, or is not what its digest and diff_id promise; or what was
            written does not unpack to it, and no image will name it.
    """
    with open_layer(source, layer, diff_id, advanced) as stream:
        packed = pack_layer(target, iter(lambda: stream.read(_CHUNK), b""), codec)
    with open_layer(target, packed.descriptor, packed.diff_id):
        pass
    return packed


def replacing(layer: Descriptor, packed: PackedLayer) -> tuple[Descriptor, list[str]]:
    """The descriptor for the layer compressed anew in the place of the old, and which annotations it lost.

    What the old one says of its content stays; what it says of its bytes would be untrue.
    """
    kept = dict(layer.annotations or {})
    lost = sorted(key for key in kept if key.startswith(_OF_THE_BLOB))
    for key in (*lost, ANNOTATION_CODEC, ANNOTATION_UNCOMPRESSED_SIZE):
        kept.pop(key, None)
    kept |= packed.descriptor.annotations or {}
    new = packed.descriptor
    changes = {
        "media_type": new.media_type,
        "digest": new.digest,
        "size": new.size,
        "annotations": kept or None,
        "data": None,
        "urls": None,
    }
    return layer.model_copy(update=changes), lost
