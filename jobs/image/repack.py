"""The parts of a repack that the flow puts together: the old tree and the refresh."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerfarm.jobs.errors import BundleError
from layerfarm.jobs.fs import open_file
from layerfarm.jobs.image.bundle import Bundle, BundleIdMapping, BundleMeta, DescriptorPath, MapOptions
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer import IdMap
from layerfarm.jobs.layer.rootless import owner_in_image
from layerfarm.jobs.mtree import Entry, read_full

if TYPE_CHECKING:
    from layerfarm.jobs.image.documents import ImageConfig


def open_bundle_baseline(bundle: Bundle) -> Iterator[Entry]:
    """The tree as it was when the bundle was unpacked, in mtree order; reads umoci's bundles, too.

    Raises:
        BundleError: the bundle's mtree manifest cannot be opened.
        MtreeSyntaxError: while reading, it does not parse.
    """
    return open_baseline(bundle.mtree, bundle.extra)


def open_baseline(mtree: Path, beside: Path) -> Iterator[Entry]:
    """The same from the manifest and the extra file, which need not exist.

    Raises:
        UnsafePath: one of them is not a regular file.
    """
    with ExitStack() as stack:
        try:
            manifest = stack.enter_context(open_file(mtree))
            extra = None
            with suppress(FileNotFoundError):
                extra = stack.enter_context(open_file(beside))
        except OSError as error:
            raise BundleError(f"mtree manifest cannot be read, {error.strerror}", where=mtree) from error
        # The files stay open until the tree has been read.
        return _closing(read_full(manifest, extra), stack.pop_all())


def refresh_bundle(
    bundle: Bundle, image: Resolved, manifest: Path, extra: Path, stat_cache: Path | None = None
) -> Bundle:
    """Make the bundle one of ``image``, the image just made from it, so that the next repack starts there.

    ``manifest`` and ``extra`` are the files of the tree as it is now, and ``stat_cache`` belongs to them;
    they are copied.

    Raises:
        OSError: the bundle cannot be written.
    """
    new = Bundle(
        bundle.path,
        _moved_to(bundle.meta, image),
    )
    for source, target in ((manifest, new.mtree), (extra, new.extra), (stat_cache, new.stat_cache)):
        if source is None:
            continue
        with open_file(source) as content:
            new.replace(target, content)
    # umoci.json decides which manifest counts, so it comes between the new ones and the end of the old.
    new.save()
    if new.mtree != bundle.mtree:
        for old in (bundle.mtree, bundle.extra, bundle.stat_cache):
            old.unlink(missing_ok=True)
    return new


def _moved_to(meta: BundleMeta, image: Resolved) -> BundleMeta:
    walk = DescriptorPath(descriptor_walk=list(image.path))
    return meta.model_copy(update={"from_descriptor_path": walk})


def _closing(entries: Iterator[Entry], opened: ExitStack) -> Iterator[Entry]:
    with opened:
        yield from entries


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


def masked_paths(config: ImageConfig, given: Sequence[str], mask_volumes: bool = True) -> list[str]:
    """The paths whose changes a repack leaves out: those given, and the image's volumes unless switched off.

    A volume at the root masks nothing, as with umoci: the new image would lose every change, without a word.
    """
    volumes = (config.config.volumes if config.config else None) or {}
    return [*given, *(sorted(path for path in volumes if not names_root(path)) if mask_volumes else ())]


def names_root(path: str) -> bool:
    """Whether ``path``, absolute or not, is empty or the root of an image once it is cleaned."""
    return posixpath.normpath(f"/{path.lstrip('/')}") == "/"
