"""A runtime bundle on disk, in umoci's form: either tool can repack a bundle that the other unpacked."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BeforeValidator, Field, model_validator

from layerfarm.jobs.errors import BundleError, LimitExceeded, MalformedDocument, UnsafePath
from layerfarm.jobs.fs import Beneath, open_file
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.owners import IdMap, owner_in_image
from layerfarm.jobs.limits import limits
from layerfarm.jobs.mtree import Entry, read_full
from layerfarm.jobs.store import Descriptor, Document, encode_document, parse_document

ROOTFS_NAME = "rootfs"
CONFIG_NAME = "config.json"
META_NAME = "umoci.json"


class BundleIdMapping(Document):
    """A row of an id map (runtime-spec config-linux.md "User namespace mappings")."""

    container: int = Field(alias="containerID", ge=0, le=0xFFFFFFFF)
    host: int = Field(alias="hostID", ge=0, le=0xFFFFFFFF)
    size: int = Field(ge=0, le=0xFFFFFFFF)


def _null_if_empty(value: Any) -> Any:
    # umoci reads an empty list as a map that maps nothing; a missing map is null.
    return None if value == [] else value


_Rows = Annotated[list[BundleIdMapping] | None, BeforeValidator(_null_if_empty)]


class MapOptions(Document):
    """Mapping of the image's ids to the host's ids when the bundle was unpacked."""

    uid_mappings: _Rows = None
    gid_mappings: _Rows = None
    rootless: bool = False

    @classmethod
    def of(cls, uid_map: IdMap, gid_map: IdMap, rootless: bool) -> MapOptions:
        return cls(uid_mappings=_rows(uid_map), gid_mappings=_rows(gid_map), rootless=rootless)

    @property
    def uid_map(self) -> IdMap:
        return _id_map(self.uid_mappings)

    @property
    def gid_map(self) -> IdMap:
        return _id_map(self.gid_mappings)

    def as_in_image(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield a bundle's entries with the owners that a repack gives them: mapped back, or as rootless unpack noted.

        Raises:
            UnmappedId: the owner of a file is not in the id map.
        """
        if not (self.uid_mappings or self.gid_mappings or self.rootless):
            yield from entries
            return
        uids, gids = self.uid_map, self.gid_map
        for entry in entries:
            xattrs = entry.xattrs
            uid, gid, left = owner_in_image(entry.uid, entry.gid, xattrs or (), uids, gids, rootless=self.rootless)
            yield entry._replace(uid=uid, gid=gid, xattrs=left if xattrs else xattrs)


def _rows(ids: IdMap) -> list[BundleIdMapping]:
    return [BundleIdMapping(containerID=container, hostID=host, size=size) for container, host, size in ids.ranges]


def _id_map(rows: list[BundleIdMapping] | None) -> IdMap:
    return IdMap.of(*((row.container, row.host, row.size) for row in rows or [] if row.size))


class DescriptorPath(Document):
    """The walk from index.json to the manifest of the bundle's image."""

    descriptor_walk: list[Descriptor] = Field(min_length=1)


class BundleMeta(Document):
    """``umoci.json``."""

    umoci_version: Literal["2"] = "2"
    from_descriptor_path: DescriptorPath
    map_options: MapOptions = Field(default_factory=MapOptions)

    @model_validator(mode="before")
    @classmethod
    def _refuse_whiteout_mode(cls, value: Any) -> Any:
        # Deprecated; anything but 0 is an overlayfs bundle, whose rootfs does not hold the whole tree.
        if isinstance(value, dict) and value.get("whiteout_mode", 0) != 0:
            raise ValueError("whiteout_mode is not 0, overlay bundles are not supported")
        return value


def mtree_name(digest: str) -> str:
    """Return umoci's name of the bundle's mtree manifest."""
    return f"{digest.replace(':', '_')}.mtree"


def extra_name(digest: str) -> str:
    """Return the name of the file for metadata that the mtree manifest cannot hold; umoci ignores it."""
    return f"{digest.replace(':', '_')}.layerfarm"


