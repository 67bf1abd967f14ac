"""Unpack an image into a runtime bundle, or its tree only, all or nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from layerfarm.jobs.errors import BundleError, BundleExists
from layerfarm.jobs.fs import HOST_XATTRS, clear_xattrs, get_xattrs, set_xattr
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.image.bundle import (
    CONFIG_NAME,
    META_NAME,
    Bundle,
    BundleMeta,
    DescriptorPath,
    MapOptions,
)
from layerfarm.jobs.image.documents import ConfigSection
from layerfarm.jobs.image.layers import Advanced, look_ahead, open_layer, other_compression, unheard
from layerfarm.jobs.image.resolve import Resolved, resolve_walk
from layerfarm.jobs.image.runtime_config import Volumes, encode_runtime_config, runtime_config
from layerfarm.jobs.image.trees import write_tree_and_digest
from layerfarm.jobs.image.users import lookup_user
from layerfarm.jobs.layer import ExtractOptions, Extractor, IdMap
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.mtree import Digests, Entry, Walk, next_tick, sha256_of, write_stat_cache
from layerfarm.jobs.mtree.model import Xattrs
from layerfarm.jobs.mtree.walk_process import walking
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.store import Descriptor, Layout, encode_document

__all__ = ["UnpackOptions", "UnpackedBundle", "unpack_manifest"]


@dataclass(frozen=True)
class UnpackOptions:
    """Options of unpacking."""

    uid_map: IdMap = field(default_factory=IdMap)
    gid_map: IdMap = field(default_factory=IdMap)
    rootless: bool = False
    keep_dirlinks: bool = False
    volumes: Volumes = "tmpfs"
    """Mounts of the image's volumes in config.json."""
    content_wanted: Callable[[bytes], bool] | None = None
    """Called with a file's path; if it returns False the file stays empty (:func:`extracted` only)."""
    limits: Limits = field(default_factory=process_limits)
    advanced: Advanced = unheard
    warn: Callable[[str], None] | None = None


@dataclass(frozen=True)
class UnpackedBundle:
    """The result of :func:`unpack_manifest`."""

    bundle: Bundle
    layers: int
    count: int
    """Entries of the tree."""
    mtree: str
    """``sha256:`` digest of the tree's manifest in its :func:`~layerfarm.jobs.image.trees.portable` form: the same for
    the tree that was packed and for this copy."""
    warnings: list[str]

    def entries(self) -> Iterator[Entry]:
        """Yield the tree as it was unpacked, in mtree order, read back from the bundle."""
        return self.bundle.baseline()


_WALK = ".walk"


def unpack_manifest(
    store: Layout, bundle: Path, manifest: Resolved | Descriptor, options: UnpackOptions = UnpackOptions()
) -> UnpackedBundle:
    """Unpack an image into the directory ``bundle``: rootfs, config.json, mtree manifest, umoci.json.

    On any error everything is removed, and a directory that existed is left as it was found. The bundle's mode is
    0700, so that other users cannot reach setuid files and devices in it.

    Raises:
        BundleExists: the directory holds a part of a bundle already.
        DigestMismatch, SizeMismatch, BlobNotFound: the image is corrupt or incomplete, diff_ids included.
        LayerError, LimitExceeded: a layer cannot be applied.
        ImageConfigError: the image's config cannot be converted to a runtime config.
    """
    image = manifest if isinstance(manifest, Resolved) else resolve_walk(store, (manifest,))
    maps = MapOptions.of(options.uid_map, options.gid_map, options.rootless)
    walk = DescriptorPath(descriptor_walk=list(image.path))
    made = Bundle(bundle, BundleMeta(from_descriptor_path=walk, map_options=maps))
    with (
        _bundle_directory(made),
        extracted(store, image, made.rootfs, options) as extractor,
    ):
        user = lookup_user(made.rootfs, (image.config.config or ConfigSection()).user or "")
        spec = encode_runtime_config(runtime_config(image.config, user, maps, options.volumes))
        clock = next_tick(bundle)
        with walking(made.rootfs, bundle / _WALK, clock, entries=extractor.count) as walked:
            with _new_file(made.mtree) as out, _new_file(made.extra) as extra:
                count, mtree = write_tree_and_digest(extractor.entries(), out, extra)
            _write_stat_cache(made, walked(), count, mtree)
        with _new_file(bundle / CONFIG_NAME) as out:
            out.write(spec)
        # Last: it makes the directory a bundle.
        with _new_file(bundle / META_NAME) as out:
            out.write(encode_document(made.meta) + b"\n")
    return UnpackedBundle(made, len(image.manifest.layers), count, mtree, list(extractor.warnings))


