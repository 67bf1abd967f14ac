"""The largest layer that a destination takes."""

from __future__ import annotations

from collections.abc import Iterable

from layerfarm.jobs.errors import LayerfarmError, TransformError
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.catalog.offers import look_at
from layerfarm.worker.catalog.sources import CatalogImage
from layerfarm.worker.catalog.state import States


def fail_large(store: Layout, states: States, images: Iterable[CatalogImage], largest: int | None) -> None:
    """Record an error for fetched images that would be copied unchanged with a blob of more than ``largest`` bytes."""
    for image in images:
        state = states[image.name]
        if largest is not None and image.is_kept and state.error is None and state.old and state.new is None:
            try:
                check_layers(store, state.old, largest)
            except LayerfarmError as error:
                states.put(state.failed(error, "analyze"))


def check_layers(layout: Layout, top: Descriptor, largest: int | None) -> None:
    """Check the sizes of an image's blobs.

    Raises:
        TransformError: one is larger than ``largest`` bytes; None: no limit.
        StoreError: the layout does not hold its manifests.
    """
    if largest is None:
        return
    for blob in look_at(layout, top).blobs:
        if blob.size > largest:
            raise TransformError(
                f"layer has {blob.size} bytes, more than the {largest} of largest-layer",
                where=blob.digest,
                hint="rechunk splits layers; other transforms keep them, or make larger ones",
            )
