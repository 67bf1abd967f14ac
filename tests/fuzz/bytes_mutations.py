"""Mutations that know nothing of a format: bits, bytes, runs, cuts, splices."""

from __future__ import annotations

from random import Random

_INTERESTING = (b"\0", b"\xff", b"\x80", b"\x7f", b"/", b"..", b"\n", b" ", b"=", b"-1", b"0", b"9" * 24, b"\\")


def mutate(rng: Random, data: bytes, other: bytes) -> bytes:
    """``data`` changed in one to four places; ``other`` is what may be spliced in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(8)
        at = rng.randrange(len(out) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 512, 4096)), len(out) - at)
        if kind <= 1 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at : at + 1] = bytes((rng.randrange(256),))
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            piece = rng.choice(_INTERESTING)
            out[at : at + rng.choice((0, len(piece)))] = piece
        elif kind == 6:
            start = rng.randrange(len(other) + 1)
            out[at : at + rng.choice((0, length))] = other[start : start + length]
        else:
            del out[at:]
    return bytes(out)
