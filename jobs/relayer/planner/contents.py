"""Sets of images, and the contents of a cluster: which images have which, and their bytes.

A set of images is one integer with a bit for each: 625 bytes for 5,000 images; a union or an intersection takes
0.1 us. Few contents are such sets. A popular cluster has thousands, as many as there are combinations of versions: sets
of them would take time and memory that grow with the square of the catalog, so each image has a number instead.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, compress, repeat
from typing import Final

Columns = int
"""A set of images."""

FEW = 12
"""Contents that are kept as sets: comparing all pairs of those of two clusters is faster than reading their images."""
_SPREAD: Final = 256
"""Contents that are indexed by image: those of one image are compared again and again."""
_BITS: Final = bytes.maketrans(b"01", b"\0\1")


@dataclass(frozen=True, eq=False)
class Contents:
    """The different contents of a cluster; each owner has one. Equal only to itself."""

    owners: Columns
    sizes: tuple[int, ...]
    """Bytes of each."""
    sets: tuple[Columns, ...] = ()
    """The images that have each; empty if there are many."""
    numbers: array[int] | None = None
    """The content of each owner, by its position in ``sizes``; only if there are many."""

    @classmethod
    def of(cls, held: Iterable[tuple[Columns, int]]) -> Contents:
        """Return the contents, given the images that have each and its bytes. No image has two."""
        sets, sizes = zip(*held, strict=True)
        owners = 0
        for columns in sets:
            owners |= columns
        if len(sets) <= FEW:
            return cls(owners, sizes, sets)
        by_column = sorted((column, number) for number, columns in enumerate(sets) for column in bits(columns))
        return cls(owners, sizes, numbers=array("I", (number for _, number in by_column)))

    def bytes_in(self, columns: Columns) -> int:
        """Return the bytes that these images have, each counted by itself."""
        if self.numbers is None:
            return sum(size * (each & columns).bit_count() for each, size in zip(self.sets, self.sizes, strict=True))
        index = _index(self)
        return sum(map(self.sizes.__getitem__, map(index.__getitem__, bits(columns & self.owners))))

    def among(self, columns: Columns) -> set[int]:
        """Return the different contents of these images, by number."""
        if self.numbers is None:
            return {number for number, each in enumerate(self.sets) if each & columns}
        return set(map(_index(self).__getitem__, bits(columns & self.owners)))

    def pairs(self, other: Contents, columns: Columns) -> set[tuple[int, int]]:
        """Return the different combinations with the contents of ``other`` in these images, owned by both."""
        numbers = bits(columns)
        return set(zip(map(_index(self).__getitem__, numbers), map(_index(other).__getitem__, numbers), strict=True))

    def crossed(self, other: Contents) -> Contents:
        """Return the contents of both as one: each combination in an image, and those without a counterpart."""
        if self.sets and other.sets:
            return Contents.of(self.combined(other))
        owners = self.owners | other.owners
        numbers, nothing = bits(owners), repeat(-1)
        pairs = list(
            zip(map(_index(self).get, numbers, nothing), map(_index(other).get, numbers, nothing), strict=True)
        )
        place = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        ours, theirs = (*self.sizes, 0), (*other.sizes, 0)  # the last is that of no content
        sizes = tuple(ours[mine] + theirs[its] for mine, its in place)
        return Contents(owners, sizes, numbers=array("I", map(place.__getitem__, pairs)))

    def combined(self, other: Contents) -> list[tuple[Columns, int]]:
        """Return :meth:`crossed` of few contents and few others, as sets."""
        found: list[tuple[Columns, int]] = []
        theirs = tuple(zip(other.sets, other.sizes, strict=True))
        for columns, size in zip(self.sets, self.sizes, strict=True):
            both = columns & other.owners
            if both != columns:
                found.append((columns ^ both, size))
            if both:
                found += [(common, size + more) for each, more in theirs if (common := both & each)]
        if other.owners & ~self.owners:
            found += [(alone, size) for columns, size in theirs if (alone := columns & ~self.owners)]
        return found


@lru_cache(maxsize=_SPREAD)
def _index(contents: Contents) -> dict[int, int]:
    """Return the number of the content of each owner."""
    if contents.numbers is not None:
        return dict(zip(bits(contents.owners), contents.numbers, strict=True))
    return dict(chain.from_iterable(zip(bits(columns), repeat(at)) for at, columns in enumerate(contents.sets)))


def bits(columns: Columns) -> list[int]:
    """Return the numbers of the bits that are set, lowest first."""
    length = columns.bit_length()
    if columns.bit_count() * 24 < length:
        found: list[int] = []
        while columns:
            low = columns & -columns
            found.append(low.bit_length() - 1)
            columns ^= low
        return found
    # A large set is read digit by digit: taking each bit from all of it would grow with the square of the catalog.
    return list(compress(range(length), bin(columns)[:1:-1].encode().translate(_BITS)))
