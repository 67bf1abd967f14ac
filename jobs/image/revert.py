"""A changed bundle goes back to its image, touching only what differs (umoci #172)."""

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
from layerfarm.jobs.image.repack import open_bundle_baseline
from layerfarm.jobs.image.resolve import Resolved, resolve_walk
from layerfarm.jobs.image.restore import Restorer
from layerfarm.jobs.image.trees import portable, stack_of
from layerfarm.jobs.image.unpack import UnpackOptions, extracted
from layerfarm.jobs.mtree import ROOT, Delta, DeltaKind, Entry, compare
from layerfarm.jobs.mtree.compare import differing_keys
from layerfarm.jobs.store import Layout

_STAGING = ".layerfarm-revert-"
_CONTENT = frozenset(("type", "size", "sha256digest", "link", "device"))
"""Keywords in which a difference means that the entry itself has to come from the image again."""


@dataclass
class Plan:
    """What has to be done to a tree to make it the expected one. Paths in mtree order."""

    removals: list[bytes] = field(default_factory=list)
    """What the image does not have, or has as something else; what is below goes with it."""
    directories: list[Entry] = field(default_factory=list)
    """To be made, parents first."""
    files: dict[bytes, Entry] = field(default_factory=dict)
    """Everything that is no directory, to be put back from the image."""
    fixes: dict[bytes, Entry] = field(default_factory=dict)
    """Directories and others of which only the metadata differ, or will once the rest is done."""
    linked: dict[bytes, Entry] = field(default_factory=dict)
    """What has several names in the image, if any such group is damaged."""
    suspects: set[tuple[str | None, int]] = field(default_factory=set)
    """Digest and size of those of them that differ: which of their likes share their inode is not written down."""

    @property
    def changes_nothing(self) -> bool:
        return not (self.removals or self.directories or self.files or self.fixes or self.linked)


@dataclass(frozen=True)
class Reverted:
    """What a revert did."""

    removed: int
    """Paths, each with what was below it."""
    restored: int
    """Paths that were made again."""
    adjusted: int
    """Paths that got their metadata back."""


def revert_bundle(
    store: Layout,
    bundle: Bundle,
    current: Callable[[], Iterable[Entry]],
    advanced: Callable[[int], None] = lambda nbytes: None,
) -> Reverted:
    """Make the bundle's rootfs what it was when it was unpacked, or last repacked with a refresh.

    ``current`` lists the tree as it is now, hashed, in mtree order; it is called once. Files come back with
    owner, mode, xattrs and times, names of one inode are linked again, directories get their times back. What
    does not differ is not written. Interrupted, it can be run again. Nobody else may change the tree meanwhile.

    Raises:
        BundleError: another revert is at work, or the store's image is not what the bundle was made of.
        BlobNotFound, DigestMismatch, SizeMismatch: the image is not, or not whole, in the store.
        RootfsError: the tree cannot be written.
    """
    image = resolve_walk(store, bundle.walk)
    with _locked(bundle):
        plan = plan_revert(expected_tree(store, image, bundle), current(), bundle.rootfs)
        if plan.changes_nothing:
            return Reverted(0, 0, 0)
        with _staged(store, image, bundle, plan, advanced) as (staging, known):
            try:
                with Restorer(bundle.rootfs, staging) as restorer:
                    return _restore(plan, restorer, known)
            except OSError as error:
                raise RootfsError(
                    f"tree cannot be put back, {error.strerror}", where=error.filename or bundle.rootfs
                ) from error


def expected_tree(store: Layout, image: Resolved, bundle: Bundle) -> Callable[[], Iterator[Entry]]:
    """A way to list the tree of the bundle's image, as it lies on disk when unpacked with the bundle's id maps.

    What umoci wrote down is not all (device numbers, xattrs of links): for its bundles the image itself
    is asked, where no ids were mapped. Its layers are read once, and nothing is written beside them.
    """
    maps = bundle.meta.map_options
    if os.path.lexists(bundle.extra) or maps.uid_mappings or maps.gid_mappings or maps.rootless:
        return lambda: open_bundle_baseline(bundle)
    stack = stack_of(store, image)
    return lambda: portable(stack.entries())


def plan_revert(expected: Callable[[], Iterable[Entry]], current: Iterable[Entry], rootfs: Path) -> Plan:
    """Compare the trees. ``expected`` is read twice; only what differs is kept in memory."""
    with Rootfs(rootfs, follow=False) as root, DirectoryCache(root.fd) as directories:
        return _plan(expected, current, lambda path: _inode(directories, path))


