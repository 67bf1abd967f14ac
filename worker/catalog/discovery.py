"""Find the images of a catalog in its sources. A source that cannot be listed does not stop the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from layerfarm.jobs.errors import CatalogError, LayerfarmError, NotInRegistry
from layerfarm.jobs.relayer.referrers import entry_names_image, is_fallback_tag
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.ages import young
from layerfarm.worker.catalog.document import CatalogFile
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.offers import names_in
from layerfarm.worker.catalog.places import repository_in
from layerfarm.worker.catalog.pull import referrers_behind
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.sources import (
    CatalogImage,
    Listing,
    Place,
    is_pattern,
    is_wanted,
    origin_of,
    place_in,
    places_of,
    repository_from,
    select,
    source_at,
    source_of,
)
from layerfarm.worker.catalog.state import Missed


@dataclass(frozen=True)
class Found:
    """The images of a catalog, each group sorted."""

    listed: Sequence[CatalogImage]
    """Images that the sources hold now."""
    kept: Sequence[CatalogImage]
    """Images of the last run whose source cannot be listed now. They stay unchanged."""
    missed: Sequence[Missed]
    referrers: frozenset[str]
    """Origins of the tags ``sha256-HEX`` that name an index of referrers, in registries and layouts."""
    notices: Sequence[str] = ()
    """Messages on what is left out, or leaves the catalog."""

    @property
    def images(self) -> list[CatalogImage]:
        return [*self.listed, *self.kept]


def discover(
    catalog: CatalogFile,
    skopeo: Skopeo,
    reader: Known,
    known: Collection[CatalogImage],
    referrers: Collection[str] = (),
    *,
    may_be_empty: bool = False,
) -> Found:
    """List the catalog's sources, with ``skopeo``; look at images with ``reader``.

    ``known``: the images of the last run. ``referrers``: its :attr:`Found.referrers`, which are not queried again.

    A source that had images and has none now counts as one that cannot be listed: a wrong pattern or wrong credentials
    do not remove images from the catalog. That all are too old is no error.

    Raises:
        CatalogError: two images have one name, or there is no image, unless it ``may_be_empty``.
        LayerfarmError: no source can be listed, and there was no last run.
    """
    errors: list[tuple[str, LayerfarmError]] = []
    gone: set[str] = set()
    places, unsure = _places(catalog, skopeo, known, errors)

    def listing(place: Place) -> Listing | None:
        source, repository, where = place
        try:
            tags = skopeo.tags(where) if source.layout is None else names_in(Layout.open(Path(where)))
        except LayerfarmError as error:
            if isinstance(error, NotInRegistry) and where in unsure:
                gone.add(where)
            else:
                errors.append((where, error))
            return None
        return Listing(source, repository, tags)

    with ThreadPoolExecutor(catalog.access.parallel) as pool:
        listings = [one for one in pool.map(listing, places) if one is not None]
        asked = [(one, tag) for one in listings for tag in _digest_tags(one)]
        answers = pool.map(lambda each: _names_referrers(skopeo, referrers, *each), asked)
        lists = frozenset(origin_of(*each) for each, answer in zip(asked, answers, strict=True) if answer)
    listings = [
        replace(one, images=frozenset(tag for tag in _digest_tags(one) if origin_of(one, tag) not in lists))
        for one in listings
    ]
    listed = select(catalog, listings, lambda origin, error: errors.append((origin, error)))
    kept = _kept([place for place in places if place.where not in gone], known, listed, errors)
    aged = young(listed, reader, catalog.access.parallel)
    if not listed and not kept and not may_be_empty:
        raise errors[0][1] if errors else CatalogError("no image found: no tag of the sources matches")
    missed = [Missed(where=where, error=str(error), error_type=type(error).__name__) for where, error in errors]
    notices = [f"no longer in the registry, its images leave the catalog: {where}" for where in sorted(gone)]
    notices += [f"{image.name}: left out, no creation time, which newer-than needs" for image in aged.undated]
    return Found(aged.images, kept, missed, lists, notices)


def _kept(
    places: Iterable[Place],
    known: Iterable[CatalogImage],
    listed: Sequence[CatalogImage],
    errors: list[tuple[str, LayerfarmError]],
) -> list[CatalogImage]:
    """Return the images of the last run whose source cannot be listed, or has no images any more, which is an error."""
    present = {image.name for image in listed}
    filled = {source_of(image) for image in listed}
    before_by_source: defaultdict[str, list[CatalogImage]] = defaultdict(list)
    for image in known:
        before_by_source[source_of(image)].append(image)
    kept: dict[str, CatalogImage] = {}
    unlisted = {where for where, _ in errors}
    for source, repository, where in places:
        before = before_by_source[source_at(source, repository)]
        if before and where not in unlisted and source_at(source, repository) not in filled:
            what = f"no images, {len(before)} in the last run"
            hint = "remove the source from the catalog if this is intended"
            errors.append((where, CatalogError(what, where=where, hint=hint)))
        elif where not in unlisted:
            continue
        kept |= {image.name: image for image in before if image.name not in present}
    return list(kept.values())


def _places(
    catalog: CatalogFile, skopeo: Skopeo, known: Iterable[CatalogImage], errors: list[tuple[str, LayerfarmError]]
) -> tuple[list[Place], set[str]]:
    """Return the places to list, and those that only the last run knows: their registry no longer lists them.

    A registry lists only what the caller may see, so a repository that is missing there may still exist.
    """
    places: list[Place] = []
    unsure: set[str] = set()
    for source in catalog.sources:
        there: list[str] = []
        if any(map(is_pattern, source.repositories)):
            assert source.registry is not None
            before = {name for image in known if (name := repository_from(source, image)) is not None}
            try:
                there = skopeo.repositories(source.registry)
            except LayerfarmError as error:
                errors.append((source.registry, error))
            else:
                unsure |= {place_in(source, name).where for name in before.difference(there)}
                if not places_of(source, [*there, *before]):
                    what = f"no repository matches {', '.join(source.repositories)}"
                    errors.append((source.registry, CatalogError(what, where=source.registry)))
            there = sorted({*there, *before})
        places += places_of(source, there)
    return places, unsure


def _digest_tags(listing: Listing) -> list[str]:
    """Return the tags that name an index of referrers, or an image mirrored by its digest."""
    return [tag for tag in listing.tags if is_fallback_tag(tag) and is_wanted(listing.source, tag)]


def _names_referrers(skopeo: Skopeo, known: Collection[str], listing: Listing, tag: str) -> bool:
    """Return True for the tag of an index of referrers. An unreadable one counts as an image, whose fetch fails."""
    origin = origin_of(listing, tag)
    try:
        if listing.source.layout is not None:
            layout = Layout.open(Path(listing.source.layout))
            return not any(entry_names_image(layout, entry) for entry in layout.find(tag))
        return origin in known or referrers_behind(skopeo, repository_in(origin), tag) is not None
    except LayerfarmError:
        return False
