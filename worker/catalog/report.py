"""What a catalog's images cost, before and after, as predicted and as it came: pure arithmetic on blobs.

*Stored* bytes are those of all different blobs. A *pull* is what a host that has one tag of a repository must
fetch for the next one: the blobs of the next that the first does not have. Both count layers and configurations,
compressed, as a registry holds them and a client fetches them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from layerfarm.worker.catalog.sources import repository_of

Blobs = Mapping[str, int]
"""Blobs of one image: digest, or what stands for one in a plan, and bytes."""


class Holding(NamedTuple):
    """What one image consists of, all platforms of an index together."""

    layers: Blobs
    configs: Blobs = {}

    @property
    def blobs(self) -> dict[str, int]:
        return {**self.layers, **self.configs}


LONGEST_LIST: Final = 40
"""Rows of the lists of what is shared by whom, and of duplicates."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageRow(_Row):
    """One image. What is None is not known: not planned, not done, no tag before it."""

    name: str
    state: str
    """``done``, ``failed``, ``pending`` or ``planned``."""
    error: str | None = None
    policy: str = ""
    old: str = ""
    """Digest of the image as it was."""
    new: str | None = None
    proof: str | None = None
    layers_before: int
    layers_planned: int | None = None
    layers_after: int | None = None
    bytes_before: int
    bytes_after: int | None = None
    pull_before: int | None = None
    """Bytes to fetch for a host that has the repository's preceding tag."""
    pull_planned: int | None = None
    pull_after: int | None = None
    warnings: tuple[str, ...] = ()
    """What speaks of the old image and was not carried over, and why; what an analysis found broken."""


class SharedRow(_Row):
    """The layers that exactly these images have."""

    images: tuple[str, ...]
    layers: int
    bytes: int


class DuplicateRow(_Row):
    """One content that lies in several layers."""

    what: str
    bytes: int
    """Of one copy, uncompressed."""
    before: int
    """Layers that hold it."""
    after: int | None = None


class Totals(_Row):
    """The catalog in one state."""

    images: int
    layers: int
    """Different ones."""
    stored: int
    """Bytes of all different blobs."""
    pulled: int
    """Bytes of all pulls from one tag to the next."""
    pulls: int


class Report(_Row):
    """A catalog's costs. ``after`` counts an image that is not done, or failed, as it was."""

    catalog: str
    before: Totals
    planned: Totals | None = None
    after: Totals | None = None
    images: tuple[ImageRow, ...]
    shared_before: tuple[SharedRow, ...] = ()
    shared_after: tuple[SharedRow, ...] = ()
    duplicates: tuple[DuplicateRow, ...] = ()

    @property
    def failed(self) -> int:
        return sum(image.state == "failed" for image in self.images)

    @property
    def warned(self) -> int:
        """How many warnings there are."""
        return sum(len(image.warnings) for image in self.images)


def totals(images: Mapping[str, Holding], series: Iterable[Sequence[str]]) -> Totals:
    """The costs of images whose repositories have the tags of ``series``, in order of time."""
    layers: dict[str, int] = {}
    blobs: dict[str, int] = {}
    for held in images.values():
        layers |= held.layers
        blobs |= held.blobs
    costs = [cost for cost in pulls(images, series).values() if cost is not None]
    return Totals(
        images=len(images), layers=len(layers), stored=sum(blobs.values()), pulled=sum(costs), pulls=len(costs)
    )


def pulls(images: Mapping[str, Holding], series: Iterable[Sequence[str]]) -> dict[str, int | None]:
    """By image, the bytes of its pull for a host that has the preceding tag; None for the first one."""
    costs: dict[str, int | None] = {}
    for repository in series:
        before: Holding | None = None
        for name in repository:
            if name in images:
                costs[name] = None if before is None else missing(images[name].blobs, before.blobs)
                before = images[name]
    return costs


def missing(wanted: Blobs, there: Blobs) -> int:
    """Bytes of ``wanted`` that are not ``there``."""
    return sum(size for digest, size in wanted.items() if digest not in there)


def shared(images: Mapping[str, Holding]) -> tuple[SharedRow, ...]:
    """Which bytes are shared by whom: the layers by the exact set of images that have them, most bytes first."""
    holders: defaultdict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for name in sorted(images):
        for digest, size in images[name].layers.items():
            holders[digest].append(name)
            sizes[digest] = size
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for digest, names in holders.items():
        groups[tuple(names)].append(sizes[digest])
    rows = [SharedRow(images=names, layers=len(found), bytes=sum(found)) for names, found in groups.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.images))[:LONGEST_LIST])


def percent(part: int, whole: int) -> str:
    """``part`` of ``whole`` for human eyes; nothing of nothing is all of it."""
    return f"{100 * part / whole:.1f} %" if whole else "100.0 %"


def size_text(count: int | None) -> str:
    """Bytes for human eyes, in powers of 1000."""
    if count is None:
        return "-"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} B"


def by_repository(images: Iterable[ImageRow]) -> dict[str, list[ImageRow]]:
    """The rows of each repository, in the order given."""
    found: dict[str, list[ImageRow]] = {}
    for image in images:
        found.setdefault(repository_of(image.name), []).append(image)
    return found
