"""Limits on inputs (law 9, docs/architecture.md): every limit, its default, and how it is set.

Limits belong to the process, like its memory, not to a request: the sender of untrusted work must not
choose them, and no reader of an input can forget to pass them on. They come from the environment,
``LAYERFARM_LIMIT_<NAME>``. The command's ``--limit NAME=N`` sets these variables, so that child processes
have the same limits. The table for users is docs/limits.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import LimitExceeded, RequestError

PREFIX: Final = "LAYERFARM_LIMIT_"
_PREFIX_BYTES: Final = PREFIX.encode()
_VALUE: Final = re.compile(r"([0-9]{1,19})([KMGT]?)", re.IGNORECASE)
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class Limits:
    """Defaults allow every real image; exceeding one raises LimitExceeded."""

    entries: int = 10_000_000
    """Tar entries of one layer; also the most directories, implied ones included, of one image."""
    path_bytes: int = 8 * 1024
    """Bytes of a path or of a link's target. Linux takes 4,095 in one call; deeper trees exist."""
    pax_bytes: int = 4 * 1024 * 1024
    """Bytes of all PAX and GNU extended headers of one entry."""
    xattr_bytes: int = 1024 * 1024
    """Bytes of all names and values of one entry's xattrs; Linux takes 65,536 per value."""
    stream_bytes: int = 1 << 40
    """Bytes of one layer's uncompressed stream (1 TiB)."""
    unpacked_bytes: int = 4 << 40
    """Bytes of all files that the layers of one image write, replaced ones included (4 TiB)."""
    hole_bytes: int = 16 << 30
    """Bytes of holes in one sparse file, which cost no input but have to be hashed (16 GiB: about 9 s)."""
    sparse_parts: int = 1_000_000
    """Data areas of one sparse file."""
    ratio: int = 5_000
    """Uncompressed bytes per compressed byte. Deflate cannot exceed 1,032; zstd packs zeros to 20,000."""
    ratio_floor: int = 4 << 30
    """Uncompressed bytes below which ``ratio`` is not checked (4 GiB)."""
    zstd_window: int = 512 << 20
    """Bytes of the window of a zstd frame, which decompressing holds in memory: 512 MiB, as in Go's decoder."""
    toc_bytes: int = 150 << 20
    """Bytes of the table of contents of a zstd:chunked or eStargz layer, uncompressed; podman takes no larger one."""
    document_bytes: int = 4 * 1024 * 1024
    """Bytes of a manifest, image config, nested index or umoci.json. Registries refuse larger manifests, too."""
    document_depth: int = 64
    """Nesting depth of lists and objects in any of these or in index.json; real ones have 6."""
    index_bytes: int = 64 * 1024 * 1024
    """Bytes of index.json: some 200,000 tags."""
    index_depth: int = 8
    """Nesting depth of indexes."""
    manifests: int = 1_000
    """Manifests and indexes that one tag may lead to."""
    passwd_bytes: int = 16 * 1024 * 1024
    """Bytes of etc/passwd and of etc/group: some 300,000 users."""
    mtree_line_bytes: int = 1 << 28
    """Bytes of one line of an mtree manifest (256 MiB), which holds all xattrs of an entry."""

    def exceeded(self, name: str, what: str, where: str | bytes | Path | None = None) -> LimitExceeded:
        """Return the error for the limit ``name``; ``{}`` in ``what`` is replaced by its value."""
        hint = f"limit {name!r}; raise it with --limit {name}=N or {PREFIX}{name.upper()}, see docs/limits.md"
        return LimitExceeded(what.format(getattr(self, name)), where=where, hint=hint)


NAMES: Final = tuple(field.name for field in fields(Limits))


def limits() -> Limits:
    """Return the limits of this process.

    Raises:
        RequestError: the environment sets one that does not exist, or not to a number.
    """
    # Called for each small document, so it does not decode the whole environment each time: 3 us without a limit in it.
    if _PREFIX_BYTES not in b"\0".join(os.environb):
        return _parsed(())
    names = [name for name in os.environb if name.startswith(_PREFIX_BYTES)]
    return _parsed(tuple((os.fsdecode(name), os.fsdecode(os.environb[name])) for name in names))


def set_limit(text: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set ``NAME=N`` for this process and its children. ``N`` may end in K, M, G or T (powers of 1024).

    Raises:
        RequestError: the limit does not exist, or ``N`` is not a number.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise RequestError("limit is not NAME=N", where=text[:100])
    key = PREFIX + name.upper().replace("-", "_")
    _parsed(((key, value),))
    environment[key] = value


def parse_number(text: str) -> int:
    """Parse a whole number that may end in K, M, G or T.

    Raises:
        ValueError: it is not a number.
    """
    found = _VALUE.fullmatch(text)
    if found is None:
        raise ValueError("not a whole number, optionally with K, M, G or T at its end")
    return int(found[1]) << _UNITS[found[2].upper()]


@lru_cache(maxsize=4)
def _parsed(variables: tuple[tuple[str, str], ...]) -> Limits:
    values: dict[str, int] = {}
    for key, value in variables:
        name = key.removeprefix(PREFIX).lower()
        if name not in NAMES:
            raise RequestError(f"unknown limit {name[:100]!r}", hint=f"one of {', '.join(NAMES)}")
        try:
            number = parse_number(value)
        except ValueError:
            number = 0
        if not number:
            raise RequestError(f"limit {name!r} is not a number above 0", where=value[:100], hint="512, 64K, 2G")
        values[name] = number
    return Limits(**values)
