"""Revert a changed bundle to its image, writing only entries that differ (umoci #172)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from layerfarm.jobs.errors import BundleError, RootfsError
from layerfarm.jobs.fs import DirectoryCache, Rootfs
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.image.bundle import ROOTFS_NAME, Bundle
from layerfarm.jobs.image.resolve import Resolved, resolve_walk
from layerfarm.jobs.image.restore import Restorer
from layerfarm.jobs.image.trees import portable, stack_of
from layerfarm.jobs.image.unpack import UnpackOptions, extracted
from layerfarm.jobs.mtree import ROOT, Delta, DeltaKind, Entry, compare
from layerfarm.jobs.mtree.compare import differing_keys
from layerfarm.jobs.store import Layout

_STAGING = ".layerfarm-revert-"
_CONTENT = frozenset(("type", "size", "sha256digest", "link", "device"))
"""Keywords: an entry that differs in one of them must be restored from the image."""


@dataclass
class Plan:
    """The changes that restore the expected tree. Paths in mtree order."""

    removals: list[bytes] = field(default_factory=list)
    """Paths that the image lacks, or has as another type; removed with everything below them."""
    directories: list[Entry] = field(default_factory=list)
    """Directories to make, parents first."""
    files: dict[bytes, Entry] = field(default_factory=dict)
    """Non-directories to restore from the image."""
    fixes: dict[bytes, Entry] = field(default_factory=dict)
    """Entries of which only the metadata differ, or will differ after the other changes."""
    linked: dict[bytes, Entry] = field(default_factory=dict)
    """All entries with several names in the image, if any such group is damaged."""
    suspects: set[tuple[str | None, int]] = field(default_factory=set)
    """Digest and size of damaged entries: the manifest does not record which equal files share an inode."""

    @property
    def changes_nothing(self) -> bool:
        return not (self.removals or self.directories or self.files or self.fixes or self.linked)


@dataclass(frozen=True)
class Reverted:
    """Numbers of changed paths."""

    removed: int
    """Each with everything below it."""
    restored: int
    adjusted: int
    """Only their metadata."""


def revert_bundle(store: Layout, bundle: Bundle, current: Callable[[], Iterable[Entry]]) -> Reverted:
    """Restore the bundle's rootfs as it was unpacked, or last repacked with a refresh.

    ``current`` lists the tree as it is now, hashed, in mtree order; it is called once. Files are restored with owner,
    mode, xattrs and times, hard links are linked again, directories get their times back. An interrupted revert can be
    run again. The tree must not change meanwhile.

    Raises:
        BundleError: another revert is running, or the store's image is not the bundle's.
        BlobNotFound, DigestMismatch, SizeMismatch: the image is missing or corrupt.
        RootfsError: the tree cannot be written.
    """
    image = resolve_walk(store, bundle.walk)
    with _locked(bundle):
        with Rootfs(bundle.rootfs, follow=False) as root, DirectoryCache(root.fd) as directories:
            plan = _plan(_expected_tree(store, image, bundle), current(), directories)
        if plan.changes_nothing:
            return Reverted(0, 0, 0)
        with _staged(store, image, bundle, plan) as (staging, known):
            try:
                with Restorer(bundle.rootfs, staging) as restorer:
                    return _restore(plan, restorer, known)
            except OSError as error:
                raise RootfsError(
                    f"tree cannot be restored, {error.strerror}", where=error.filename or bundle.rootfs
                ) from error


def _expected_tree(store: Layout, image: Resolved, bundle: Bundle) -> Callable[[], Iterator[Entry]]:
    """Return a function that lists the tree of the bundle's image, as unpacked with the bundle's id maps.

    umoci's manifest is not complete (device numbers, xattrs of links): for its bundles without id maps the tree is
    derived from the image's layers, read once.
    """
    maps = bundle.meta.map_options
    if os.path.lexists(bundle.extra) or maps.uid_mappings or maps.gid_mappings or maps.rootless:
        return bundle.baseline
    stack = stack_of(store, image)
    return lambda: portable(stack.entries())


def _plan(expected: Callable[[], Iterable[Entry]], current: Iterable[Entry], directories: DirectoryCache) -> Plan:
    """Compare the trees. ``expected`` is read twice; only differing entries are kept in memory."""
    plan = Plan()
    surplus: list[Delta] = []
    extras: dict[tuple[int, int], int] = {}
    remade: set[bytes] = set()
    for delta in compare((entry for entry in expected() if entry.type != "socket"), current):
        old, new = delta.old, delta.new
        if new is not None and new.type != "dir" and new.nlink > 1 and delta.kind is DeltaKind.EXTRA:
            inode = _inode(directories, delta.path)
            extras[inode] = extras.get(inode, 0) + 1
        if old is None or "type" in delta.keys:
            plan.removals.append(delta.path)
        if old is None:
            continue
        if old.type != "dir" and old.nlink > 1:
            plan.suspects.add((old.sha256, old.size))
        if old.type == "dir":
            if new is None or new.type != "dir":
                remade.add(delta.path)
            else:
                plan.fixes[delta.path] = old
        elif new is None or _CONTENT & set(delta.keys):
            plan.files[delta.path] = old
        else:
            if old.nlink == 1 < new.nlink:
                surplus.append(delta)
            if set(delta.keys) != {"nlink"}:
                plan.fixes[delta.path] = old
    for delta in surplus:
        # Its surplus names may be extra paths, which are removed. If others remain, a separate inode is needed.
        assert delta.old is not None and delta.new is not None
        if delta.new.nlink - extras.get(_inode(directories, delta.path), 0) > 1:
            plan.files[delta.path] = delta.old
            plan.fixes.pop(delta.path, None)
    plan.removals = _topmost(plan.removals)
    _add_from_expected(plan, expected(), remade)
    return plan


def _inode(directories: DirectoryCache, path: bytes) -> tuple[int, int]:
    directory, name = directories.parent(path)
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return found.st_dev, found.st_ino


def _topmost(paths: list[bytes]) -> list[bytes]:
    going = set(paths)
    return [path for path in paths if not any(above in going for above in _above(path))]


def _above(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or ROOT


def _add_from_expected(plan: Plan, expected: Iterable[Entry], remade: set[bytes]) -> None:
    """Add the content of missing directories, and the directories whose times the changes will touch."""
    linked: dict[bytes, Entry] = {}
    touched = {_parent(path) for path in (*plan.removals, *plan.files, *remade) if path != ROOT}
    for entry in expected:
        path = entry.path
        lost = path in remade or (path != ROOT and _parent(path) in remade)
        if entry.type == "dir":
            if lost:
                remade.add(path)
                plan.directories.append(entry)
                plan.fixes[path] = entry
            elif path in touched:
                plan.fixes[path] = entry
            continue
        if lost:
            plan.files[path] = entry
        if entry.nlink > 1:
            linked[path] = entry
            if lost:
                plan.suspects.add((entry.sha256, entry.size))
    if plan.suspects:
        plan.linked = linked


# --- the image's part ----------------------------------------------------------------------------


@contextmanager
def _staged(
    store: Layout, image: Resolved, bundle: Bundle, plan: Plan
) -> Iterator[tuple[Path | None, dict[bytes, Entry]]]:
    """Unpack the image's tree beside the rootfs, with the content of only the needed files.

    Yields its path, and its entries at the paths of the plan; None if the plan needs no files.
    """
    if not plan.files and not plan.linked:
        yield None, {}
        return
    likes = _likes(plan)
    staging = bundle.path / f"{_STAGING}{os.urandom(8).hex()}"
    staging.mkdir(mode=0o700)
    try:
        for every_content, keep_dirlinks in ((False, False), (True, False), (True, True)):
            wanted = None if every_content else lambda path: path in plan.files or path in likes
            options = _options(bundle, wanted, keep_dirlinks)
            rootfs = staging / ROOTFS_NAME
            with extracted(store, image, rootfs, options) as extractor:
                known = {
                    entry.path: entry
                    for entry in extractor.entries()
                    if entry.path in plan.files or entry.path in plan.fixes or entry.path in plan.linked
                }
            if not (wrong := next(_mismatches(plan, known), None)):
                yield rootfs, known
                return
            # A hard link in the layers may lead to a file that the final tree has only under other names, and
            # keep_dirlinks is not recorded: unpack again, with every content.
            remove_tree(rootfs)
        raise BundleError("image does not match the bundle's manifest", where=wrong)
    finally:
        remove_tree(staging)


def _options(bundle: Bundle, wanted: Callable[[bytes], bool] | None, keep_dirlinks: bool) -> UnpackOptions:
    maps = bundle.meta.map_options
    return UnpackOptions(
        uid_map=maps.uid_map,
        gid_map=maps.gid_map,
        rootless=maps.rootless,
        keep_dirlinks=keep_dirlinks,
        content_wanted=wanted,
    )


def _likes(plan: Plan) -> dict[bytes, Entry]:
    """Return the files that may be names of an inode to be restored."""
    return {path: entry for path, entry in plan.linked.items() if (entry.sha256, entry.size) in plan.suspects}


def _mismatches(plan: Plan, known: dict[bytes, Entry]) -> Iterator[bytes]:
    for path, wanted in (plan.files | _likes(plan)).items():
        found = known.get(path)
        # In portable form a link's size is the same on disk and in a layer.
        if found is None or _CONTENT & set(differing_keys(*portable((wanted, found)))):
            yield path
    yield from plan.linked.keys() - known.keys()


# --- the changes ---------------------------------------------------------------------------------


def _restore(plan: Plan, restorer: Restorer, known: dict[bytes, Entry]) -> Reverted:
    for path in plan.removals:
        restorer.remove(path)
    for entry in plan.directories:
        restorer.make_directory(entry.path)
    groups = restorer.groups(plan.linked)
    grouped = {path for group in groups for path in group}
    for path in plan.files:
        if path not in grouped:
            restorer.put_back(path)
    relinked = sum(restorer.link_again(group, plan.files.keys()) for group in groups)
    # Deepest directories first: changing a child changes its parent's mtime.
    for path in sorted(plan.fixes, key=lambda path: (-1 if path == ROOT else path.count(b"/"), path), reverse=True):
        entry = plan.fixes[path]
        exact = known.get(path)
        if exact is not None and exact.mtime // 10**9 == entry.mtime // 10**9:
            entry = entry._replace(mtime=exact.mtime)  # a manifest keeps whole seconds
        restorer.apply_metadata(entry)
    restored = len(plan.directories) + sum(path not in grouped for path in plan.files) + relinked
    return Reverted(len(plan.removals), restored, len(plan.fixes) - len(plan.directories))


@contextmanager
def _locked(bundle: Bundle) -> Iterator[None]:
    fd = os.open(bundle.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError("another revert of this bundle is running", where=bundle.path) from error
        for left in bundle.path.glob(f"{_STAGING}*"):
            remove_tree(left)
        yield
    finally:
        os.close(fd)