def _plan(
    expected: Callable[[], Iterable[Entry]], current: Iterable[Entry], inode_of: Callable[[bytes], tuple[int, int]]
) -> Plan:
    plan = Plan()
    surplus: list[Delta] = []
    extras: dict[tuple[int, int], int] = {}
    remade: set[bytes] = set()
    for delta in compare(_without_sockets(expected()), current):
        old, new = delta.old, delta.new
        if new is not None and new.type != "dir" and new.nlink > 1 and delta.kind is DeltaKind.EXTRA:
            inode = inode_of(delta.path)
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
        # Its further names may be extra ones, which go; others keep theirs, and it needs an inode of its own.
        assert delta.old is not None and delta.new is not None
        if delta.new.nlink - extras.get(inode_of(delta.path), 0) > 1:
            plan.files[delta.path] = delta.old
            plan.fixes.pop(delta.path, None)
    plan.removals = _topmost(plan.removals)
    _add_from_expected(plan, expected(), remade)
    return plan


def _without_sockets(entries: Iterable[Entry]) -> Iterator[Entry]:
    return (entry for entry in entries if entry.type != "socket")


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
    """What the deltas do not tell: all that was in a directory that is gone, and the directories touched."""
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
    store: Layout, image: Resolved, bundle: Bundle, plan: Plan, advanced: Callable[[int], None]
) -> Iterator[tuple[Path | None, dict[bytes, Entry]]]:
    """The image's tree beside the rootfs, with the content of those files only that are needed.

    Yields its place, and what it has at the paths of the plan. None where nothing is needed of it.
    """
    if not plan.files and not plan.linked:
        yield None, {}
        return
    staging = bundle.path / f"{_STAGING}{os.urandom(8).hex()}"
    staging.mkdir(mode=0o700)
    try:
        for every_content, keep_dirlinks in ((False, False), (True, False), (True, True)):
            options = _options(bundle, None if every_content else _wanted(plan), keep_dirlinks, advanced)
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
            # A link in the layers may lead to a file that the final tree has under other names only, and
            # whether links to directories were kept is not written down: once more, with everything.
            remove_tree(rootfs)
        raise BundleError("the image does not give what the bundle was made of", where=wrong)
    finally:
        remove_tree(staging)


def _options(
    bundle: Bundle, wanted: Callable[[bytes], bool] | None, keep_dirlinks: bool, advanced: Callable[[int], None]
) -> UnpackOptions:
    maps = bundle.meta.map_options
    return UnpackOptions(
        uid_map=maps.uid_map,
        gid_map=maps.gid_map,
        rootless=maps.rootless,
        keep_dirlinks=keep_dirlinks,
        content_wanted=wanted,
        advanced=advanced,
    )


def _wanted(plan: Plan) -> Callable[[bytes], bool]:
    """The files to be put back, and those that may be names of an inode that is to be put back."""
    likes = _likes(plan)
    return lambda path: path in plan.files or path in likes


def _likes(plan: Plan) -> dict[bytes, Entry]:
    return {path: entry for path, entry in plan.linked.items() if (entry.sha256, entry.size) in plan.suspects}


def _mismatches(plan: Plan, known: dict[bytes, Entry]) -> Iterator[bytes]:
    for path, wanted in (plan.files | _likes(plan)).items():
        found = known.get(path)
        # In their portable form both have the size of a link that a layer gives it.
        if found is None or _CONTENT & set(_differing(wanted, found)):
            yield path
    yield from plan.linked.keys() - known.keys()


def _differing(wanted: Entry, found: Entry) -> tuple[str, ...]:
    one, other = portable((wanted, found))
    return differing_keys(one, other)


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
    # Deepest directories last to be changed, first to be finished: a child's change is its parent's mtime.
    for path in sorted(plan.fixes, key=lambda path: (-1 if path == ROOT else path.count(b"/"), path), reverse=True):
        entry = plan.fixes[path]
        exact = known.get(path)
        if exact is not None and exact.mtime // 10**9 == entry.mtime // 10**9:
            entry = entry._replace(mtime=exact.mtime)  # a manifest keeps whole seconds
        restorer.dress(entry)
    restored = len(plan.directories) + sum(path not in grouped for path in plan.files) + relinked
    return Reverted(len(plan.removals), restored, len(plan.fixes) - len(plan.directories))


@contextmanager
def _locked(bundle: Bundle) -> Iterator[None]:
    fd = os.open(bundle.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError("another revert is at work on this bundle", where=bundle.path) from error
        for left in bundle.path.glob(f"{_STAGING}*"):
            remove_tree(left)
        yield
    finally:
        os.close(fd)
