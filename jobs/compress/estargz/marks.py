"""Marks of an eStargz layer: the footer, the entries of its own in the tar, the annotations."""

from __future__ import annotations

import re
from typing import Final

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""Annotation: digest of the TOC, uncompressed."""
UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"
"""Annotation: bytes of the tar."""
TOC_NAME: Final = b"stargz.index.json"
PREFETCH: Final = b".prefetch.landmark"
"""The entry after the files that a client fetches before they are read."""
NO_PREFETCH: Final = b".no.prefetch.landmark"
"""The entry of a layer without such files."""
OWN_NAMES: Final = frozenset((TOC_NAME, PREFETCH, NO_PREFETCH))
"""Entries of the format, which are not files of the image: stargz-snapshotter does not show them."""
LANDMARK: Final = b"\x0f"
"""The content of a landmark."""
CHUNK_SIZE: Final = 4 << 20
"""Bytes of the content of a file that begin a new member, as stargz-snapshotter's own builder cuts."""
FOOTER_BYTES: Final = 51

_HEADER: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0"
_EMPTY: Final = b"\x01\0\0\xff\xff" + bytes(8)
_FOOTER: Final = re.compile(
    rb"\x1f\x8b\x08\x04.{6}\x1a\0SG\x16\0([0-9a-fA-F]{16})STARGZ" + re.escape(_EMPTY), re.DOTALL
)


def footer(offset: int) -> bytes:
    """Return the last member of a blob whose TOC is at this offset."""
    return _HEADER + b"%016xSTARGZ" % offset + _EMPTY


def toc_offset(data: bytes) -> int | None:
    """Return the offset of the TOC if the last :data:`FOOTER_BYTES` of a blob are a footer, else None."""
    found = _FOOTER.fullmatch(data)
    return None if found is None else int(found[1], 16)
