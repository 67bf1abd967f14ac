"""Run a part of a catalog: the images of given names, by the steps of a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerfarm.jobs.errors import CatalogError
from layerfarm.worker.catalog.discovery import Found, discover
from layerfarm.worker.catalog.document import CatalogFile, Source
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.places import check_destination, repository_in
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.sources import CatalogImage, places_of, repository_below, source_at, source_of
from layerfarm.worker.catalog.state import LastRun


@dataclass(frozen=True)
class Names:
    """Names of images in a catalog, ``REPOSITORY:TAG``, or ``REPOSITORY:*`` for all of a repository."""

    given: frozenset[str]

    def __contains__(self, name: str) -> bool:
        return name in self.given or whole_repository(name) in self.given

    @property
    def repositories(self) -> set[str]:
        return {name.rpartition(":")[0] for name in self.given}


def whole_repository(name: str) -> str:
    """Return ``REPOSITORY:*`` of the image ``REPOSITORY:TAG``."""
    return f"{name.rpartition(':')[0]}:*"


def restricted(catalog: CatalogFile, names: Names) -> CatalogFile:
    """Return the catalog with only the repositories of registries that hold images of these names."""
    sources = (
        source.model_copy(update={"repositories": found})
        for source in catalog.sources
        if (found := _repositories(source, names))
    )
    return catalog.model_copy(update={"sources": tuple(sources)})


def _repositories(source: Source, names: Names) -> tuple[str, ...]:
    paths = (name.removeprefix(source.prefix) for name in sorted(names.repositories) if name.startswith(source.prefix))
    return tuple(found for path in paths if (found := repository_below(source, path)) is not None)


def discover_part(
    catalog: CatalogFile,
    skopeo: Skopeo,
    reader: Known,
    known: Sequence[CatalogImage],
    last: LastRun,
    names: Names | None,
) -> Found:
    """Discover the images of these names, or all for None; the other images of the last run are kept.

    Only the repositories of these images are listed. ``last``: the record of the last run; for the others as
    :func:`~layerfarm.worker.catalog.discovery.discover`.

    Raises:
        CatalogError: an image has the name of one from another source, or would replace an original.
    """
    if names is None:
        return discover(catalog, skopeo, reader, known, last.referrers)
    part = restricted(catalog, names)
    places = [place for source in part.sources for place in places_of(source)]
    starts = {source_at(source, repository) for source, repository, _ in places}
    within = [image for image in known if source_of(image) in starts]
    others = {image.name: image for image in known if source_of(image) not in starts}
    found = discover(part, skopeo, reader, within, last.referrers, may_be_empty=True)
    for image in found.listed:
        if image.name in others:
            other = others[image.name].origin
            raise CatalogError(f"two images have one name, {image.origin} and {other}", where=image.name)
    check_destination(catalog, {image.name: image.origin for image in (*others.values(), *found.listed)})
    before = {image.name for image in within}
    rest = [image for image in found.listed if image.name not in names and image.name in before]
    read = {where for _, _, where in places}
    return Found(
        listed=[image for image in found.listed if image.name in names],
        kept=[*rest, *found.kept, *others.values()],
        missed=[
            *(one for one in last.missed if repository_in(one.where) not in read),
            *found.missed,
        ],
        notices=found.notices,
        referrers=found.referrers | {one for one in last.referrers if repository_in(one) not in read},
    )
