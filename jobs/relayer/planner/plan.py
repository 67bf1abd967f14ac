"""A plan: the components that share a layer, for a whole catalog. Pure data; a JSON document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from layerfarm.jobs.errors import MalformedPlan
from layerfarm.jobs.store.validation import first_error

DEFAULT_BUDGET = 64
MOST_LAYERS = 120
"""Docker's overlay2 fails at 122 to 127 layers (relayer.md 2.7)."""
VERSION = 1
_FILLED = 0.9
"""Part of the largest layer that is filled: sizes are estimated."""


class Part(NamedTuple):
    """One component as one image holds it."""

    key: str
    source: str
    """Components of one source change together; empty: the key itself."""
    digest: str
    """Digest of paths, metadata, content and links: equal parts give equal bytes in a layer."""
    size: int
    """Bytes of content."""
    packed: int
    """Compressed bytes in a layer, estimated."""
    files: int = 1
    kind: str = ""
    version: str = ""
    layer: int = 0
    """Number, from 1, of the lowest layer of the old image with a file of it; 0: unknown."""


class Snapshot(NamedTuple):
    """One image of the catalog: one tag of a repository."""

    line: str
    """The repository (and the platform), whose tags hosts pull one after the other."""
    when: int
    """Position in the line's history; the next tag is the next higher one."""
    tag: str
    parts: tuple[Part, ...]
    room: int
    """Layers available for its parts."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Group(_Model):
    """Components that share a layer in every image that holds some of them."""

    name: str
    components: tuple[str, ...]
    """Keys, sorted."""


class Prediction(_Model):
    """The cost of a plan for its images, in estimated compressed bytes."""

    images: int
    layers_most: int
    stored: int
    """Every different layer once."""
    pulled: int
    """Sum over all tags: the layers that a host with the preceding tag lacks."""
    components: int
    """The lower bound: every version of every component stored once."""


class Plan(_Model):
    """A partition of components, the same for all images of the catalog."""

    version: Literal[1] = 1
    groups: tuple[Group, ...]
    spare: int = 4
    """Layers of an image for components that are not in the plan."""
    largest: int | None = None
    """Bytes that no layer may exceed; None: no limit. Layers of more estimated bytes are split."""
    prediction: Prediction | None = None

    @model_validator(mode="after")
    def _is_partition(self) -> Plan:
        keys = [key for group in self.groups for key in group.components]
        if len(set(keys)) != len(keys):
            raise ValueError("a component is in two groups")
        if len({group.name for group in self.groups}) != len(self.groups):
            raise ValueError("two groups have one name")
        return self

    def encode(self) -> bytes:
        """Return the JSON document; equal plans give equal bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @property
    def digest(self) -> str:
        """Return the ``sha256:`` digest of the partition alone."""
        rows = "\n".join(f"{group.name}\0{chr(0).join(group.components)}" for group in self.groups)
        return f"sha256:{hashlib.sha256(rows.encode('utf-8', 'surrogatepass')).hexdigest()}"


def parse_plan(content: bytes, where: str) -> Plan:
    """Parse a plan.

    Raises:
        MalformedPlan: it does not parse, is of another version, or is not a partition.
    """
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        raise MalformedPlan(first_error(error, "plan"), where=where) from error


@dataclass(frozen=True)
class Chunk:
    """One future layer: the components of a group that one image holds."""

    name: str
    parts: tuple[Part, ...]
    """Sorted by key."""

    @cached_property
    def digest(self) -> str:
        """Return the digest of its parts' digests: equal chunks become equal layers."""
        return hashlib.sha256("\n".join(part.digest for part in self.parts).encode()).hexdigest()

    @cached_property
    def packed(self) -> int:
        return sum(part.packed for part in self.parts)


class Divider:
    """Divides images by one plan, whose index is made once; images with equal chunks share them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._group_of = {key: number for number, group in enumerate(plan.groups) for key in group.components}
        self._chunks: dict[tuple[str, tuple[Part, ...]], Chunk] = {}

    def divide(self, parts: Sequence[Part], room: int) -> list[Chunk]:
        """Return the layers of one image: every part in exactly one, at most ``room`` of them, in a fixed order.

        Components that are not in the plan go to spare layers, chosen by their names, so that no other layer changes.
        An image that is not in the plan may have parts of more groups than room: the smallest layers are then
        merged. A layer that would be too large is split between its components; where that is not possible, or the room
        does not suffice, it stays too large.
        """
        assert room >= 1
        known: dict[int, list[Part]] = {}
        strange: list[Part] = []
        for part in parts:
            number = self._group_of.get(part.key)
            if number is None:
                strange.append(part)
            else:
                known.setdefault(number, []).append(part)
        chunks = [self._chunk(self.plan.groups[number].name, members) for number, members in sorted(known.items())]
        slots = max(1, min(self.plan.spare, room - len(chunks)))
        spare: dict[int, list[Part]] = {}
        for part in strange:
            spare.setdefault(_slot(part.source or part.key, slots), []).append(part)
        chunks += [self._chunk(f"new {slot + 1}", members) for slot, members in sorted(spare.items())]
        if self.plan.largest is not None:
            chunks = [piece for chunk in chunks for piece in self._split(chunk, self.plan.largest * _FILLED)]
        while len(chunks) > room:
            chunks = self._joined(chunks)
        return chunks

    def _chunk(self, name: str, parts: Iterable[Part]) -> Chunk:
        ordered = tuple(sorted(parts))
        return self._chunks.setdefault((name, ordered), Chunk(name, ordered))

    def _split(self, chunk: Chunk, most: float) -> list[Chunk]:
        """Split a layer of more than ``most`` bytes between its parts, in their order."""
        if chunk.packed <= most:
            return [chunk]
        pieces: list[list[Part]] = [[]]
        filled = 0
        for part in chunk.parts:
            if pieces[-1] and filled + part.packed > most:
                pieces.append([])
                filled = 0
            pieces[-1].append(part)
            filled += part.packed
        return [self._chunk(f"{chunk.name} ({number + 1})", parts) for number, parts in enumerate(pieces)]

    def _joined(self, chunks: list[Chunk]) -> list[Chunk]:
        first, second = sorted(sorted(range(len(chunks)), key=lambda at: (chunks[at].packed, at))[:2])
        merged = self._chunk(chunks[first].name, (*chunks[first].parts, *chunks[second].parts))
        return [merged if at == first else chunk for at, chunk in enumerate(chunks) if at != second]


def _slot(name: str, slots: int) -> int:
    """Choose a slot by rendezvous hashing: with one slot less only the components in it move."""
    return max(
        range(slots), key=lambda slot: hashlib.sha256(f"{slot}\0{name}".encode("utf-8", "surrogatepass")).digest()
    )
