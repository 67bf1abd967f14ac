"""Names of images at the destination: a prefix less, a suffix more, or a template."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from layerfarm.jobs.errors import CatalogError, InvalidReference
from layerfarm.jobs.store import check_refname
from layerfarm.worker.catalog.document import Destination
from layerfarm.worker.catalog.series import split_name

_LATEST: Final = "latest"
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
"""Between two slashes of a repository."""


def published_name(destination: Destination, name: str) -> str:
    """Return the name at the destination of the image ``name`` of the catalog.

    In a registry it always has a tag: a layout's image whose name has none gets ``latest``.
    """
    name = name.removeprefix(destination.strip_prefix)
    if destination.name is not None:
        repository, tag = split_name(name)
        fields = {"repository": repository, "basename": repository.rpartition("/")[2], "tag": tag or _LATEST}
        name = destination.name.format_map(fields)
    if destination.registry is not None and ":" not in name.rpartition("/")[2]:
        name = f"{name}:{_LATEST}"
    return f"{name}{destination.tag_suffix}"


def check_names(destination: Destination, names: Iterable[str]) -> None:
    """Check the names of all images at the destination.

    Raises:
        CatalogError: two images get one name, or one gets a name that the destination does not allow.
    """
    renames = destination.strip_prefix or destination.name is not None or destination.tag_suffix
    taken: dict[str, str] = {}
    for name in sorted(names):
        published = published_name(destination, name)
        if (other := taken.setdefault(published, name)) != name:
            raise CatalogError(
                f"two images get the name {published} at the destination, {other} and {name}",
                where=name,
                hint="change strip-prefix, tag-suffix or name of the destination",
            )
        if renames and not _is_allowed(destination, published):
            raise CatalogError(f"not a valid name at the destination: {published!r}", where=name)


def _is_allowed(destination: Destination, name: str) -> bool:
    try:
        check_refname(name)
    except InvalidReference:
        return False
    if destination.registry is None:
        return True
    repository, _, tag = name.rpartition(":")
    return is_in_registry(repository, tag)


def is_in_registry(repository: str, tag: str) -> bool:
    """Return True if a registry can have these names (distribution-spec "Pulling manifests")."""
    return _TAG.fullmatch(tag) is not None and all(map(_COMPONENT.fullmatch, repository.split("/")))
