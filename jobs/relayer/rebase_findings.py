"""A rebase under examination: its trees, the content of their files, and the findings against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from layerfarm.jobs.errors import display
from layerfarm.jobs.image.layers import Advanced, open_layer
from layerfarm.jobs.layer.stack import Source, Stack
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.tar.reader import MemberReader

LARGEST: Final = 256 << 20
"""Bytes of the largest examined file: it is held in memory."""


class Verdict(StrEnum):
    """The worst of all findings; each is worse than the one before."""

    SAFE = "safe"
    REVIEW = "review"
    """It will most likely run, but the findings should be reviewed."""
    REFUSE = "refuse"
    """Something that the image needs is missing."""

    @property
    def rank(self) -> int:
        return list(Verdict).index(self)


class Concern(NamedTuple):
    """One finding against the rebase."""

    verdict: Verdict
    path: bytes
    """The file concerned."""
    what: str

    def __str__(self) -> str:
        return f"{self.verdict}: {display(self.path)}: {self.what}"


@dataclass
class Examined:
    """All findings."""

    concerns: list[Concern] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    """Packages of the base that change: ``name old -> new``."""

    @property
    def verdict(self) -> Verdict:
        return max((concern.verdict for concern in self.concerns), key=lambda v: v.rank, default=Verdict.SAFE)


Layers = list[tuple[Layout, Descriptor, str]]
"""Layers of an image, lowest first, each with its layout and diff_id."""


@dataclass(frozen=True)
class Trees:
    """The four trees of a rebase, and the layers from which two of them are read."""

    old_base: Stack
    new_base: Stack
    image: Stack
    below: int
    """Number of layers of the old base; those above are the image's own."""
    rebased: Stack
    image_layers: Layers
    rebased_layers: Layers
    advanced: Advanced

    def read_image(self, wanted: Iterable[Source]) -> Iterator[tuple[Source, bytes]]:
        """Return the content of these files of the image, without those larger than :data:`LARGEST`."""
        return self._read(self.image_layers, wanted)

    def read_rebased(self, wanted: Iterable[Source]) -> Iterator[tuple[Source, bytes]]:
        """Return the content of these files of the rebased image."""
        return self._read(self.rebased_layers, wanted)

    def _read(self, layers: Layers, wanted: Iterable[Source]) -> Iterator[tuple[Source, bytes]]:
        by_layer: dict[int, dict[int, Source]] = {}
        for source in wanted:
            by_layer.setdefault(source.layer, {})[source.ordinal] = source
        for number, members in sorted(by_layer.items()):
            with open_layer(*layers[number - 1], self.advanced) as stream:
                reader = MemberReader(stream, limits())
                for ordinal, member in enumerate(reader):
                    if ordinal in members and member.size <= LARGEST:
                        yield members[ordinal], b"".join(reader.expanded(member))