def _write_stat_cache(bundle: Bundle, walk: Walk | None, count: int, tree: str) -> None:
    """Record the lstat of each entry, so that a repack need not read unchanged files.

    ``walk`` is None if an ordinary user cannot enter all of the user's own directories.
    """
    walk_file = bundle.path / _WALK
    if walk is not None and walk.entries == count:
        digests = Digests(sha256_of(walk_file), sha256_of(bundle.mtree), sha256_of(bundle.extra), tree)
        with _new_file(bundle.stat_cache) as out:
            write_stat_cache(out, walk_file, walk, digests)
    walk_file.unlink()


def _new_file(path: Path) -> BinaryIO:
    return path.open("x+b", buffering=1 << 20)


@contextmanager
def _bundle_directory(bundle: Bundle) -> Iterator[None]:
    """Yield the directory to unpack into, restored on any error."""
    path = bundle.path
    try:
        path.mkdir(mode=0o700)
        found = None
    except FileExistsError:
        if not is_directory(path):
            raise BundleExists("path exists and is not a directory", where=path) from None
        found = path.stat()
    except OSError as error:
        raise BundleError(f"bundle cannot be created, {error.strerror}", where=path) from error
    files = [path / META_NAME, path / CONFIG_NAME, bundle.mtree, bundle.extra, bundle.stat_cache, path / _WALK]
    for part in (bundle.rootfs, *files):
        if os.path.lexists(part):
            raise BundleExists(f"directory already holds a {part.name}", where=path, hint="choose another directory")
    try:
        os.chmod(path, 0o700)
        yield
    except BaseException as error:
        for file in files:
            file.unlink(missing_ok=True)
        if found is None:
            path.rmdir()
        else:
            os.chmod(path, stat.S_IMODE(found.st_mode))
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        if isinstance(error, OSError):
            raise BundleError(f"bundle cannot be written, {error.strerror}", where=path) from error
        raise


# --- the tree only ---------------------------------------------------------------------------------


def unpack_rootfs(
    store: Layout, rootfs: Path, manifest: Resolved | Descriptor, options: UnpackOptions = UnpackOptions()
) -> list[str]:
    """Unpack only the tree into the directory ``rootfs``, which may exist: ``raw unpack``. Return warnings.

    An existing directory is kept, as it may be a mount point; its owner becomes the container's root and its mode
    stays, unless a layer has an entry for the root. Layers are applied over its content, as in umoci. On any error a
    new directory is removed and an empty one is restored; a non-empty one keeps what the layers wrote.

    Raises:
        BundleExists: ``rootfs`` exists and is not a directory.
        LayerfarmError: as :func:`unpack_manifest`.
    """
    image = manifest if isinstance(manifest, Resolved) else resolve_walk(store, (manifest,))
    place = rootfs.resolve() if is_directory(rootfs) else rootfs
    with extracted(store, image, place, options, hash_content=False, may_exist=True) as extractor:
        pass
    return list(extractor.warnings)


