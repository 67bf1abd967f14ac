"""Which extended attributes belong to an image and which to the machine: the one definition, for every room.

Walks record what is on disk. Comparing trees, packing them, unpacking layers and reverting bundles follow the
rules here, so that a tree's manifest and its layer hold the same xattrs (umoci.md B1.6, B5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

HOST_XATTRS: Final = frozenset((b"security.selinux", b"system.nfs4_acl"))
"""Labels and ACLs of the machine: never packed, compared, cleared or taken from a layer."""
_CAPABILITY: Final = b"security.capability"


def portable_xattrs(
    xattrs: tuple[tuple[bytes, bytes], ...], left_out: Callable[[bytes, str], None] | None = None
) -> tuple[tuple[bytes, bytes], ...]:
    """The xattrs that a layer holds of those found on disk, in the same order.

    Left out are the host's, those with an empty value (a PAX record without one deletes) and those with ``=``
    in their name (PAX ends a keyword at its first equals sign; the value would go to another name). Capabilities
    lose the user namespace that they name.

    Parameters:
        left_out: called with the name and the reason for each xattr that is lost; the host's are not.
    """
    kept: list[tuple[bytes, bytes]] = []
    for name, value in xattrs:
        if name in HOST_XATTRS:
            continue
        reason = _reason(name, value)
        if reason is None:
            kept.append((name, version_2(value) if name == _CAPABILITY else value))
        elif left_out is not None:
            left_out(name, reason)
    return tuple(kept)


def version_2(capability: bytes) -> bytes:
    """File capabilities without the user namespace of this host.

    Version 3 names the namespace's root as a uid of the host, which means nothing elsewhere; Docker
    rewrites it the same way (moby#41724, umoci #261). Anything else is left as it is.
    """
    magic = int.from_bytes(capability[:4], "little")
    if len(capability) == 24 and magic >> 24 == 3:
        return (magic & 0xFFFFFF | 2 << 24).to_bytes(4, "little") + capability[4:20]
    return capability


def _reason(name: bytes, value: bytes) -> str | None:
    if not value:
        return "has an empty value and is left out"
    return "has a name that tar cannot hold" if b"=" in name else None
