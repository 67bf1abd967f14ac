"""Paths out of an image, and out of every layer that holds them, so that nobody can dig them out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from layerfarm.jobs.compress import Codec, Compression, compression_of
from layerfarm.jobs.image import HistoryEntry, ImageConfig, PackedLayer, Resolved, pack_layer
from layerfarm.jobs.image.documents import timestamp
from layerfarm.jobs.image.layers import Advanced, read_layer, unheard
from layerfarm.jobs.layer.merge import MergeOptions, merge_layers
from layerfarm.jobs.layer.names import clean
from layerfarm.jobs.layer.stack import Read, Stack
from layerfarm.jobs.relayer.equivalence import matcher
from layerfarm.jobs.relayer.squash import opener
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.atomic_file import explained

_HARDLINK: Final = 0x31


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
    """Write every layer anew that holds something which matches a pattern; the others stay.

    A new layer says the same of all other paths: it turns the stripped tree below it into the stripped tree
    with it. Each keeps its own compression. Returns the new layers by their position, 0 for the lowest.

    Raises:
        StoreError, LayerError, LimitExceeded: a layer cannot be read or applied.
    """
    gone = matcher(patterns)
    options = MergeOptions(source_date_epoch=epoch, gone=gone, scratch=target.scratch())
    layers = [list(read_layer(source, layer, diff_id, advanced, hash_content=False)) for layer, diff_id in image.layers]
    done: dict[int, PackedLayer] = {}
    stack = Stack()
    for position, reads in enumerate(layers):
        stack.apply_read(reads)
        if _touches(stack, position + 1, reads, gone):
            tar = merge_layers(Stack.of(layers[:position]), stack, opener(source, image, advanced), options)
            compression = compression_of(image.manifest.layers[position].media_type)
            codec = Codec(compression, level=level if compression is not Compression.NONE else None, threads=threads)
            with explained("layer cannot be written anew in the layout", target.path):
                done[position] = pack_layer(target, tar, codec)
    return done


def stripped_config(
    config: ImageConfig, done: Mapping[int, PackedLayer], patterns: Sequence[str], epoch: int | None
) -> ImageConfig:
    """The config of the stripped image; its history says what was done."""
    ids = [done[at].diff_id if at in done else diff_id for at, diff_id in enumerate(config.rootfs.diff_ids)]
    changes: dict[str, object] = {"rootfs": config.rootfs.model_copy(update={"diff_ids": ids})}
    created = config.created if epoch is None else timestamp(epoch)
    if epoch is not None:
        changes["created"] = created
    if config.history is not None:
        entry = HistoryEntry(created=created, created_by=f"layerfarm strip {' '.join(patterns)}", empty_layer=True)
        changes["history"] = [*config.history, entry]
    return config.model_copy(update=changes)


def _touches(stack: Stack, layer: int, reads: Iterable[Read], gone: Callable[[bytes], bool]) -> bool:
    """Whether the topmost layer, whose number is ``layer``, has to be written anew.

    It has if an entry of it lies at a path that goes, as it is written or where links lead it, or is one more
    name of a file that has such a path.
    """
    for member, _ in reads:
        if gone(b"/".join(clean(member.name))) or (member.type == _HARDLINK and gone(b"/".join(clean(member.link)))):
            return True
    for paths in stack.names().values():
        if any(map(gone, paths)) and not all(map(gone, paths)):
            return True
    return any(placed.layer == layer and gone(placed.entry.path) for placed in stack.placed())
