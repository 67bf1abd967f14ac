"""A bundle's tree in the words of its image, for a comparison with an image or another bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from layerfarm.jobs.image.bundle import BundleIdMapping, MapOptions
from layerfarm.jobs.layer import IdMap
from layerfarm.jobs.layer.rootless import owner_in_image
from layerfarm.jobs.mtree import Entry


def as_in_image(entries: Iterable[Entry], maps: MapOptions) -> Iterator[Entry]:
    """The entries with the owners that a repack would give them: mapped back, or as rootless unpack noted.

    Raises:
        UnmappedId: a file belongs to somebody who has no place in the bundle's id map.
    """
    uids, gids = id_map(maps.uid_mappings), id_map(maps.gid_mappings)
    if not (maps.uid_mappings or maps.gid_mappings or maps.rootless):
        yield from entries
        return
    for entry in entries:
        xattrs = entry.xattrs
        uid, gid, left = owner_in_image(entry.uid, entry.gid, xattrs or (), uids, gids, rootless=maps.rootless)
        if xattrs:
            xattrs = left
        yield entry._replace(uid=uid, gid=gid, xattrs=xattrs)


def id_map(rows: list[BundleIdMapping] | None) -> IdMap:
    """A bundle's id map in the layer room's form."""
    return IdMap.of(*((row.container, row.host, row.size) for row in rows or [] if row.size))
