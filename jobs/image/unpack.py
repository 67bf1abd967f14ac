"""An image becomes a runtime bundle, whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from layerfarm.jobs.compress import compression_of
from layerfarm.jobs.errors import BundleError, BundleExists
from layerfarm.jobs.fs import HOST_XATTRS, clear_xattrs, get_xattrs, set_xattr
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.image.bundle import (
    CONFIG_NAME,
    META_NAME,
    ROOTFS_NAME,
    Bundle,
    BundleIdMapping,
    BundleMeta,
    DescriptorPath,
    MapOptions,
    extra_name,
    mtree_name,
    stat_cache_name,
)
from layerfarm.jobs.image.documents import ConfigSection
from layerfarm.jobs.image.layers import foreseen, open_layer, other_compression
from layerfarm.jobs.image.repack import open_bundle_baseline
from layerfarm.jobs.image.resolve import Resolved, resolve_walk
from layerfarm.jobs.image.runtime_config import RuntimeOptions, Volumes, encode_runtime_config, runtime_config
from layerfarm.jobs.image.trees import write_tree_and_digest
from layerfarm.jobs.image.users import lookup_user
from layerfarm.jobs.layer import ExtractOptions, Extractor, IdMap
from layerfarm.jobs.layer.foresight import Foresight
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.mtree import Entry, Walk, next_tick, write_stat_cache
from layerfarm.jobs.mtree.model import Xattrs
from layerfarm.jobs.mtree.walk_beside import walked_beside
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.store import Descriptor, Layout, encode_document


def _nothing(_: object) -> None:
    pass


@dataclass(frozen=True)
class UnpackOptions:
    """How an image is unpacked."""

    uid_map: IdMap = field(default_factory=IdMap)
    gid_map: IdMap = field(default_factory=IdMap)
    rootless: bool = False
    keep_dirlinks: bool = False
    volumes: Volumes = "tmpfs"
    """What config.json does with the image's volumes."""
    content_wanted: Callable[[bytes], bool] | None = None
    """Told a file's path; where it says no the file stays empty (:func:`extracted` only)."""
    limits: Limits = field(default_factory=process_limits)
    advanced: Callable[[int], None] = _nothing
    """Told the number of compressed bytes that were read since the last call; may raise to stop."""
    warn: Callable[[str], None] = _nothing


@dataclass(frozen=True)
class UnpackedBundle:
    """What :func:`unpack_manifest` made."""

    bundle: Bundle
    layers: int
    count: int
    """Entries of the tree."""
    mtree: str
    """``sha256:`` digest of the tree's manifest, free of what is the filesystem's affair
    (:func:`layerfarm.jobs.image.trees.portable`): equal for the tree that was packed and for this copy."""
    warnings: list[str]

    def entries(self) -> Iterator[Entry]:
        """The tree as it was unpacked, in mtree order, read back from the bundle."""
        return open_bundle_baseline(self.bundle)


def unpack_manifest(
    store: Layout, bundle: Path, manifest: Resolved | Descriptor, options: UnpackOptions = UnpackOptions()
) -> UnpackedBundle:
    """Unpack an image into the directory ``bundle``: rootfs, config.json, mtree manifest, umoci.json.

    All or nothing: on any error what was made is removed, and a directory that was there is left as it
    was found. The bundle's mode is 0700, so that other users cannot reach setuid files and devices in it.

    Raises:
        BundleExists: the directory holds a part of a bundle already.
        DigestMismatch, SizeMismatch, BlobNotFound: the image is corrupt or incomplete, diff_ids included.
        LayerError, LimitExceeded: a layer cannot be applied.
        ImageConfigError: the image's config makes no runtime config.
    """
    image = manifest if isinstance(manifest, Resolved) else resolve_walk(store, (manifest,))
    meta = BundleMeta(
        from_descriptor_path=DescriptorPath(descriptor_walk=list(image.path)),
        map_options=MapOptions(
            uid_mappings=_rows(options.uid_map), gid_mappings=_rows(options.gid_map), rootless=options.rootless
        ),
    )
    digest = image.descriptor.digest
    made = (META_NAME, CONFIG_NAME, mtree_name(digest), extra_name(digest), stat_cache_name(digest), _WALK)
    with (
        _bundle_directory(bundle, made),
        extracted(store, image, bundle / ROOTFS_NAME, options) as extractor,
    ):
        section = image.config.config or ConfigSection()
        user = lookup_user(bundle / ROOTFS_NAME, section.user or "")
        maps = meta.map_options
        runtime = RuntimeOptions(maps.uid_mappings or [], maps.gid_mappings or [], options.rootless, options.volumes)
        spec = encode_runtime_config(runtime_config(image.config, user, runtime))
        rootfs, clock = bundle / ROOTFS_NAME, next_tick(bundle)
        with walked_beside(rootfs, bundle / _WALK, clock, entries=extractor.count) as walk:
            with _new_file(bundle / mtree_name(digest)) as out, _new_file(bundle / extra_name(digest)) as extra:
                count, mtree = write_tree_and_digest(extractor.entries(), out, extra)
            _write_stat_cache(Bundle(bundle, meta), walk(), count, mtree)
        with _new_file(bundle / CONFIG_NAME) as out:
            out.write(spec)
        # Last: with it the directory is a bundle.
        with _new_file(bundle / META_NAME) as out:
            out.write(encode_document(meta) + b"\n")
    return UnpackedBundle(Bundle(bundle, meta), len(image.manifest.layers), count, mtree, list(extractor.warnings))


