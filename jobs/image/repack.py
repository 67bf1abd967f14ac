"""The parts of a repack that its flow (:mod:`layerfarm.jobs.flows.repack`) combines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from layerfarm.jobs.errors import BundleError
from layerfarm.jobs.fs import open_file
from layerfarm.jobs.image.bundle import Bundle, DescriptorPath, MapOptions
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.owners import owner_in_image
from layerfarm.jobs.mtree import Entry, read_full


def open_bundle_baseline(bundle: Bundle) -> Iterator[Entry]:
    """Return the tree as unpacked into the bundle, in mtree order; also for umoci's bundles.

    Raises:
        BundleError: the bundle's mtree manifest cannot be opened.
        MtreeSyntaxError: while reading, it does not parse.
    """
    return open_baseline(bundle.mtree, bundle.extra)


def open_baseline(mtree: Path, extra: Path) -> Iterator[Entry]:
    """Return the tree from the manifest and the extra file, which may be missing.

    Raises:
        UnsafePath: one of them is not a regular file.
    """
    with ExitStack() as stack:
        try:
            manifest = stack.enter_context(open_file(mtree))
            beside = None
            with suppress(FileNotFoundError):
                beside = stack.enter_context(open_file(extra))
        except OSError as error:
            raise BundleError(f"mtree manifest cannot be read, {error.strerror}", where=mtree) from error
        # The files stay open until the tree has been read.
        return closing_after(read_full(manifest, beside), stack.pop_all())


def closing_after(entries: Iterator[Entry], opened: ExitStack) -> Iterator[Entry]:
    """Yield ``entries``; close ``opened`` at their end."""
    with opened:
        yield from entries


def refresh_bundle(
    bundle: Bundle, image: Resolved, manifest: Path, extra: Path, stat_cache: Path | None = None
) -> Bundle:
    """Make the bundle one of ``image``, which was just made from it, so that the next repack starts there.

    ``manifest``, ``extra`` and ``stat_cache`` describe the tree as it is now; they are copied.

    Raises:
        OSError: the bundle cannot be written.
    """
    walk = DescriptorPath(descriptor_walk=list(image.path))
    new = Bundle(bundle.path, bundle.meta.model_copy(update={"from_descriptor_path": walk}))
    for source, target in ((manifest, new.mtree), (extra, new.extra), (stat_cache, new.stat_cache)):
        if source is not None:
            with open_file(source) as content:
                new.replace(target, content)
    # umoci.json decides which manifest counts: it is written after the new files, before the old ones are removed.
    new.save()
    if new.mtree != bundle.mtree:
        for old in (bundle.mtree, bundle.extra, bundle.stat_cache):
            old.unlink(missing_ok=True)
    return new


def as_in_image(entries: Iterable[Entry], maps: MapOptions) -> Iterator[Entry]:
    """Yield a bundle's entries with the owners that a repack would give them: mapped back, or as rootless unpack noted.

    Raises:
        UnmappedId: the owner of a file is not in the bundle's id map.
    """
    if not (maps.uid_mappings or maps.gid_mappings or maps.rootless):
        yield from entries
        return
    uids, gids = maps.uid_map, maps.gid_map
    for entry in entries:
        xattrs = entry.xattrs
        uid, gid, left = owner_in_image(entry.uid, entry.gid, xattrs or (), uids, gids, rootless=maps.rootless)
        yield entry._replace(uid=uid, gid=gid, xattrs=left if xattrs else xattrs)
