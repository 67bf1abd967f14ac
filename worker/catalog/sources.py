"""Select the images of a catalog: their names, policies and order in time."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

from layerfarm.jobs.errors import CatalogError, InvalidReference, LayerfarmError
from layerfarm.jobs.relayer.referrers import speaks_of_another
from layerfarm.jobs.store import Layout, check_refname
from layerfarm.worker.catalog.document import DOCKER, CatalogFile, Source
from layerfarm.worker.catalog.offers import Origin, find, in_layout, in_registry
from layerfarm.worker.catalog.places import NEW, check_destination, repository_in
from layerfarm.worker.catalog.policies import Policy
from layerfarm.worker.catalog.registry import ImageReader
from layerfarm.worker.catalog.series import by_repository, natural, newest, repository_of, split_name
from layerfarm.worker.catalog.versions import VersionRange, parse_age


@dataclass(frozen=True)
class CatalogImage:
    """One image of a catalog, before it is fetched."""

    name: str
    """``REPOSITORY:TAG``, unique in the catalog, and its tag in the catalog's store."""
    origin: str
    """``docker://…`` or ``LAYOUT:TAG``."""
    registry: bool
    policy: Policy
    beside: tuple[str, ...] = ()
    """Tags of its repository that name referrers of images, sorted; for registries only."""
    platforms: tuple[str, ...] = ()
    """The only platforms that are used; empty: all."""
    newer_than: timedelta | None = None
    """Its age may not be greater."""

    @property
    def repository(self) -> str:
        return repository_of(self.name)

    @property
    def is_kept(self) -> bool:
        """Return True if its policy copies it unchanged."""
        return self.policy.do.transform == "keep"


@dataclass(frozen=True)
class Listing:
    """One repository of a registry, or a layout, and its tags."""

    source: Source
    repository: str
    """Empty for a layout."""
    tags: Sequence[str]
    images: Collection[str] = frozenset()
    """Those of its tags ``sha256-HEX`` that name images, not an index of referrers."""


class Place(NamedTuple):
    """A repository of a registry, or a layout, to be listed."""

    source: Source
    repository: str
    """Empty for a layout."""
    where: str
    """``docker://HOST/REPOSITORY``, or the path of the layout."""


def is_pattern(repository: str) -> bool:
    """Return True for a pattern of repositories: no name has these characters."""
    return any(character in repository for character in "*?[")


def place_in(source: Source, repository: str) -> Place:
    """Return the place of a repository in a registry."""
    assert source.registry is not None
    return Place(source, repository, f"{source.registry.rstrip('/')}/{repository.strip('/')}")


def places_of(source: Source, there: Iterable[str] = ()) -> list[Place]:
    """Return the places of a source; ``there``: the registry's repositories, if the source has patterns."""
    if source.layout is not None:
        return [Place(source, "", source.layout)]
    named = [name for name in source.repositories if not is_pattern(name)]
    patterns = [name for name in source.repositories if is_pattern(name)]
    return [place_in(source, name) for name in dict.fromkeys([*named, *(n for n in there if _matches(n, patterns))])]


def repository_from(source: Source, image: CatalogImage) -> str | None:
    """Return the repository of an image if a pattern of the source matches it. The registry may have moved."""
    repository = image.name.rpartition(":")[0].removeprefix(source.prefix + _path(source))
    matches = _matches(repository, filter(is_pattern, source.repositories))
    return repository if matches and source_at(source, repository) == source_of(image) else None


def source_for(catalog: CatalogFile, reference: str) -> Source | None:
    """Return the first source that has the repository of ``docker://HOST/…``, or is that registry."""
    repository = repository_in(reference)
    for source in catalog.sources:
        base = (source.registry or "").rstrip("/")
        name = repository.removeprefix(f"{base}/")
        if source.registry is not None and (
            reference.rstrip("/") == base
            or (repository.startswith(f"{base}/") and _matches(name, (each.strip("/") for each in source.repositories)))
        ):
            return source
    return None


Refused = Callable[[str, LayerfarmError], None]
"""Called with the origin of an image that is left out, and the reason."""


def _not_allowed(origin: str, error: LayerfarmError) -> None:
    raise error


def select(catalog: CatalogFile, listings: Iterable[Listing], refused: Refused = _not_allowed) -> list[CatalogImage]:
    """Return the images of the catalog, sorted by repository and then by the numbers in their tags.

    An image whose name cannot be a tag is left out, and reported to ``refused``.

    Raises:
        InvalidReference: a name cannot be a tag, and there is no ``refused``.
        CatalogError: two sources give one name, or a new image would replace an original.
    """
    chosen: dict[str, CatalogImage] = {}
    for listing in listings:
        for image in _of(catalog, listing, refused):
            other = chosen.setdefault(image.name, image)
            if other.origin != image.origin:
                raise CatalogError(
                    f"two images have one name, {other.origin} and {image.origin}",
                    where=image.name,
                    hint="set a prefix for one of the sources",
                )
    check_destination(catalog, {image.name: image.origin for image in chosen.values()})
    return sorted(chosen.values(), key=lambda image: (image.repository, natural(image.name)))