@contextmanager
def extracted(
    store: Layout,
    image: Resolved,
    rootfs: Path,
    options: UnpackOptions = UnpackOptions(),
    *,
    hash_content: bool = True,
    may_exist: bool = False,
) -> Iterator[Extractor]:
    """Apply all layers of ``image`` to the new directory ``rootfs``, which is removed on any error.

    Without ``hash_content`` the extractor's entries have no digests. With ``may_exist`` the directory need not be new
    (:func:`unpack_rootfs`).

    Raises:
        BundleExists: ``rootfs`` exists.
        BundleError: its parent directory does not exist or cannot be written.
    """
    found = _open_target(rootfs) if may_exist else None
    if found is None:
        _make_rootfs(rootfs)
    try:
        _give_to_container_root(rootfs, options)
        with look_ahead(store, image, options.limits) if found is None or found.empty else nullcontext() as ahead:
            extract = ExtractOptions(
                uid_map=options.uid_map,
                gid_map=options.gid_map,
                rootless=options.rootless,
                keep_dirlinks=options.keep_dirlinks,
                hash_content=hash_content,
                content_wanted=options.content_wanted,
                skip=None if ahead is None else ahead.replaces,
                limits=options.limits,
                warn=options.warn,
            )
            with Extractor(rootfs, extract) as extractor:
                _apply_layers(store, extractor, image, options)
                yield extractor
    except BaseException:
        if found is None:
            remove_tree(rootfs)
        elif found.empty:
            found.restore()
        raise


def _apply_layers(store: Layout, extractor: Extractor, image: Resolved, options: UnpackOptions) -> None:
    for descriptor, diff_id in image.layers:
        with open_layer(store, descriptor, diff_id, options.advanced, options.limits) as stream:
            if warning := other_compression(stream, descriptor):
                extractor.warn(warning)
            extractor.apply(stream)
    for number in extractor.skipped():
        # Read a layer again for files that upper layers seemed to replace but did not.
        descriptor, diff_id = image.layers[number - 1]
        with open_layer(store, descriptor, diff_id, lambda nbytes: options.advanced(0), options.limits) as stream:
            extractor.write_skipped(number, stream)
    extractor.finish()


def _make_rootfs(rootfs: Path) -> None:
    try:
        rootfs.mkdir(mode=0o755)
        os.chmod(rootfs, 0o755)  # whatever the umask (law 1, docs/architecture.md)
    except FileExistsError as error:
        raise BundleExists("path already exists", where=rootfs) from error
    except OSError as error:
        raise BundleError(f"directory cannot be created, {error.strerror}", where=rootfs) from error


def _give_to_container_root(rootfs: Path, options: UnpackOptions) -> None:
    try:
        if not options.rootless:
            owner = (options.uid_map.to_host(0), options.gid_map.to_host(0))
            found = rootfs.stat()
            if owner != (found.st_uid, found.st_gid):
                os.chown(rootfs, *owner)
        os.utime(rootfs, ns=(0, 0))
    except OSError as error:
        raise BundleError(
            f"owner of the directory cannot be set, {error.strerror}",
            where=rootfs,
            hint="only root can restore owners; other users unpack with --rootless",
        ) from error


@dataclass(frozen=True)
class _Target:
    """An existing target directory, as it was found."""

    path: Path
    empty: bool
    stat: os.stat_result
    xattrs: Xattrs

    def restore(self) -> None:
        """Empty the directory, which was empty before, and restore its metadata as far as the process may."""
        for left in os.listdir(self.path):
            remove_tree(self.path / left)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                os.fchown(fd, self.stat.st_uid, self.stat.st_gid)
            if get_xattrs(fd) != self.xattrs:
                with suppress(OSError):
                    clear_xattrs(fd, HOST_XATTRS.union(name for name, _ in self.xattrs))
                for name, value in self.xattrs:
                    with suppress(OSError):
                        set_xattr(fd, name, value)
            with suppress(OSError):
                os.fchmod(fd, stat.S_IMODE(self.stat.st_mode))
                os.utime(fd, ns=(self.stat.st_atime_ns, self.stat.st_mtime_ns))
        finally:
            os.close(fd)


def _open_target(path: Path) -> _Target | None:
    """Open the directory at ``path``; None: it does not exist.

    Raises:
        BundleExists: ``path`` exists and is not a directory.
        BundleError: the directory cannot be read.
    """
    if not os.path.lexists(path):
        return None
    if not is_directory(path):
        raise BundleExists("path exists and is not a directory", where=path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"directory cannot be read, {error.strerror}", where=path) from error
    try:
        return _Target(path, not os.listdir(fd), os.fstat(fd), get_xattrs(fd))
    finally:
        os.close(fd)
