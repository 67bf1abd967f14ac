"""Select images by their creation times (``newer-than``)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.image import ImageConfig
from layerfarm.jobs.image.documents import instant
from layerfarm.jobs.store import parse_document
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.offers import Origin
from layerfarm.worker.catalog.sources import CatalogImage, open_origin


class Young(NamedTuple):
    """The images that are new enough, or need not be."""

    images: list[CatalogImage]
    undated: list[CatalogImage]
    """Images that are left out because they have no creation time."""


def young(images: Sequence[CatalogImage], reader: Known, parallel: int, now: datetime | None = None) -> Young:
    """Return the images without those that are older than their source wants.

    Each costs a HEAD request; one that was not seen before, its manifest and the configuration of one platform. An
    image that cannot be read stays: its fetch reports the error.
    """
    second = (now or datetime.now(UTC)).timestamp()

    def verdict(image: CatalogImage) -> bool | None:
        assert image.newer_than is not None
        try:
            created = created_at(open_origin(image, reader))
        except LayerfarmError:
            return True
        time = instant(created or "")
        return None if time is None else time[0] >= second - image.newer_than.total_seconds()

    asked = [image for image in images if image.newer_than is not None]
    with ThreadPoolExecutor(parallel, thread_name_prefix="ages") as pool:
        verdicts = dict(zip((image.name for image in asked), pool.map(verdict, asked), strict=True))
    return Young(
        [image for image in images if verdicts.get(image.name, True)],
        [image for image in asked if verdicts[image.name] is None],
    )


def created_at(origin: Origin) -> str | None:
    """Return the creation time of the first image that has one; manifests behind it are not read.

    Raises:
        LayerfarmError: as :meth:`Origin.offer`.
    """
    for each in origin.manifests():
        if each.is_image and each.config is not None:
            config = parse_document(ImageConfig, origin.config(each), each.config.digest)
            if config.created:
                return config.created
    return None
