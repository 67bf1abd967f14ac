"""Several layers into one, and what the image's config tells of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from layerfarm.jobs.compress import Codec
from layerfarm.jobs.errors import TransformError
from layerfarm.jobs.image import HistoryEntry, ImageConfig, PackedLayer, Resolved, pack_layer
from layerfarm.jobs.image.documents import timestamp
from layerfarm.jobs.image.layers import Advanced, open_layer, read_layer, unheard
from layerfarm.jobs.layer.merge import MergeOptions, OpenLayer, merge_layers
from layerfarm.jobs.layer.stack import Stack
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.atomic_file import explained


def check_range(image: Resolved, keep: int, upto: int | None) -> int:
    """The number of the highest layer to be squashed, 1 for the lowest.

    Raises:
        TransformError: the image has not so many layers.
    """
    layers = len(image.manifest.layers)
    top = layers if upto is None else upto
    if keep > layers or top > layers:
        raise TransformError(f"the image has {layers} layers, not {max(keep, top)}", where=image.descriptor.digest)
    return top


def layers_of_base(image: Resolved, base: Resolved) -> int:
    """How many of the image's lowest layers are those of ``base``.

    Raises:
        TransformError: they are others.
    """
    below = base.config.rootfs.diff_ids
    if image.config.rootfs.diff_ids[: len(below)] != below:
        shared = _common(image.config.rootfs.diff_ids, below)
        raise TransformError(
            f"the image is not on this base: of its {len(below)} layers only the lowest {shared} are the same",
            where=image.descriptor.digest,
            hint="name the very version of the base that it was built on",
        )
    return len(below)


def linux_only(image: Resolved) -> None:
    """Refuse what another system's layers say in records that nobody here reads.

    Raises:
        TransformError: the image is not for Linux.
    """
    if image.config.os not in (None, "linux"):
        raise TransformError(
            f"layers for {image.config.os!r} cannot be taken apart, only recompressed", where=image.descriptor.digest
        )


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

    Each is read twice: once to know which entries survive, once to copy their content.

    Raises:
        StoreError, LayerError, LimitExceeded: a layer cannot be read or applied.
    """
    below, whole = Stack(), Stack()
    for number, (layer, diff_id) in enumerate(image.layers[:upto]):
        reads = list(read_layer(source, layer, diff_id, advanced, hash_content=False))
        if number < keep:
            below.apply_read(reads)
        whole.apply_read(reads)
    options = MergeOptions(source_date_epoch=epoch, scratch=target.scratch())
    with explained("layers cannot be merged in the layout", target.path):
        return pack_layer(target, merge_layers(below, whole, opener(source, image, advanced), options), codec)


def opener(source: Layout, image: Resolved, advanced: Advanced) -> OpenLayer:
    """Opens the layers of an image by their number, 1 for the lowest."""
    layers = image.layers
    return lambda number: open_layer(source, *layers[number - 1], advanced)


def squashed_config(
    config: ImageConfig, keep: int, upto: int, diff_id: str, old: str, epoch: int | None
) -> ImageConfig:
    """The config of the squashed image. The steps that made the layers stay in the history, as empty ones."""
    ids = config.rootfs.diff_ids
    rootfs = config.rootfs.model_copy(update={"diff_ids": [*ids[:keep], diff_id, *ids[upto:]]})
    changes: dict[str, object] = {"rootfs": rootfs}
    if epoch is not None:
        changes["created"] = timestamp(epoch)
    if config.history is not None:
        what = f"layers {keep + 1} to {upto} of {old}"
        changes["history"] = list(_history(config.history, keep, upto, what, _created(config, keep, upto, epoch)))
    return config.model_copy(update=changes)


def _history(
    history: Iterable[HistoryEntry], keep: int, upto: int, what: str, created: str | None
) -> Iterator[HistoryEntry]:
    """Docker's way: the steps as empty ones, and after them one that made the layer."""
    merged = HistoryEntry(created=created, created_by="layerfarm squash", comment=what)
    number = 0
    for entry in history:
        if entry.empty_layer:
            yield entry
            continue
        number += 1
        if keep < number <= upto:
            yield entry.model_copy(update={"empty_layer": True})
        else:
            yield entry
        if number == upto:
            yield merged
    if number < upto:
        yield merged


def _created(config: ImageConfig, keep: int, upto: int, epoch: int | None) -> str | None:
    """When the layer was made: as $SOURCE_DATE_EPOCH says, else when the newest of the old ones was."""
    if epoch is not None:
        return timestamp(epoch)
    filled = [entry for entry in config.history or [] if not entry.empty_layer]
    known = [entry.created for entry in filled[keep:upto] if entry.created is not None]
    return known[-1] if known else config.created


def _common(one: list[str], other: list[str]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
