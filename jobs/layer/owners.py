"""Owners inside and outside an image: id maps (runtime-spec "User namespace mappings"), and
``user.rootlesscontainers``, the xattr that records an owner where chown is not allowed (rootlesscontaine.rs, B5).

The value of the xattr is the protobuf message ``Resource { uint32 uid = 1; uint32 gid = 2; }``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from layerfarm.jobs.errors import MalformedLayer, RequestError, UnmappedId
from layerfarm.jobs.mtree.model import Xattrs

HIGHEST_ID: Final = 0xFFFFFFFE
"""The highest uid or gid; 0xFFFFFFFF tells chown(2) to leave the owner unchanged."""
OWNER_XATTR: Final = b"user.rootlesscontainers"
NO_OWNER: Final = 0xFFFFFFFF
"""uint32(-1) in the xattr: the id that the file has on disk."""


class IdRange(NamedTuple):
    """``size`` ids, from ``container`` on inside and from ``host`` on outside."""

    container: int
    host: int
    size: int


class IdMap(NamedTuple):
    """Ranges of ids; the first that holds an id counts. Without ranges every id maps to itself."""

    ranges: tuple[IdRange, ...] = ()

    @classmethod
    def of(cls, *rows: tuple[int, int, int]) -> IdMap:
        """Return the map with the rows ``(container, host, size)``.

        Raises:
            RequestError: a row is empty or exceeds the range of ids.
        """
        for container, host, size in rows:
            if container < 0 or host < 0 or size < 1 or max(container, host) + size - 1 > HIGHEST_ID:
                raise RequestError("id mapping is out of range", where=f"{container}:{host}:{size}")
        return cls(tuple(IdRange(*row) for row in rows))

    def to_host(self, container: int) -> int:
        """Return the host's id for an id of the container. Raises UnmappedId if no range holds it."""
        if not self.ranges:
            return container
        for inside, outside, size in self.ranges:
            if 0 <= container - inside < size:
                return container - inside + outside
        raise UnmappedId(f"container id {container} cannot be mapped", hint="extend the --uid-map or --gid-map")

    def to_container(self, host: int) -> int:
        """Return the container's id for an id of the host. Raises UnmappedId if no range holds it."""
        if not self.ranges:
            return host
        for inside, outside, size in self.ranges:
            if 0 <= host - outside < size:
                return host - outside + inside
        raise UnmappedId(f"host id {host} cannot be mapped", hint="extend the --uid-map or --gid-map")


def owner_in_image(
    uid: int, gid: int, xattrs: Xattrs, uid_map: IdMap, gid_map: IdMap, *, rootless: bool
) -> tuple[int, int, Xattrs]:
    """Return owner and xattrs, in the image, of an entry on disk; the recorded owner is removed from the xattrs.

    In a rootless tree the owner is the recorded one, or root if none is recorded: its files belong to the user who
    unpacked or created them, and the id maps are ignored (umoci's ``unmapHeader``).

    Raises:
        UnmappedId: not rootless, and an id is in no range of its map.
        MalformedLayer: the recorded owner does not parse.
    """
    if not rootless:
        return uid_map.to_container(uid), gid_map.to_container(gid), xattrs
    value = dict(xattrs).get(OWNER_XATTR)
    if value is None:
        return 0, 0, xattrs
    uid, gid = (0 if recorded == NO_OWNER else recorded for recorded in decode_owner(value))
    return uid, gid, tuple(pair for pair in xattrs if pair[0] != OWNER_XATTR)


def encode_owner(uid: int, gid: int) -> bytes:
    """Return the xattr's value. Id 0 is encoded as NO_OWNER, as in umoci: the container's root owns the file."""
    return b"\x08" + _varint(uid or NO_OWNER) + b"\x10" + _varint(gid or NO_OWNER)


def decode_owner(value: bytes) -> tuple[int, int]:
    """Return uid and gid from the xattr's value; either may be NO_OWNER. A missing field is 0, as in proto3.

    Raises:
        MalformedLayer: it is not such a message.
    """
    owner = [0, 0]
    at = 0
    while at < len(value):
        tag = value[at]
        number, at = _read_varint(value, at + 1)
        if tag not in (0x08, 0x10):
            raise MalformedLayer("xattr user.rootlesscontainers is not an owner", where=value.hex()[:100])
        owner[0 if tag == 0x08 else 1] = number & 0xFFFFFFFF
    return owner[0], owner[1]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedLayer("xattr user.rootlesscontainers is cut short", where=data.hex()[:100])
