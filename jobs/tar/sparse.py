"""Maps of sparse files in tar (GNU tar manual, "Storing Sparse Files").

They are read, never written: layers should not use them (image-spec layer.md "Sparse").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.pax import Records, parse_number
from layerfarm.jobs.tar.writer import BLOCK

_FIELD: Final = 12
_VERSIONS: Final = ((b"0", b"0"), (b"0", b"1"), (b"1", b"0"))


class Holes(NamedTuple):
    """A sparse file: its size and the areas that hold data; the rest reads as zeros."""

    size: int
    parts: tuple[tuple[int, int], ...]
    """Offset and length of each area, ascending, none empty."""


def old_gnu_map(
    block: bytes, stored: int, take: Callable[[int], bytes], number: Callable[[bytes], int], limits: Limits
) -> Holes:
    """Return the map of a type ``S`` entry: four areas in its header, more in blocks that follow it."""
    parts = _pairs(block, range(386, 482, 2 * _FIELD), number)
    size = number(block[483:495])
    more = block[482]
    while more:
        if len(parts) > limits.sparse_parts:
            raise limits.exceeded("sparse_parts", "sparse file has more than {} areas")
        extension = take(BLOCK)
        parts += _pairs(extension, range(0, 504, 2 * _FIELD), number)
        more = extension[504]
    return _checked(size, parts, stored, limits)


def _pairs(block: bytes, places: range, number: Callable[[bytes], int]) -> list[tuple[int, int]]:
    """Return the areas in one block, up to the first that begins with a NUL (as Go, GNU tar and libarchive read it)."""
    pairs: list[tuple[int, int]] = []
    for at in places:
        if not block[at]:
            break
        pairs.append((number(block[at : at + _FIELD]), number(block[at + _FIELD : at + 2 * _FIELD])))
    return pairs


def is_sparse(records: Records) -> bool:
    """Return True if the PAX records describe a sparse file of a known version (as Go decides it)."""
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    return version in _VERSIONS or (version == (b"", b"") and bool(records.get(b"GNU.sparse.map")))


def pax_map(records: Records, stored: int, take: Callable[[int], bytes], limits: Limits) -> tuple[Holes, int]:
    """Return the map of a sparse file: in its PAX records (0.0 and 0.1), or at the start of its content (1.0).

    Returns it and how many bytes of content are left.
    """
    size = stored
    if text := records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize"):
        size = parse_number(b"GNU.sparse.size", text)
    if records.get(b"GNU.sparse.major") == b"1":
        parts, used = _inline_map(stored, take, limits)
        return _checked(size, parts, stored - used, limits), stored - used
    text = records.get(b"GNU.sparse.map", b"")
    numbers = [parse_number(b"GNU.sparse.map", field) for field in text.split(b",")] if text else []
    count = parse_number(b"GNU.sparse.numblocks", records.get(b"GNU.sparse.numblocks", b""))
    if len(numbers) != 2 * count:
        raise MalformedLayer("sparse map does not have the stated number of fields")
    return _checked(size, zip(numbers[::2], numbers[1::2], strict=True), stored, limits), stored


def _inline_map(stored: int, take: Callable[[int], bytes], limits: Limits) -> tuple[list[tuple[int, int]], int]:
    """Read decimal numbers, one a line, padded to whole blocks: the number of areas, then offset and length of each."""
    used = 0
    held = b""
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        line, newline, rest = held.partition(b"\n")
        if not newline:
            if len(held) >= BLOCK or used + BLOCK > stored:
                raise MalformedLayer("sparse map breaks the format")
            held += take(BLOCK)
            used += BLOCK
            continue
        held = rest
        numbers.append(parse_number(b"sparse map", line))
        if wanted == 1:
            if numbers[0] > limits.sparse_parts:
                raise limits.exceeded("sparse_parts", "sparse file has more than {} areas")
            wanted = 1 + 2 * numbers[0]
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), used


def _checked(size: int, parts: Iterable[tuple[int, int]], stored: int, limits: Limits) -> Holes:
    end = 0
    data = 0
    kept: list[tuple[int, int]] = []
    for offset, length in parts:
        if offset < end or offset + length > size:
            raise MalformedLayer("sparse map does not fit the file")
        end = offset + length
        data += length
        if length:  # a last empty area only gives the length of the file
            kept.append((offset, length))
    if data != stored:
        raise MalformedLayer("sparse map does not fit the stored content")
    if size - data > limits.hole_bytes:
        raise limits.exceeded("hole_bytes", "sparse file has holes of more than {} bytes")
    return Holes(size, tuple(kept))
