"""Compare a destination's registry with the images that a catalog published there, and read them back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from layerfarm.jobs.errors import AccessDenied, LayerfarmError, NotInRegistry, RegistryError
from layerfarm.jobs.relayer.referrers import fallback_tag, referrers
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Destination, Proofs
from layerfarm.worker.catalog.offers import Offer, look
from layerfarm.worker.catalog.places import reference_at, repository_at
from layerfarm.worker.catalog.pull import fetch_blobs, link_blob, referred, staging_beside
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.state import ImageState
from layerfarm.worker.catalog.transfer import is_published


def differences(
    skopeo: Skopeo, destination: Destination, states: Sequence[ImageState], parallel: int
) -> dict[str, str]:
    """Return, by image pushed to the destination's registry that has changed or is gone there, the difference.

    Sends one listing for each repository, and a HEAD request for each image.
    """
    repositories = sorted({repository_at(destination, state.name) for state in states})
    with ThreadPoolExecutor(parallel, thread_name_prefix="compare") as pool:
        tags = dict(zip(repositories, pool.map(lambda each: _tags(skopeo, each), repositories), strict=True))

        def difference(state: ImageState) -> str | None:
            return _difference(skopeo, destination, state, tags[repository_at(destination, state.name)])

        found = zip(states, pool.map(difference, states), strict=True)
        return {state.name: text for state, text in found if text is not None}


def _tags(skopeo: Skopeo, repository: str) -> frozenset[str] | None:
    """Return the tags of a repository; None: it cannot be listed."""
    try:
        return frozenset(skopeo.tags(repository))
    except NotInRegistry:
        return frozenset()
    except RegistryError:
        return None


def _difference(skopeo: Skopeo, destination: Destination, state: ImageState, tags: frozenset[str] | None) -> str | None:
    assert state.new is not None
    reference = reference_at(destination, state.name)
    if tags is not None and reference.rpartition(":")[2] not in tags:
        return f"no longer there: {reference}"
    try:
        digest = skopeo.digest(reference)
    except (NotInRegistry, AccessDenied):
        # Registries that hide a repository deny access to a deleted one.
        return f"no longer there: {reference}"
    except LayerfarmError as error:
        return str(error)
    if digest != state.new.digest:
        return f"tag was overwritten with {digest}: {reference}"
    gone = sorted(set(state.beside).difference(tags)) if tags is not None else []
    return f"referrers are no longer there: {reference}, tags {', '.join(gone)}" if gone else None


class ReadBack:
    """Reads published images from a registry; ``deep``: all their blobs too. Used by many threads."""

    def __init__(self, skopeo: Skopeo, destination: Destination, proofs: Proofs, *, deep: bool) -> None:
        self._skopeo = skopeo
        self._destination = destination
        self._proofs = proofs
        self._deep = deep
        self._lock = threading.Lock()
        self._read: set[str] = set()
        """Digests of the blobs already read: images share them."""

    def read(self, state: ImageState, layout: Layout) -> tuple[list[str], int]:
        """Read the new image, which ``layout`` holds too; return the faults, and the bytes of the blobs read."""
        assert state.new is not None
        repository = repository_at(self._destination, state.name)
        faults: list[str] = []
        nbytes = 0
        pending = [state.new.digest]
        for digest in pending:  # grows
            try:
                offer = look(self._skopeo, f"{repository}@{digest}")
                nbytes += self._blobs(repository, offer, layout) if self._deep else 0
                for subject in offer.digests:
                    pending += self._referrers(repository, subject, state, layout, faults, known=pending)
            except LayerfarmError as error:
                faults.append(str(error))
        return faults, nbytes

    def _referrers(
        self, repository: str, subject: str, state: ImageState, layout: Layout, faults: list[str], known: Iterable[str]
    ) -> list[str]:
        """Return the referrers of ``subject`` that were published with the image and are not read yet."""
        if fallback_tag(subject) not in state.beside:
            return []
        ours = {each.digest for each in referrers(layout, subject) if is_published(each, self._proofs)}
        there = {each.digest for each in referred(self._skopeo, repository, subject) or ()}
        faults += [f"referrer is no longer listed: {repository}@{each}" for each in sorted(ours - there)]
        return sorted((ours & there).difference(known))

    def _blobs(self, repository: str, offer: Offer, layout: Layout) -> int:
        """Read the blobs that were not read yet. skopeo checks their digests."""
        with self._lock:
            missing = [blob for blob in offer.blobs if blob.digest not in self._read]
        with staging_beside(layout) as staging:
            for blob in offer.blobs:
                if blob not in missing:
                    link_blob(layout, staging, blob)
            fetch_blobs(self._skopeo, repository, offer, staging)
        with self._lock:
            self._read |= {blob.digest for blob in missing}
        return sum(blob.size for blob in missing)
