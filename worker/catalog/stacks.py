"""The different layers of a catalog, with the components of each and the number of images that share it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import NamedTuple

from layerfarm.jobs.relayer.planner.plan import Part
from layerfarm.jobs.relayer.rechunk import LayerToBe
from layerfarm.worker.catalog.costs import Holding
from layerfarm.worker.catalog.members import Member
from layerfarm.worker.catalog.planning import Joint


class ComponentRow(NamedTuple):
    """A component in a layer."""

    name: str
    """Its key and version."""
    bytes: int
    """Compressed bytes, estimated."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer, in any number of images."""

    digest: str
    """A planned layer has the digest of its future content."""
    bytes: int
    """Compressed bytes."""
    images: int
    """Number of images that have it."""
    name: str = ""
    """Name of its group in the plan."""
    components: tuple[ComponentRow, ...] = ()
    """Most bytes first; none if the image was not analyzed."""


class _Content(NamedTuple):
    name: str
    components: tuple[ComponentRow, ...]


def layer_rows(images: Mapping[str, Holding], joint: Joint | None, planned: Collection[str]) -> tuple[LayerRow, ...]:
    """Return the different layers of ``images``, most bytes first.

    ``planned``: those of the images that have the layers of the joint plan, made or predicted; the others of its images
    have their original layers.
    """
    holders: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    for holding in images.values():
        layers = {digest: each.blobs[digest] for each in holding.values() for digest in each.layers}
        holders.update(layers.keys())
        sizes |= layers
    contents = _contents(images, joint, planned) if joint is not None else {}
    rows = (LayerRow(digest, sizes[digest], count, *contents.get(digest, ())) for digest, count in holders.items())
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.digest)))


def _contents(images: Mapping[str, Holding], joint: Joint, planned: Collection[str]) -> dict[str, _Content]:
    found: dict[str, _Content] = {}
    for member, layers, platform in zip(joint.members, joint.layers, joint.platforms, strict=True):
        held = images[member.name].get(platform)
        if held is None:
            continue
        if member.name in planned:
            above = held.layers[member.analysis.keep :]
            if len(above) == len(layers) and not found.keys() >= set(above):
                _add_planned(found, member, above, layers)
        elif not found.keys() >= set(held.layers):
            _add_original(found, member, held.layers)
    return found


def _add_planned(
    found: dict[str, _Content], member: Member, digests: Iterable[str], layers: Iterable[LayerToBe]
) -> None:
    parts = {part.key: part for part in member.analysis.parts}
    for digest, layer in zip(digests, layers, strict=True):
        if digest not in found:
            found[digest] = _Content(layer.name, _components(parts[key] for key in layer.keys))


def _add_original(found: dict[str, _Content], member: Member, digests: tuple[str, ...]) -> None:
    by_layer: defaultdict[int, list[Part]] = defaultdict(list)
    for part in member.analysis.parts:
        by_layer[part.layer].append(part)
    for number, digest in enumerate(digests, 1):
        if digest not in found:
            found[digest] = _Content("", _components(by_layer[number]))


def _components(parts: Iterable[Part]) -> tuple[ComponentRow, ...]:
    rows = (ComponentRow(intern(f"{part.key} {part.version}".strip()), part.packed) for part in parts)
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.name)))
