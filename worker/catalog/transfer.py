"""Fetch the images of a catalog into its store, and push the new ones; one failure does not stop other images."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from layerfarm.jobs.errors import LayerfarmError, NotInRegistry, RegistryBusy, RegistryError
from layerfarm.jobs.image import ImageConfig
from layerfarm.jobs.relayer.indexes import follow
from layerfarm.jobs.relayer.referrers import (
    MEDIA_TYPE_PROOF,
    fallback_index,
    fallback_tag,
    is_fallback_tag,
    referrers,
    spoken,
    tags_beside,
)
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Descriptor, Layout, parse_document
from layerfarm.jobs.store.tag_group import in_groups
from layerfarm.worker.catalog.costs import holding_in
from layerfarm.worker.catalog.document import Destination, Proofs
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.offers import Offer, look_at, tagged
from layerfarm.worker.catalog.places import is_replaced, reference_at, repository_at, repository_in
from layerfarm.worker.catalog.platforms import Chosen, choose
from layerfarm.worker.catalog.pull import (
    Referrer,
    bring,
    convert_in,
    copy_in,
    copy_platforms,
    left_behind,
    pull,
    push,
    reachable_blobs,
    referred,
    referrers_in_layout,
    referrers_in_registry,
)
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.sizes import check_layers
from layerfarm.worker.catalog.sources import CatalogImage, open_origin
from layerfarm.worker.catalog.state import ImageState, Missed, Publication, States


class Fetcher:
    """Fetches images into ``store`` and records them in ``states``."""

    def __init__(self, store: Layout, states: States, skopeo: Skopeo, reader: Known, destination: Destination) -> None:
        self._store = store
        self._states = states
        self._destination = destination
        self._skopeo = skopeo
        self._known = reader
        self._spoken: dict[str, dict[str, list[str]]] = {}
        """Referrers by subject, for each layout that images come from."""
        self._sources: dict[str, Layout] = {}
        """Layouts that images come from."""
        self._chosen: dict[str, Chosen] = {}
        """By image of a source with platforms."""
        self._changed = threading.Condition()
        self._coming: set[str] = set()
        """Digests of blobs being fetched."""

    def fetch(self, images: Sequence[CatalogImage], parallel: int, done: Callable[[ImageState, int], None]) -> None:
        """Fetch all images. ``done`` is called with the state of each, an error if it failed, and the bytes received;
        from any thread.
        """
        layouts = sorted({image.origin.partition(":")[0] for image in images if not image.registry})
        due = []
        with self._steady(layouts):
            for image in images:
                state = self._states[image.name]
                if self._is_same(image, state):
                    done(self._states.put(state.but(origin=image.origin, error=None)), 0)
                else:
                    due.append(image)
        waiting = iter(due)

        def ended(image: CatalogImage, fetched: tuple[ImageState, int], error: LayerfarmError | None) -> None:
            state, nbytes = fetched if error is None else (self._failed(image, error), 0)
            done(self._states.put(state), nbytes)

        def fetch() -> None:
            with self._steady(layouts):
                in_groups(waiting, self._store.path, self._one, ended)

        with ThreadPoolExecutor(parallel, thread_name_prefix="fetch") as pool:
            for future in [pool.submit(fetch) for _ in range(min(parallel, len(due)))]:
                future.result()

    @contextmanager
    def _steady(self, layouts: Iterable[str]) -> Iterator[None]:
        """Let this thread read the indexes of the store and of these layouts once."""
        with ExitStack() as stack:
            stack.enter_context(self._store.steady())
            for path in layouts:
                with suppress(LayerfarmError):  # each of its images fails
                    stack.enter_context(Layout.open(Path(path)).steady())
            yield

    def outlook(self, image: CatalogImage) -> tuple[str, str | None]:
        """Return what :meth:`fetch` would do: ``fetch`` or nothing (empty); and why the image would be left out."""
        offer = self._look(image)
        if isinstance(offer, str):
            return "", offer
        return "" if self._is_held(image, offer, self._said(image, offer)) else "fetch", None

    def lacking(self, images: Iterable[CatalogImage]) -> list[Missed]:
        """Return platforms that are wanted but that no image has: a wrong name would remove them silently.

        ``images``: those looked at. If one of a group cannot be read, nothing is known of the group.
        """
        groups: defaultdict[tuple[str, ...], list[CatalogImage]] = defaultdict(list)
        for image in images:
            if image.platforms:
                groups[image.platforms].append(image)
        missed = []
        for platforms, group in groups.items():
            looked = [self._chosen[image.name] for image in group if image.name in self._chosen]
            found = [each for each in looked if each.platforms]
            if not found or len(looked) < len(group):
                continue
            there = ", ".join(sorted({platform for each in found for platform in each.platforms}))
            missed += [
                Missed(where=f"platform {platform}", error=f"no image of its sources has it: they have {there}")
                for platform in platforms
                if all(platform in each.lacking for each in found)
            ]
        return missed

    def _failed(self, image: CatalogImage, error: LayerfarmError) -> ImageState:
        return self._states[image.name].but(origin=image.origin).failed(error, "fetch")

    def _one(self, image: CatalogImage) -> tuple[ImageState, int]:
        state = self._states[image.name]
        try:
            offer = self._look(image)
            if isinstance(offer, str):
                state = ImageState(name=image.name, origin=image.origin, published=state.published)
                return state.but(note=f"left out, {offer}"), 0
            said = self._said(image, offer)
            if self._is_held(image, offer, said):
                return state.but(origin=image.origin, error=None), 0
            fetched, left = 0, list[str]()
            if image.registry:
                top, fetched = self._pull(image, offer)
            else:
                top, left = self._copy(image, offer, said)
            copy = look_at(self._store, top)
            if image.registry:
                left = bring(self._skopeo, repository_in(image.origin), said, copy.digests, self._store)
            created = self._created(copy)
            holding = holding_in(self._store, copy, offer)
            if not image.is_kept:
                follow(self._store, top)  # an image that cannot be transformed fails here
        except LayerfarmError as error:
            return self._failed(image, error), 0
        if state.old is None or state.old.digest != top.digest:
            state = ImageState(
                name=image.name,
                new=state.new,
                pushed=state.pushed,
                published=state.published,
                holdings=state.holdings_of(state.new.digest if state.new else None),
            )
        done = state.but(
            origin=image.origin,
            offer=offer.digest,
            old=top,
            said=tuple(map(str, said)),
            left=tuple(left),
            manifests=tuple(offer.digests) if not image.registry and top.digest == offer.digest else (),
            kept=image.is_kept,
            holdings={**state.holdings, offer.digest: holding},
            created=created,
            error=None,
        )
        return self._states.acted(done, "fetched"), fetched

    def _is_same(self, image: CatalogImage, state: ImageState) -> bool:
        """Return True if a layout still has the image that was copied from it: no manifest has to be read to know."""
        if not state.manifests or image.registry or image.platforms or image.is_kept != state.kept:
            return False
        path, _, name = image.origin.partition(":")
        old = state.old
        if old is None or state.offer != old.digest:
            return False
        try:
            return (
                self._source(path).names_only(name, old.digest)
                and state.said == tuple(map(str, self._referrers(path, state.manifests)))
                and self._store.names_only(state.name, old.digest)
                and self._store.has(old)
            )
        except LayerfarmError:
            return False  # the fetch reports it

    def _look(self, image: CatalogImage) -> Offer | str:
        """Return the image at its origin with the platforms of its source, or why it is left out."""
        origin = open_origin(image, self._known)
        if not image.platforms:
            offer = origin.offer()
        else:
            chosen = self._chosen[image.name] = choose(origin, image.platforms)
            if chosen.offer is None:
                return f"it is for {', '.join(chosen.platforms)}, not for {', '.join(image.platforms)}"
            offer = chosen.offer
        if offer.artifact is not None and not image.is_kept:
            return f"it is not an image but {offer.artifact}; the policy keep would copy it"
        return offer

    def _said(self, image: CatalogImage, offer: Offer) -> list[Referrer]:
        """Return the referrers of the image at its origin."""
        subjects = [*offer.digests, *offer.full]
        if image.registry:
            return referrers_in_registry(self._known, repository_in(image.origin), image.beside, subjects)
        return self._referrers(image.origin.partition(":")[0], subjects)

    def _referrers(self, layout: str, subjects: Sequence[str]) -> list[Referrer]:
        if layout not in self._spoken:  # at worst by two threads at once
            self._spoken[layout] = spoken(self._source(layout))
        return referrers_in_layout(self._spoken[layout], subjects)

    def _source(self, layout: str) -> Layout:
        if layout not in self._sources:
            self._sources[layout] = Layout.open(Path(layout))
        return self._sources[layout]

    def _is_held(self, image: CatalogImage, offer: Offer, said: Sequence[Referrer]) -> bool:
        state = self._states[image.name]
        if state.old is None or not self._is_tagged(state, state.old):
            return False
        if state.new is not None and offer.digest == state.new.digest != state.offer:
            # The new image is in the original's place, with its own referrers: the original is in the store.
            return is_replaced(self._destination, image.name, image.origin)
        return (
            state.offer == offer.digest
            and state.said == tuple(map(str, said))
            # After a change of the policy, an image in Docker's formats is needed unchanged, or converted.
            and (state.old.digest == offer.digest) == (image.is_kept or not offer.is_docker)
            # The blobs of a layout's image need no request to be copied again.
            and (not image.registry or all(self._store.claim(blob) for blob in offer.needed(image.is_kept)))
        )

    def _is_tagged(self, state: ImageState, old: Descriptor) -> bool:
        return self._store.names_only(state.name, old.digest) and self._store.claim(old)

    def _pull(self, image: CatalogImage, offer: Offer) -> tuple[Descriptor, int]:
        """Pull an image, not at the same time as another with the same blobs: they would be fetched twice."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._missing(image, offer).keys() & self._coming))
            missing = self._missing(image, offer)
            self._coming |= missing.keys()
        try:
            top = pull(self._skopeo, image.origin, offer, self._store, image.name, exact=image.is_kept)
            return top, sum(missing.values())
        finally:
            with self._changed:
                self._coming -= missing.keys()
                self._changed.notify_all()

    def _copy(self, image: CatalogImage, offer: Offer, said: Sequence[Referrer]) -> tuple[Descriptor, list[str]]:
        """Copy an image of a layout; also return the referrers left behind."""
        path, _, name = image.origin.partition(":")
        layout = Layout.open(Path(path))
        converted = offer.is_docker and not image.is_kept
        if not offer.full and not converted:
            return copy_in(layout, name, self._store, image.name), []
        if offer.full:
            top = copy_platforms(layout, offer, self._store, image.name)
            layout = self._store
        if converted:
            top = convert_in(self._skopeo, layout, offer, self._store, image.name)
        return top, left_behind(said, look_at(self._store, top).digests)

    def _missing(self, image: CatalogImage, offer: Offer) -> dict[str, int]:
        return {blob.digest: blob.size for blob in offer.needed(image.is_kept) if not self._store.has(blob)}

    def _created(self, copy: Offer) -> str | None:
        """Return the creation time of the image."""
        found = [each.config for each in copy.images if each.config is not None]
        configs = (parse_document(ImageConfig, self._store.read(each), each.digest) for each in found)
        return next((config.created for config in configs if config.created), None)


