"""The nouns of a rebase check: the trees that are looked at, what speaks against it, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from layerfarm.jobs.errors import display
from layerfarm.jobs.image import Resolved
from layerfarm.jobs.image.layers import Advanced, open_layer
from layerfarm.jobs.layer.stack import Source, Stack
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.tar.reader import MemberReader

LARGEST: Final = 256 << 20
"""Bytes of a file that is looked into: it is held in memory."""


class Verdict(StrEnum):
    """What the evidence comes to; each is worse than the one before."""

    SAFE = "safe"
    REVIEW = "review"
    """It will most likely run, but somebody should look at what is named."""
    REFUSE = "refuse"
    """Something that the image needs is not there any more."""

    @property
    def rank(self) -> int:
        return list(Verdict).index(self)


class Concern(NamedTuple):
    """One thing that speaks against it."""

    verdict: Verdict
    path: bytes
    """Of the file that is concerned."""
    what: str

    def __str__(self) -> str:
        return f"{self.verdict}: {display(self.path)}: {self.what}"


@dataclass
class Examined:
    """What was found."""

    concerns: list[Concern] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    """Packages of the base that change: ``name old -> new``."""

    @property
    def verdict(self) -> Verdict:
        return max((concern.verdict for concern in self.concerns), key=lambda v: v.rank, default=Verdict.SAFE)


@dataclass(frozen=True)
class Trees:
    """The four trees of a rebase."""

    old_base: Stack
    new_base: Stack
    image: Stack
    below: int
    """Layers of the old base; those above are the image's own."""
    rebased: Stack


class Contents:
    """Reads files out of the layers of the image and of the rebased one, those of at most :data:`LARGEST` bytes."""

    def __init__(
        self,
        layout: Layout,
        image: Resolved,
        new_layout: Layout,
        new_base: Resolved,
        below: int,
        advanced: Advanced,
    ) -> None:
        self._image = [(layout, *layer) for layer in image.layers]
        self._rebased = [*((new_layout, *layer) for layer in new_base.layers), *self._image[below:]]
        self._advanced = advanced
        self.section = image.config.config

    def of_image(self, wanted: Iterable[Source]) -> Iterator[tuple[Source, bytes]]:
        return self._read(self._image, wanted)

    def of_rebased(self, wanted: Iterable[Source]) -> Iterator[tuple[Source, bytes]]:
        return self._read(self._rebased, wanted)

    def _read(
        self, layers: list[tuple[Layout, Descriptor, str]], wanted: Iterable[Source]
    ) -> Iterator[tuple[Source, bytes]]:
        by_layer: dict[int, dict[int, Source]] = {}
        for source in wanted:
            by_layer.setdefault(source.layer, {})[source.ordinal] = source
        for number, members in sorted(by_layer.items()):
            with open_layer(*layers[number - 1], self._advanced) as stream:
                reader = MemberReader(stream, limits())
                for ordinal, member in enumerate(reader):
                    if ordinal in members and member.size <= LARGEST:
                        yield members[ordinal], b"".join(reader.expanded(member))
