"""Plots of a report, as numbers for SVG: the pulls of a repository over its tags, and the components of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import floor, log10
from typing import Final, NamedTuple

from layerfarm.worker.catalog.quantities import size_text
from layerfarm.worker.catalog.report import ImageRow
from layerfarm.worker.catalog.series import split_name
from layerfarm.worker.catalog.stacks import ComponentRow, LayerRow

WIDTH: Final = 360
HEIGHT: Final = 190
LEFT: Final = 76
RIGHT: Final = 348
_TOP: Final = 12
_BOTTOM: Final = 158
MOST_TAGS: Final = 40
"""Tags of one plot, the newest."""
_LABEL: Final = 16
"""Characters of a tag below the plot."""
_SEGMENTS: Final = 5
"""Components of a layer that have a segment each."""
BAR: Final = 1000
"""Width of the longest bar."""


class Line(NamedTuple):
    """One way to pull."""

    kind: str
    """Its class in the style sheet, and its marker."""
    label: str
    points: tuple[tuple[float, float], ...]
    summary: str
    """Its numbers, as text."""

    @property
    def path(self) -> str:
        """Return the points as SVG writes them."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)


class Label(NamedTuple):
    """A text at an axis."""

    at: float
    text: str
    anchor: str = "end"


class Plot(NamedTuple):
    """The pulls of a repository."""

    lines: tuple[Line, ...]
    sizes: tuple[Label, ...]
    tags: tuple[Label, ...]
    shown: int
    """Number of tags shown."""
    total: int
    """Number of tags that have a preceding one."""


_KINDS: Final[tuple[tuple[str, str, Callable[[ImageRow], int | None]], ...]] = (
    ("before", "whole layers, before", lambda row: row.pull_before),
    ("part-before", "in part, before", lambda row: row.pull_in_part_before),
    ("planned", "whole layers, predicted", lambda row: row.pull_planned),
    ("after", "whole layers, now", lambda row: row.pull_after),
    ("part-after", "in part, now", lambda row: row.pull_in_part_after),
)


def plot_of(images: Sequence[ImageRow]) -> Plot | None:
    """Return the plot of one repository's tags, in order of time; None: there is only one pull, or none."""
    pulled = [image for image in images if image.pull_before is not None]
    shown = pulled[-MOST_TAGS:]
    if len(shown) < 2:
        return None
    kinds = [(kind, label, [value(row) for row in shown]) for kind, label, value in _KINDS]
    known = [(kind, label, values) for kind, label, values in kinds if any(value is not None for value in values)]
    if any(kind == "after" for kind, _, _ in known):
        known = [each for each in known if each[0] != "planned"]
    top = _rounded(max(value or 0 for _, _, values in known for value in values))
    step = (RIGHT - LEFT) / (len(shown) - 1)
    lines = tuple(_line(kind, label, values, step, top) for kind, label, values in known)
    sizes = tuple(Label(_y(size, top), size_text(size)) for size in (0, top // 2, top))
    return Plot(lines, sizes, tuple(_tags(shown, step)), len(shown), len(pulled))


def _line(kind: str, label: str, values: Sequence[int | None], step: float, top: int) -> Line:
    points = tuple(
        (round(LEFT + number * step, 1), _y(value, top)) for number, value in enumerate(values) if value is not None
    )
    known = [value for value in values if value is not None]
    summary = f"{size_text(min(known))} to {size_text(max(known))}, newest tag {size_text(known[-1])}"
    return Line(kind, label, points, summary)


def _y(size: int, top: int) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * size / top, 1)


def _tags(images: Sequence[ImageRow], step: float) -> Iterator[Label]:
    tags = [split_name(image.name)[1] or image.name for image in images]
    yield Label(LEFT, _short(tags[0]), "start")
    yield Label(round(LEFT + (len(tags) - 1) * step, 1), _short(tags[-1]), "end")


def _short(tag: str) -> str:
    return tag if len(tag) <= _LABEL else f"{tag[: _LABEL - 1]}…"


def _rounded(size: int) -> int:
    """Return the next higher 1, 2 or 5 times a power of ten."""
    power = 10 ** floor(log10(max(size, 1)))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size)) * (1 if size else 2)


class Segment(NamedTuple):
    """A component in the bar of a layer."""

    number: int
    """From 1; 0: all others together."""
    start: float
    width: float
    name: str
    bytes: int


def segments_of(layer: LayerRow, most: int) -> list[Segment]:
    """Return the bar of a layer, scaled so that a layer of ``most`` bytes is :data:`BAR` wide."""
    first, others = layer.components[:_SEGMENTS], layer.components[_SEGMENTS:]
    rest = ComponentRow(f"{len(others):,} more", sum(each.bytes for each in others))
    shown = [(number, each) for number, each in enumerate(first, 1)] + ([(0, rest)] if others else [])
    estimated = sum(each.bytes for _, each in shown)
    width = BAR * layer.bytes / max(most, 1)
    segments, start = [], 0.0
    for number, each in shown:
        share = width * each.bytes / max(estimated, 1)
        segments.append(Segment(number, round(start, 1), round(share, 1), each.name, each.bytes))
        start += share
    return segments or [Segment(0, 0, round(width, 1), "", layer.bytes)]
