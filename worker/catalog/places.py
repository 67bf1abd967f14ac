"""The places of images: where new ones are published, and whether an original is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import CatalogError
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import DOCKER, CatalogFile, Destination
from layerfarm.worker.catalog.names import check_names, published_name

NEW: Final = "new/"
"""Prefix of new images' tags in the catalog's own store, where the originals have the plain names."""
_DOCKER_HUB: Final = ("docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")


def target_of(store: Path, destination: Destination, name: str) -> ImageRef:
    """Return the reference of the new image ``name``: in the destination's layout, else in the catalog's store."""
    if destination.layout is not None:
        return ImageRef(store=Path(destination.layout), tag=published_name(destination, name))
    return ImageRef(store=store, tag=f"{NEW}{name}")


def place_of(destination: Destination, name: str) -> str | None:
    """Return ``docker://…`` or ``LAYOUT:TAG`` of the new image ``name``; None: it stays in the catalog's store."""
    if destination.registry is not None:
        return reference_at(destination, name)
    return None if destination.layout is None else f"{Path(destination.layout)}:{published_name(destination, name)}"


def reference_at(destination: Destination, name: str) -> str:
    """Return ``docker://HOST/REPOSITORY:TAG`` of the new image ``name`` in the destination's registry."""
    assert destination.registry is not None
    return f"{destination.registry.rstrip('/')}/{published_name(destination, name)}"


def repository_at(destination: Destination, name: str) -> str:
    """Return the repository of :func:`reference_at`."""
    return repository_in(reference_at(destination, name))


def repository_in(reference: str) -> str:
    """Return the repository of ``docker://HOST[:PORT]/REPOSITORY``, which a tag or digest may follow."""
    path, slash, last = reference.partition("@")[0].rpartition("/")
    return path + slash + last.partition(":")[0]


def is_replaced(destination: Destination, name: str, origin: str) -> bool:
    """Return True if the new image ``name`` replaces its original."""
    place = place_of(destination, name)
    return place is not None and _address(place, os.path.realpath) == _address(origin, os.path.realpath)


def check_destination(catalog: CatalogFile, origins: Mapping[str, str]) -> None:
    """Refuse a destination in which new images would replace others; ``origins``: places of the originals, by name.

    Raises:
        CatalogError: two new images get one name; an original would be replaced, which the catalog does not request; or
            the destination is the store, where the originals have the names of the new images.
    """
    destination = catalog.destination
    if destination.registry is not None or destination.layout is not None:
        check_names(destination, origins)
    real = cache(os.path.realpath)
    if destination.layout is not None and real(destination.layout) == real(catalog.store):
        raise CatalogError(
            "the destination is the store, which has the originals under the same names",
            where=destination.layout,
            hint="without a destination the new images stay in the store as new/NAME",
        )
    if destination.replace:
        return
    originals = {_address(origin, real): origin for origin in origins.values()}
    for name in sorted(origins):
        place = place_of(destination, name)
        if place is not None and (original := originals.get(_address(place, real))) is not None:
            raise CatalogError(
                f"the new image would replace the original {original}",
                where=name,
                hint="set another destination, a prefix for the source, or destination: {replace: true}",
            )


def _address(place: str, real: Callable[[str], str]) -> str:
    """Return a place in canonical form, whichever name of the registry or directory is used."""
    if not place.startswith(DOCKER):
        path, _, tag = place.partition(":")
        return f"{real(path)}:{tag}"
    host, _, path = place.removeprefix(DOCKER).partition("/")
    host = host.lower().removesuffix(":443")
    if host in _DOCKER_HUB:
        host, path = _DOCKER_HUB[0], path if "/" in path else f"library/{path}"
    return f"{DOCKER}{host}/{path}"


def layout_at(path: Path) -> Layout:
    """Return the layout at ``path``, created if missing."""
    return Layout.open(path) if path.exists() else Layout.create(path)