def _of(catalog: CatalogFile, listing: Listing, refused: Refused) -> Iterable[CatalogImage]:
    source = listing.source
    beside = tuple(sorted(tag for tag in listing.tags if speaks_of_another(tag) and tag not in listing.images))
    age = None if source.newer_than is None else parse_age(source.newer_than)
    names = {
        name_of(source, listing.repository, tag): tag
        for tag in set(listing.tags).difference(beside)
        if is_wanted(source, tag) and not (tag.startswith(NEW) and _is_store(catalog, source))
    }
    for name in _newest(source, names) if source.newest else names:
        policy = policy_for(catalog, name)
        if policy is None:
            continue
        origin = origin_of(listing, names[name])
        try:
            check_refname(name)
        except InvalidReference as error:
            refused(origin, error)
        else:
            yield CatalogImage(name, origin, source.registry is not None, policy, beside, source.platforms, age)


def _newest(source: Source, names: Mapping[str, str]) -> Iterable[str]:
    """Yield the images of the newest tags of each repository; ``names``: their tags by their names."""
    assert source.newest is not None
    asked = {name for name, tag in names.items() if tag in source.tags}
    for repository in by_repository(names).values():
        yield from newest(repository, source.newest, asked)


def open_origin(image: CatalogImage, reader: ImageReader) -> Origin:
    """Return the image at its origin; ``reader``: of registries. Raises as :meth:`Origin.offer`."""
    if image.registry:
        return in_registry(reader, image.origin)
    path, _, name = image.origin.partition(":")
    layout = Layout.open(Path(path))
    return in_layout(layout, find(layout, name))


def source_of(image: CatalogImage) -> str:
    """Return the start of the names of all images from the same repository or layout as the image.

    A registry may have moved to another host since the last run.
    """
    return image.name.rpartition(":")[0] + ":" if image.registry else image.origin.partition(":")[0]


def source_at(source: Source, repository: str) -> str:
    """Return :func:`source_of` of all images of a source's repository, or layout."""
    return _clean(source.layout) if source.layout is not None else _start(source, repository)


def name_of(source: Source, repository: str, tag: str) -> str:
    """Return the name in the catalog of an image of a registry, or of a layout."""
    return _start(source, repository) + tag


def _start(source: Source, repository: str) -> str:
    """Return the part of the images' names before the tag."""
    return source.prefix + (f"{_path(source)}{repository}:" if source.registry else "")


def repository_below(source: Source, path: str) -> str | None:
    """Return the repository of a source whose path in the registry is ``path``; None: the source does not name it."""
    if source.registry is None or not path.startswith(_path(source)):
        return None
    below = path.removeprefix(_path(source))
    named = next((name for name in source.repositories if name.strip("/") == below), None)
    return named or (below if _matches(below, filter(is_pattern, source.repositories)) else None)


def policy_for(catalog: CatalogFile, name: str) -> Policy | None:
    """Return the policy of the image ``REPOSITORY:TAG``; None: it is left out."""
    return next((policy for policy in catalog.policies if _matches(name, policy.match)), None)


def _is_store(catalog: CatalogFile, source: Source) -> bool:
    """Return True for the store as a source: its new images are not originals of the catalog."""
    return source.layout is not None and os.path.realpath(source.layout) == os.path.realpath(catalog.store)


def is_wanted(source: Source, tag: str) -> bool:
    """Return True if the patterns and the range of versions of the source select the tag, or name of a layout."""
    version = tag if source.layout is None else split_name(tag)[1]
    return (
        _matches(tag, source.tags)
        and not _matches(tag, source.exclude)
        and (source.semver is None or version in _range(source.semver))
    )


_range = cache(VersionRange)


@cache
def _clean(path: str) -> str:
    return str(Path(path))


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _path(source: Source) -> str:
    """Return the path of a registry's prefix, without the host: names stay the same if the registry moves."""
    assert source.registry is not None
    _, _, path = source.registry.removeprefix(DOCKER).strip("/").partition("/")
    return f"{path}/" if path else ""


def origin_of(listing: Listing, tag: str) -> str:
    """Return ``docker://…`` or ``LAYOUT:TAG``."""
    layout = listing.source.layout
    where = _clean(layout) if layout is not None else place_in(listing.source, listing.repository).where
    return f"{where}:{tag}"
