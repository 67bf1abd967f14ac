"""Cut the content of large files where containers/storage cuts it, so that equal parts are equal chunks.

Its rules: a chunk ends where 16 bits of a rolling checksum over the last 64 bytes are all set (that of bup and
librsync), every 64 KiB on average; and at each end of 1,024 zeros or more, which are a chunk of their own.

layerfarm does not cut files of up to ``MOST_CHUNK`` bytes, and no chunk is larger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from layerfarm.jobs.compress.toc.frames import Chunk

MOST_CHUNK: Final = 1 << 20
"""Bytes. Of random content one chunk in ten million would be larger."""
_HOLE: Final = bytes(1024)
_WINDOW: Final = 64
_STEP: Final = 1 << 16
_LANE: Final = 16
_X_LESS_1: Final = (1 << _LANE) - 1
_CUT: Final = (0xFFFF - 31 * _WINDOW * (_WINDOW - 1)) & 0xFFFF
"""Low 16 bits of the weighted sum at a cut: what the checksum of 64 zeros lacks to 16 bits that are set."""
_MOST_CARRY: Final = 8
"""The weighted sum is 64 * 65 / 2 * 255 at most: it carries no more into the next lane."""


def chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[Chunk]:
    """Cut content into chunks, the same for any cut of ``pieces``."""
    source = iter(pieces)
    held = bytearray()
    cuts: deque[int] = deque()
    """Ends of chunks by the checksum, as offsets in the file."""
    before = b""
    gone = read = 0
    ended = in_hole = False
    while not ended or held:
        while not ended and len(held) < 2 * MOST_CHUNK:
            piece = next(source, None)
            if piece is None:
                ended = True
                break
            for at in range(0, len(piece), _STEP):
                step = bytes(piece[at : at + _STEP])
                cuts.extend(read + end for end in _ends(step, before))
                before = (before + step[-_WINDOW:])[1 - _WINDOW :]
                read += len(step)
                held += step
        if not held:
            return
        zeros = _leading_zeros(held) if in_hole or held.startswith(_HOLE) else 0
        if zeros:
            size = zeros
        else:
            while cuts and cuts[0] <= gone:
                cuts.popleft()
            size = min(MOST_CHUNK, len(held), cuts[0] - gone if cuts else MOST_CHUNK)
            hole = held.find(_HOLE, 0, size + len(_HOLE) - 1)
            if hole > 0:
                size = hole
        in_hole = bool(zeros)
        yield Chunk(bytes(memoryview(held)[:size]), in_hole)
        del held[:size]
        gone += size


def _leading_zeros(data: bytearray) -> int:
    first = bytes(memoryview(data)[:MOST_CHUNK])
    return len(first) - len(first.lstrip(b"\0"))


def _ends(data: bytes, before: bytes) -> Iterator[int]:
    """Return the ends of chunks in ``data`` by the checksum, from 1 for one after the first byte.

    ``before``: the 63 bytes that precede it, fewer at the start of a file.

    The checksum is that of zeros plus the last 64 bytes, each times its age from 1. A loop takes 0.5 us for each byte.
    Here one integer holds the sums of all positions, in lanes of 16 bits. As polynomials in X, a shift by one lane, the
    sums are ``p * (1 - 65 X^64 + 64 X^65) / (X - 1)^2``. That takes 15 to 25 ns a byte.
    """
    whole = before + data
    lanes = bytearray(2 * len(whole))
    lanes[::2] = whole
    p = int.from_bytes(lanes, "little")
    sums = (p + (((p << (_LANE + 6)) - p * (_WINDOW + 1)) << (_LANE * _WINDOW))) // _X_LESS_1 // _X_LESS_1
    found = sums.to_bytes(2 * len(whole) + 2 * _WINDOW, "little")
    high = found[1 : 2 * len(whole) : 2]
    lowest = _CUT & 0xFF
    skipped = len(before)
    at = high.find(_CUT >> 8, skipped)
    while at >= 0:
        # A lane also holds what the lane before carries into it.
        if lowest <= found[2 * at] <= lowest + _MOST_CARRY and _sum(whole[max(0, at + 1 - _WINDOW) : at + 1]) == _CUT:
            yield at + 1 - skipped
        at = high.find(_CUT >> 8, at + 1)


def _sum(window: bytes) -> int:
    return sum(map(int.__mul__, range(len(window), 0, -1), window)) & 0xFFFF
