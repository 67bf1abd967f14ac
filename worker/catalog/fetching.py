"""Bring the images of a catalog into its store: several at once, each blob once, one failure stopping no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from layerfarm.jobs.errors import LayerfarmError, UnsupportedImage
from layerfarm.jobs.relayer.indexes import follow, platform_of
from layerfarm.jobs.relayer.referrers import spoken
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.catalog.document import CatalogFile, Source
from layerfarm.worker.catalog.pull import Offer, copy_in, look, look_in, pull
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.remote_referrers import Statement, bring, in_layout, in_registry
from layerfarm.worker.catalog.sources import CatalogImage, Listing, origins, select
from layerfarm.worker.catalog.state import ImageState, States


def discover(catalog: CatalogFile, skopeo: Skopeo) -> list[CatalogImage]:
    """The images that the catalog's sources hold now.

    Raises:
        RegistryError, RegistryBusy, NotALayout: a source cannot be listed.
        CatalogError: two images have one name.
    """

    def listing(place: tuple[Source, str, str]) -> Listing:
        source, repository, where = place
        tags = skopeo.tags(where) if source.layout is None else Layout.open(Path(where)).tags()
        return Listing(source, repository, tags)

    with ThreadPoolExecutor(catalog.access.parallel) as pool:
        return select(catalog, list(pool.map(listing, origins(catalog))))


class Fetcher:
    """Fetches images into ``store`` and remembers them in ``states``."""

    def __init__(self, store: Layout, states: States, skopeo: Skopeo) -> None:
        self._store = store
        self._states = states
        self._skopeo = skopeo
        self._spoken: dict[str, dict[str, list[str]]] = {}
        """Of the layouts that images come from, what speaks of others there."""
        self._changed = threading.Condition()
        self._coming: set[str] = set()
        """Digests of the blobs that are being fetched."""

    def fetch(self, images: Sequence[CatalogImage], parallel: int, done: Callable[[ImageState, int], None]) -> None:
        """Fetch them all. ``done`` is told of each its state, with an error if it could not be had, and the bytes
        that came over the network; from any thread."""
        with ThreadPoolExecutor(parallel, thread_name_prefix="fetch") as pool:
            for _ in pool.map(lambda image: done(*self._one(image)), images):
                pass

    def is_current(self, image: CatalogImage) -> bool:
        """True if what the origin holds now is in the store."""
        offer = self._offer(image)
        return self._is_held(self._states[image.name], offer, self._said(image, offer))

    def _one(self, image: CatalogImage) -> tuple[ImageState, int]:
        state = self._states[image.name]
        try:
            offer = self._offer(image)
            said = self._said(image, offer)
            if self._is_held(state, offer, said):
                return self._states.put(state.but(origin=image.origin, error=None)), 0
            fetched, left = 0, []
            if image.registry:
                top, fetched = self._pull(image, offer)
                held = [each.digest for each in follow(self._store, top).manifests]
                left = bring(self._skopeo, image.origin.rpartition(":")[0], said, held, self._store)
            else:
                layout, _, tag = image.origin.partition(":")
                top = copy_in(Layout.open(Path(layout)), tag, self._store, image.name)
            created = self._check(top, image)
        except LayerfarmError as error:
            return self._states.put(state.but(origin=image.origin, error=str(error))), 0
        if state.old is None or state.old.digest != top.digest:
            state = ImageState(name=image.name, new=state.new, pushed=state.pushed)
        new = state.but(
            origin=image.origin,
            offer=offer.digest,
            old=top,
            said=tuple(map(str, said)),
            left=tuple(left),
            created=created,
            error=None,
        )
        return self._states.put(new), fetched

    def _offer(self, image: CatalogImage) -> Offer:
        if image.registry:
            return look(self._skopeo, image.origin)
        layout, _, tag = image.origin.partition(":")
        return look_in(Layout.open(Path(layout)), tag)

    def _said(self, image: CatalogImage, offer: Offer) -> list[Statement]:
        """What speaks of the image at its origin."""
        if image.registry:
            return in_registry(self._skopeo, image.origin.rpartition(":")[0], image.beside, offer.manifests)
        layout = image.origin.partition(":")[0]
        if layout not in self._spoken:  # by two threads at once at worst
            self._spoken[layout] = spoken(Layout.open(Path(layout)))
        return in_layout(self._spoken[layout], offer.manifests)

    def _is_held(self, state: ImageState, offer: Offer, said: Sequence[Statement]) -> bool:
        if state.old is None or state.offer != offer.digest or state.said != tuple(map(str, said)):
            return False
        tagged = self._store.find(state.name)
        return (
            len(tagged) == 1
            and tagged[0].digest == state.old.digest
            and self._store.claim(state.old)
            and all(self._store.claim(blob) for blob in offer.blobs)
        )

    def _pull(self, image: CatalogImage, offer: Offer) -> tuple[Descriptor, int]:
        """Two images that share a layer are not fetched at the same time, or it would come twice."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._missing(offer).keys() & self._coming))
            missing = self._missing(offer)
            self._coming |= missing.keys()
        try:
            return pull(self._skopeo, image.origin, offer, self._store, image.name), sum(missing.values())
        finally:
            with self._changed:
                self._coming -= missing.keys()
                self._changed.notify_all()

    def _missing(self, offer: Offer) -> dict[str, int]:
        return {blob.digest: blob.size for blob in offer.blobs if not self._store.has(blob)}

    def _check(self, top: Descriptor, image: CatalogImage) -> str | None:
        """The time of creation of the image, which has to be one that can be made over."""
        images = follow(self._store, top).images
        if image.policy.do.transform != "keep":
            for one in images:
                if one.config.os not in (None, "", "linux"):
                    raise UnsupportedImage(
                        f"image is for {platform_of(one)}, layerfarm makes over those for linux", where=image.name
                    )
        return next((one.config.created for one in images if one.config.created), None)