_WALK = ".walk"


def _write_stat_cache(bundle: Bundle, walk: Walk | None, count: int, tree: str) -> None:
    """Remember what lstat says of each entry, so that a repack need not read it again.

    There is no ``walk`` where an ordinary user cannot look into every directory that she may own.
    """
    walk_file = bundle.path / _WALK
    if walk is not None and walk.entries == count:
        with _new_file(bundle.stat_cache) as out:
            write_stat_cache(out, walk_file, walk, bundle.mtree, bundle.extra, tree)
    walk_file.unlink()


def unpack_rootfs(
    store: Layout, rootfs: Path, manifest: Resolved | Descriptor, options: UnpackOptions = UnpackOptions()
) -> list[str]:
    """Only the tree, into the directory ``rootfs``, which may exist: ``raw unpack``. Returns warnings.

    An existing directory stays the same one, so that it may be a mount point; its owner becomes the container's root
    and its mode stays, unless a layer has an entry for the root. Layers are applied over what it holds, as umoci does.
    On any error a new directory is removed and an empty one is restored; one that held something keeps what the
    layers have made of it until then.

    Raises:
        BundleExists: something that is no directory is at ``rootfs``.
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
    """All layers of ``image`` applied to the new directory ``rootfs``, which is removed on any error.

    Without ``hash_content`` the extractor's entries have no digests. With ``may_exist`` the directory need not be new
    (:func:`unpack_rootfs`).

    Raises:
        BundleExists: something is at ``rootfs``.
        BundleError: the directory that is to hold it does not exist or cannot be written.
    """
    found = open_target(rootfs) if may_exist else None
    if found is None:
        _make_rootfs(rootfs)
    try:
        _give_to_container_root(rootfs, options)
        with (
            foreseen(store, image, options.limits) if found is None or found.empty else nullcontext() as foresight,
            Extractor(rootfs, _extract_options(options, hash_content, foresight)) as extractor,
        ):
            for descriptor, diff_id in image.layers:
                _apply(store, extractor, descriptor, diff_id, options)
            for number in extractor.left_out():
                _write_left_out(store, extractor, number, image, options)
            extractor.finish()
            yield extractor
    except BaseException:
        if found is None:
            remove_tree(rootfs)
        elif found.empty:
            found.restore()
        raise


def _apply(store: Layout, extractor: Extractor, descriptor: Descriptor, diff_id: str, options: UnpackOptions) -> None:
    with open_layer(store, descriptor, diff_id, options.advanced, options.limits) as stream:
        if stream.compression is not compression_of(descriptor.media_type):
            extractor.warn(other_compression(descriptor, stream.compression))
        extractor.apply(stream)


def _write_left_out(store: Layout, extractor: Extractor, number: int, image: Resolved, options: UnpackOptions) -> None:
    """Read a layer a second time, for files that its upper layers seemed to replace and did not."""
    descriptor, diff_id = image.layers[number - 1]
    # Its bytes are in the progress already; the call remains, as it may stop the work.
    with open_layer(store, descriptor, diff_id, lambda _: options.advanced(0), options.limits) as stream:
        extractor.write_left_out(number, stream)


def _make_rootfs(rootfs: Path) -> None:
    try:
        rootfs.mkdir(mode=0o755)
        os.chmod(rootfs, 0o755)  # whatever the umask (DESIGN law 1)
    except FileExistsError as error:
        raise BundleExists("something is here already", where=rootfs) from error
    except OSError as error:
        raise BundleError(f"cannot be created, {error.strerror}", where=rootfs) from error


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
            f"cannot be given to its owner, {error.strerror}",
            where=rootfs,
            hint="owners can only be restored by root; others unpack with --rootless",
        ) from error


@contextmanager
def _bundle_directory(bundle: Path, made: tuple[str, ...]) -> Iterator[None]:
    """The directory to unpack into, put back on any error."""
    try:
        bundle.mkdir(mode=0o700)
        found = None
    except FileExistsError:
        if not is_directory(bundle):
            raise BundleExists("something that is no directory is here already", where=bundle) from None
        found = bundle.stat()
    except OSError as error:
        raise BundleError(f"bundle cannot be created, {error.strerror}", where=bundle) from error
    for name in (ROOTFS_NAME, *made):
        if os.path.lexists(bundle / name):
            raise BundleExists(f"the bundle holds a {name} already", where=bundle, hint="choose another directory")
    try:
        os.chmod(bundle, 0o700)
        yield
    except BaseException as error:
        for name in made:
            (bundle / name).unlink(missing_ok=True)
        if found is None:
            bundle.rmdir()
        else:
            os.chmod(bundle, found.st_mode & 0o7777)
            os.utime(bundle, ns=(found.st_atime_ns, found.st_mtime_ns))
        if isinstance(error, OSError):
            raise BundleError(f"bundle cannot be written, {error.strerror}", where=bundle) from error
        raise


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    with path.open("x+b", buffering=1 << 20) as out:
        yield out


def _extract_options(options: UnpackOptions, hash_content: bool, foresight: Foresight | None) -> ExtractOptions:
    return ExtractOptions(
        uid_map=options.uid_map,
        gid_map=options.gid_map,
        rootless=options.rootless,
        keep_dirlinks=options.keep_dirlinks,
        hash_content=hash_content,
        content_wanted=options.content_wanted,
        doomed=None if foresight is None else foresight.dooms,
        limits=options.limits,
        warn=options.warn,
    )


def _rows(ids: IdMap) -> list[BundleIdMapping]:
    return [BundleIdMapping(containerID=container, hostID=host, size=size) for container, host, size in ids.ranges]


@dataclass(frozen=True)
class Target:
    """The directory as it was found."""

    path: Path
    empty: bool
    _stat: os.stat_result
    _xattrs: Xattrs

    def restore(self) -> None:
        """Empty the directory and restore its metadata as far as the process may; for one that was empty."""
        for left in os.listdir(self.path):
            remove_tree(self.path / left)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                os.fchown(fd, self._stat.st_uid, self._stat.st_gid)
            if get_xattrs(fd) != self._xattrs:
                with suppress(OSError):
                    clear_xattrs(fd, HOST_XATTRS.union(name for name, _ in self._xattrs))
                for name, value in self._xattrs:
                    with suppress(OSError):
                        set_xattr(fd, name, value)
            with suppress(OSError):
                os.fchmod(fd, stat.S_IMODE(self._stat.st_mode))
                os.utime(fd, ns=(self._stat.st_atime_ns, self._stat.st_mtime_ns))
        finally:
            os.close(fd)


def open_target(path: Path) -> Target | None:
    """The directory at ``path``; None: nothing is there.

    Raises:
        BundleExists: something that is no directory is there.
        BundleError: the directory cannot be read.
    """
    if not os.path.lexists(path):
        return None
    if not is_directory(path):
        raise BundleExists("something that is no directory is here already", where=path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"directory cannot be read, {error.strerror}", where=path) from error
    try:
        return Target(path, not os.listdir(fd), os.fstat(fd), get_xattrs(fd))
    finally:
        os.close(fd)