class Bundle:
    """An unpacked image. Made by :meth:`open`, or by :func:`layerfarm.jobs.image.unpack_manifest`."""

    def __init__(self, path: Path, meta: BundleMeta) -> None:
        self.path = path
        self.meta = meta

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open the bundle at ``path``.

        Raises:
            BundleError: there is none, it is incomplete, a part of it is a link, or it is of another version.
        """
        files = Beneath(path)
        try:
            raw = files.read(path / META_NAME, limits().document_bytes + 1)
        except UnsafePath as error:
            raise BundleError(error.what, where=path / META_NAME) from error
        except OSError as error:
            raise BundleError(
                f"not a bundle, {META_NAME} cannot be read, {error.strerror}", where=path, hint="unpack an image there"
            ) from error
        try:
            meta = parse_document(BundleMeta, raw, META_NAME)
        except (MalformedDocument, LimitExceeded) as error:
            raise BundleError(str(error), where=path) from error
        bundle = cls(path, meta)
        bundle._check(files)
        return bundle

    def _check(self, files: Beneath) -> None:
        # Through a link, the bundle's author would choose what is packed, reverted or quoted in an error.
        for part in (self.rootfs, self.mtree):
            if part.is_symlink():
                raise BundleError("part of the bundle is a symbolic link", where=part)
        if not files.is_directory(self.rootfs):
            raise BundleError(f"bundle has no {ROOTFS_NAME}", where=self.path)
        if not files.is_file(self.mtree):
            raise BundleError(f"bundle has no {self.mtree.name}", where=self.path, hint="unpack the image again")

    @property
    def walk(self) -> list[Descriptor]:
        """From index.json to the manifest that was unpacked, or last repacked with a refresh."""
        return self.meta.from_descriptor_path.descriptor_walk

    @property
    def rootfs(self) -> Path:
        return self.path / ROOTFS_NAME

    @property
    def mtree(self) -> Path:
        """The tree as it was unpacked."""
        return self.path / mtree_name(self.walk[-1].digest)

    @property
    def extra(self) -> Path:
        """Metadata that the mtree manifest cannot hold; umoci's bundles have none."""
        return self.path / extra_name(self.walk[-1].digest)

    @property
    def stat_cache(self) -> Path:
        """The stat cache of the rootfs (:mod:`layerfarm.jobs.mtree.stat_cache`); umoci's bundles have none."""
        return self.mtree.with_suffix(".stat")

    def baseline(self) -> Iterator[Entry]:
        """Return the tree as it was unpacked, or last repacked with a refresh, in mtree order; also umoci's bundles.

        Raises:
            BundleError: the mtree manifest cannot be opened.
            MtreeSyntaxError: while reading, it does not parse.
        """
        return open_baseline(self.mtree, self.extra)

    def refresh(self, image: Resolved, manifest: Path, extra: Path, stat_cache: Path | None = None) -> Bundle:
        """Make this a bundle of ``image``, which was just made from it, so that the next repack starts there.

        ``manifest``, ``extra`` and ``stat_cache`` describe the tree as it is now; they are copied.

        Raises:
            OSError: the bundle cannot be written.
        """
        walk = DescriptorPath(descriptor_walk=list(image.path))
        new = Bundle(self.path, self.meta.model_copy(update={"from_descriptor_path": walk}))
        for source, target in ((manifest, new.mtree), (extra, new.extra), (stat_cache, new.stat_cache)):
            if source is not None:
                with open_file(source) as content:
                    new._replace(target, content)
        # umoci.json decides which manifest counts: it is written after the new files, before the old ones are removed.
        new._replace(new.path / META_NAME, io.BytesIO(encode_document(new.meta) + b"\n"))
        if new.mtree != self.mtree:
            for old in (self.mtree, self.extra, self.stat_cache):
                old.unlink(missing_ok=True)
        return new

    def _replace(self, path: Path, content: BinaryIO) -> None:
        """Replace a file of the bundle atomically.

        Raises:
            OSError: the bundle cannot be written.
        """
        files = Beneath(self.path)
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        try:
            with os.fdopen(files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
            files.rename(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                files.unlink(temporary)
            raise


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
