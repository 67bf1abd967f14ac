"""The repositories of a catalog's images, and the order of their tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from layerfarm.jobs.image.documents import instant
from layerfarm.jobs.relayer.referrers import speaks_of_another

_NUMBER: Final = re.compile(r"([0-9]+)")
_VERSION: Final = re.compile(r"(?:^|[-_])(v?[0-9].*|latest)$", re.DOTALL)
_LATEST: Final = "latest"


def split_name(name: str) -> tuple[str, str]:
    """Return the repository of an image, and its tag there; either may be empty.

    A host that has one tag of a repository is assumed to pull the next. The tag follows the last colon. A layout has
    names without one: there the tag is the version at the end of the last component, so that ``base/web-1.0`` and
    ``base/web-1.1`` are tags of ``base/web``, and ``1.0`` and ``latest`` are tags of the repository "". A name without
    a version is a repository of its own.
    """
    path, slash, last = name.rpartition("/")
    before, colon, tag = last.rpartition(":")
    if colon:
        return f"{path}{slash}{before}", tag
    version = _VERSION.search(last)
    if version is None:
        return name, ""
    return f"{path}{slash}{last[: version.start()]}".rstrip("/"), version[1]


def repository_of(name: str) -> str:
    """Return the repository of an image, see :func:`split_name`."""
    return split_name(name)[0]


def by_repository(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the images of each repository, in the order given."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(repository_of(name), []).append(name)
    return found


def newest(repository: Iterable[str], count: int, asked: Collection[str] = ()) -> list[str]:
    """Return the last ``count`` images of one repository by the numbers in their tags, and those in ``asked``.

    A tag without a number, and one that begins with ``latest``, follows the newest version, or a branch; a digest has
    no number either. They are left out, unless they are in ``asked`` or the repository has no other tags.
    """
    ordered = sorted(repository, key=natural)
    versions = list(filter(_is_version, ordered))
    chosen = set((versions or ordered)[-count:]).union(set(ordered).difference(versions).intersection(asked))
    return [name for name in ordered if name in chosen]


def _is_version(name: str) -> bool:
    tag = split_name(name)[1]
    return _NUMBER.search(tag) is not None and not tag.startswith(_LATEST) and not speaks_of_another(tag)


def natural(text: str) -> tuple[str, str]:
    """Return a key that sorts 1.9 before 1.10. Different texts have different keys."""
    parts = _NUMBER.split(text)
    # Numbers are at the odd places; the longer one is larger.
    parts[1::2] = [chr(len(part)) + part for part in (part.lstrip("0") for part in parts[1::2])]
    return "\0".join(parts), text


def in_order(names: Iterable[str], created: Mapping[str, str | None], order: str) -> dict[str, list[str]]:
    """Return each repository's images in order of time, by creation or by name alone.

    ``created`` are times as in image configurations, RFC 3339 with any offset. A repository with an image whose time is
    missing or does not parse is ordered by name.
    """
    series = by_repository(sorted(names, key=natural))
    if order == "created":
        for repository in series.values():
            times = {name: instant(created.get(name) or "") for name in repository}
            if all(times.values()):
                repository.sort(key=lambda name: times[name] or (0, ""))
    return series
