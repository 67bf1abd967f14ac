"""Rewrite layers: recompress them, merge several into one, or remove paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from layerfarm.jobs.compress import Codec, Compression, codec_id, compression_of
from layerfarm.jobs.compress.codecs import is_docker, is_foreign
from layerfarm.jobs.compress.estargz.plain import without_own
from layerfarm.jobs.errors import TransformError
from layerfarm.jobs.image import PackedLayer, Resolved, pack_layer
from layerfarm.jobs.image.documents import ANNOTATION_CODEC, ANNOTATION_UNCOMPRESSED_SIZE
from layerfarm.jobs.image.layers import Advanced, found_compression, open_layer, unheard, written_as
from layerfarm.jobs.image.listings import list_layer
from layerfarm.jobs.layer.merge import MergeOptions, OpenLayer, merge_layers
from layerfarm.jobs.layer.names import clean
from layerfarm.jobs.layer.stack import Read, Stack
from layerfarm.jobs.relayer.equivalence import matcher
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.atomic_file import explained

_CHUNK: Final = 1 << 20
_HARDLINK: Final = 0x31
_OF_THE_BLOB: Final = (
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "containerd.io/snapshot/overlaybd/",
    "com.amazon.soci",
)
"""Annotations about the compressed bytes, such as the offset of their table of contents: wrong for other bytes."""


# --- which layers --------------------------------------------------------------------------------


def check_range(image: Resolved, keep: int, upto: int | None) -> int:
    """Return the number of the highest layer to squash, 1 for the lowest.

    Raises:
        TransformError: the image has fewer layers.
    """
    layers = len(image.manifest.layers)
    top = layers if upto is None else upto
    if keep > layers or top > layers:
        raise TransformError(f"image has {layers} layers, not {max(keep, top)}", where=image.descriptor.digest)
    return top


def layers_of_base(image: Resolved, base: Resolved) -> int:
    """Return the number of layers of ``base``, which must be the lowest ones of ``image``.

    Raises:
        TransformError: the image has other lowest layers.
    """
    own, below = image.config.rootfs.diff_ids, base.config.rootfs.diff_ids
    if own[: len(below)] != below:
        pairs = enumerate(zip(own, below, strict=False))
        shared = next((at for at, (left, right) in pairs if left != right), len(own))
        raise TransformError(
            f"image is not on this base: of its {len(below)} layers only the lowest {shared} are the same",
            where=image.descriptor.digest,
            hint="give the exact version of the base that it was built on",
        )
    return len(below)


# --- recompress ----------------------------------------------------------------------------------


def needs_recompression(store: Layout, layer: Descriptor, codec: Codec, *, any_level: bool) -> bool:
    """Return False for a layer already compressed by ``codec``; with ``any_level``, at any level and by any tool.

    A layer with a wrong media type is compressed again: its bytes are of another compression, or the type is one of
    Docker's. External layers are left alone: their urls lead to the same bytes.

    Raises:
        UnsupportedMediaType: it is not a layer of the image-spec.
        StoreError: it cannot be read.
    """
    if is_foreign(layer.media_type) or layer.urls:
        return False
    if is_docker(layer.media_type) or compression_of(layer.media_type) is not codec.compression.of_stream:
        return True
    if found_compression(store, layer) is not codec.compression.of_stream:
        return True
    if (layer.annotations or {}).get(ANNOTATION_CODEC) == codec_id(codec):
        return False
    return not any_level or written_as(layer) is not codec.compression


def recompress_layer(
    source: Layout, target: Layout, layer: Descriptor, diff_id: str, codec: Codec, advanced: Advanced = unheard
) -> PackedLayer:
    """Compress a layer of ``source`` again into ``target``, and read it back to check that it is the same tar.

    To and from eStargz it is another tar, with or without the entries of that format.

    Raises:
        StoreError, LayerError: it cannot be read, or does not match its digest and diff_id; or the new blob
            does not unpack to the same tar, and no image will name it.
    """
    with open_layer(source, layer, diff_id, advanced) as stream:
        pieces = iter(lambda: stream.read(_CHUNK), b"")
        packed = pack_layer(target, without_own(pieces) if stream.hidden else pieces, codec)
    with open_layer(target, packed.descriptor, packed.diff_id):
        pass
    return packed


def recompressed(layer: Descriptor, packed: PackedLayer) -> tuple[Descriptor, list[str]]:
    """Return the descriptor of the recompressed layer, and the annotations that it lost: those on compressed bytes.

    Annotations on the layer's content stay.
    """
    kept = dict(layer.annotations or {})
    lost = sorted(key for key in kept if key.startswith(_OF_THE_BLOB))
    for key in (*lost, ANNOTATION_CODEC, ANNOTATION_UNCOMPRESSED_SIZE):
        kept.pop(key, None)
    new = packed.descriptor
    kept |= new.annotations or {}
    lost = [key for key in lost if key not in kept]
    changes = {"media_type": new.media_type, "digest": new.digest, "size": new.size, "annotations": kept or None}
    return layer.model_copy(update={**changes, "data": None, "urls": None}), lost


# --- squash and strip ----------------------------------------------------------------------------


def squash_layers(
    source: Layout,
    target: Layout,
    image: Resolved,
    keep: int,
    upto: int,
    codec: Codec,
    epoch: int | None = None,
    advanced: Advanced = unheard,
) -> PackedLayer:
    """Merge the layers above the ``keep`` lowest, up to the layer ``upto``, into one in ``target``.

    A layer without a listing is read twice: to find the entries that survive, and to copy their content.

    Raises:
        StoreError, LayerError, LimitExceeded: a layer cannot be read or applied.
    """
    below, whole = Stack(), Stack()
    for number, (layer, diff_id) in enumerate(image.layers[:upto]):
        reads = list(list_layer(source, layer, diff_id, advanced))
        if number < keep:
            below.apply_read(reads)
        whole.apply_read(reads)
    options = MergeOptions(source_date_epoch=epoch, scratch=target.scratch())
    with explained("layers cannot be merged in the layout", target.path):
        return pack_layer(target, merge_layers(below, whole, opener(source, image, advanced), options), codec)


def strip_layers(
    source: Layout,
    target: Layout,
    image: Resolved,
    patterns: Sequence[str],
    level: int | None = None,
    threads: int = 1,
    epoch: int | None = None,
    advanced: Advanced = unheard,
) -> dict[int, PackedLayer]:
    """Rewrite, in its own compression, every layer that holds a path that matches a pattern.

    A new layer turns the stripped tree below it into the stripped tree with it. Returns the new layers by
    their position, 0 for the lowest.

    Raises:
        StoreError, LayerError, LimitExceeded: a layer cannot be read or applied.
    """
    gone = matcher(patterns)
    options = MergeOptions(source_date_epoch=epoch, gone=gone, scratch=target.scratch())
    layers = [list(list_layer(source, layer, diff_id, advanced)) for layer, diff_id in image.layers]
    done: dict[int, PackedLayer] = {}
    stack = Stack()
    for position, reads in enumerate(layers):
        stack.apply_read(reads)
        if _touches(stack, position + 1, reads, gone):
            tar = merge_layers(Stack.of(layers[:position]), stack, opener(source, image, advanced), options)
            compression = written_as(image.manifest.layers[position])
            codec = Codec(compression, level=level if compression is not Compression.NONE else None, threads=threads)
            with explained("layer cannot be rewritten in the layout", target.path):
                done[position] = pack_layer(target, tar, codec)
    return done


def _touches(stack: Stack, layer: int, reads: Iterable[Read], gone: Callable[[bytes], bool]) -> bool:
    """Return True if the topmost layer, whose number is ``layer``, must be rewritten.

    That is: an entry of it is at a removed path, as written or after links are followed, or is another
    name of a file with such a path.
    """
    for member, _ in reads:
        if gone(b"/".join(clean(member.name))) or (member.type == _HARDLINK and gone(b"/".join(clean(member.link)))):
            return True
    for paths in stack.names().values():
        if any(map(gone, paths)) and not all(map(gone, paths)):
            return True
    return any(map(gone, stack.paths_of(layer)))


def opener(source: Layout, image: Resolved, advanced: Advanced) -> OpenLayer:
    """Return a function that opens the layers of an image by their number, 1 for the lowest."""
    layers = image.layers
    return lambda number: open_layer(source, *layers[number - 1], advanced)