# --- pushing --------------------------------------------------------------------------------------


def is_pushed(state: ImageState, destination: Destination, proofs: Proofs) -> bool:
    """Return True if the new image, with its current referrers, was pushed to the destination's registry."""
    return state.new is not None and state.pushed == _pushed(state, destination, proofs)


def is_published(referrer: Descriptor, proofs: Proofs) -> bool:
    """Return True for a referrer of a new image that is pushed with it."""
    return proofs == "referrer" or referrer.artifact_type != MEDIA_TYPE_PROOF


class Pusher:
    """Pushes images to the destination's registry; ``notice`` is called with what is left out."""

    def __init__(
        self,
        skopeo: Skopeo,
        destination: Destination,
        names: Iterable[str],
        proofs: Proofs,
        notice: Callable[[str], None],
    ) -> None:
        """``names``: names of all images that are published there."""
        self._skopeo = skopeo
        self._destination = destination
        self._proofs = proofs
        self._notice = notice
        places = (reference_at(destination, name) for name in names)
        self._taken = {place for place in places if is_fallback_tag(place.rpartition(":")[2])}

    def push(self, state: ImageState, layout: Layout) -> tuple[ImageState, int]:
        """Push the new image of ``layout``; return its state, with an error if that failed, and its bytes.

        A registry that refuses its proofs and referrers still gets the image: not every registry takes artifacts.
        """
        assert state.new is not None
        reference = reference_at(self._destination, state.name)
        repository = repository_at(self._destination, state.name)
        try:
            check_layers(layout, state.new, self._destination.largest)
            push(self._skopeo, layout, state.new, reference)
            beside, refused = self._push_beside(layout, repository, state.new)
            nbytes = sum(blob.size for blob in reachable_blobs(layout, state.new))
        except LayerfarmError as error:
            return state.failed(error, "push"), 0
        for text in refused:
            self._notice(f"{state.name}: {text}")
        key = _pushed(state, self._destination, self._proofs)
        ours = {tag: digest for tag, digest in beside.items() if digest is not None}
        state = state.publish(Publication(place=reference, digest=state.new.digest, beside=ours))
        return state.but(pushed=key, beside=tuple(beside), refused=tuple(refused)), nbytes

    def _push_beside(self, layout: Layout, repository: str, new: Descriptor) -> tuple[dict[str, str | None], list[str]]:
        """Push everything that refers to the image and its platforms.

        Return the tags with the digests behind them, None if others have put something there; and what the registry
        refuses, with the reason.

        Raises:
            RegistryBusy: the registry does not take them now.
        """
        tags: dict[str, str | None] = {}
        refused = []
        subjects = look_at(layout, new).digests
        for subject in subjects:
            try:
                tags |= self._push_tags(layout, repository, subject)
                found, digest = self._push_referrers(layout, repository, subject)
                tags |= {fallback_tag(subject): digest} if found else {}
                # Referrers of referrers: a signature on an SBOM.
                subjects += [each for each in found if each not in subjects]
            except RegistryBusy:
                raise
            except RegistryError as error:
                refused.append(f"not published: proofs and referrers of {subject}, {error}")
        return tags, refused

    def _push_referrers(self, layout: Layout, repository: str, subject: str) -> tuple[list[str], str | None]:
        """Push the referrers behind the tag for registries without the referrers API.

        Return their digests, and that of their index. Referrers that others have put there stay; then it is None.
        """
        ours = {each.digest for each in referrers(layout, subject) if is_published(each, self._proofs)}
        if not ours:
            return [], None
        there = referred(self._skopeo, repository, subject)
        if there is None or f"{repository}:{fallback_tag(subject)}" in self._taken:
            self._notice(f"not published, an image has their tag: referrers of {repository}@{subject}")
            return [], None
        others = [one for one in there if one.digest not in ours]
        for text in bring(self._skopeo, repository, others, [subject], layout):
            self._notice(f"{repository}: {text}")
        listed = ours.union(one.digest for one in others)
        index = fallback_index(each for each in referrers(layout, subject) if each.digest in listed)
        stored = layout.put_document(index, MEDIA_TYPE_INDEX)
        # Not exact: older skopeos drop unknown fields of the index.
        reference = f"{repository}:{fallback_tag(subject)}"
        push(self._skopeo, layout, stored, reference, exact=False)
        return [entry.digest for entry in index.manifests], None if others else self._skopeo.digest(reference)

    def _push_tags(self, layout: Layout, repository: str, subject: str) -> dict[str, str | None]:
        """Push cosign's signatures and SBOMs, unless there are some; return their tags as :meth:`_push_beside`."""
        found: dict[str, str | None] = {}
        for tag in tags_beside(layout.index_text().sorted_tags, subject):
            reference, ours = f"{repository}:{tag}", tagged(layout, tag)
            found[tag] = ours.digest
            try:
                there = self._skopeo.digest(reference)
            except NotInRegistry:
                push(self._skopeo, layout, ours, reference)
            else:
                if there != ours.digest:
                    found[tag] = None
                    self._notice(f"not published, another one exists: {reference}")
        return found


def _pushed(state: ImageState, destination: Destination, proofs: Proofs) -> str:
    """Return a key of a push: the image, its and its referrers' inputs, the destination, and whether with proofs."""
    assert state.new is not None
    beside = "" if proofs == "referrer" else " without proofs"
    return f"{state.new.digest} {reference_at(destination, state.name)} {state.work}{beside}"
