"""How much a layer may ask of us (DESIGN law 9)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on one layer. The defaults pass every real image; exceeding one raises LimitExceeded."""

    entries: int = 10_000_000
    """Tar entries, implied parent directories included."""
    path_bytes: int = 8 * 1024
    """Bytes of a path or of a link's target. Linux takes 4,095 in one call; deeper trees exist."""
    pax_bytes: int = 4 * 1024 * 1024
    """Bytes of one PAX header, and of the global ones together."""
    xattr_bytes: int = 1024 * 1024
    """Bytes of all names and values of one entry's xattrs; Linux takes 65,536 per value."""
    stream_bytes: int = 1 << 40
    """Bytes of the uncompressed stream (1 TiB)."""
    hole_bytes: int = 16 << 30
    """Bytes of holes in sparse files, which cost no input but have to be hashed (16 GiB: about 9 s)."""
    sparse_parts: int = 1_000_000
    """Data areas of one sparse file."""
    ratio: int = 5_000
    """Uncompressed bytes per compressed byte. Deflate cannot exceed 1,032; zstd packs zeros to 20,000."""
    ratio_floor: int = 4 << 30
    """Uncompressed bytes below which ``ratio`` is not looked at (4 GiB)."""
