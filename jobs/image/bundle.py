"""A runtime bundle on disk, as umoci lays it out, so that either tool can go on with the other's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from layerfarm.jobs.errors import BundleError, LimitExceeded, MalformedDocument
from layerfarm.jobs.limits import limits
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.store import Descriptor, Document, encode_document, parse_document

ROOTFS_NAME = "rootfs"
CONFIG_NAME = "config.json"
META_NAME = "umoci.json"


def _null_if_empty(value: Any) -> Any:
    # An empty list is to umoci a map that maps nothing; no map at all is null.
    return None if value == [] else value


class BundleIdMapping(Document):
    """A row of an id map, in runtime-spec's words (config-linux.md "User namespace mappings")."""

    container: int = Field(alias="containerID", ge=0, le=0xFFFFFFFF)
    host: int = Field(alias="hostID", ge=0, le=0xFFFFFFFF)
    size: int = Field(ge=0, le=0xFFFFFFFF)


_Rows = Annotated[list[BundleIdMapping] | None, BeforeValidator(_null_if_empty)]


class MapOptions(Document):
    """How ids of the image became ids of the host when the bundle was unpacked."""

    uid_mappings: _Rows = None
    gid_mappings: _Rows = None
    rootless: bool = False


class DescriptorPath(Document):
    """The walk from index.json to the manifest that the bundle is of."""

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
    """The name of the bundle's mtree manifest: that of umoci."""
    return f"{digest.replace(':', '_')}.mtree"


def extra_name(digest: str) -> str:
    """The name of the file that holds what the mtree manifest cannot; umoci takes no notice of it."""
    return f"{digest.replace(':', '_')}.layerfarm"


def stat_cache_name(digest: str) -> str:
    """The name of the stat cache of the rootfs (:mod:`layerfarm.jobs.mtree.statcache`); not known to umoci either."""
    return f"{digest.replace(':', '_')}.stat"


class Bundle:
    """An unpacked image. Made by :meth:`open`, or by :func:`layerfarm.jobs.image.unpack_manifest`."""

    def __init__(self, path: Path, meta: BundleMeta) -> None:
        self.path = path
        self.meta = meta

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """The bundle at ``path``.

        Raises:
            BundleError: there is none, it is not complete, or it is of another version.
        """
        try:
            with (path / META_NAME).open("rb") as stream:
                raw = stream.read(limits().document_bytes + 1)
        except OSError as error:
            raise BundleError(
                f"not a bundle, {META_NAME} cannot be read, {error.strerror}", where=path, hint="made by unpack?"
            ) from error
        try:
            meta = parse_document(BundleMeta, raw, META_NAME)
        except (MalformedDocument, LimitExceeded) as error:
            raise BundleError(str(error), where=path) from error
        bundle = cls(path, meta)
        if not is_directory(bundle.rootfs):
            raise BundleError(f"bundle has no {ROOTFS_NAME}", where=path)
        if not bundle.mtree.is_file():
            raise BundleError(f"bundle has no {bundle.mtree.name}", where=path, hint="unpack the image again")
        return bundle

    @property
    def walk(self) -> list[Descriptor]:
        """From index.json to the manifest that was unpacked, or last repacked with a refresh."""
        return self.meta.from_descriptor_path.descriptor_walk

    @property
    def rootfs(self) -> Path:
        return self.path / ROOTFS_NAME

    @property
    def mtree(self) -> Path:
        """What the tree was when it was unpacked."""
        return self.path / mtree_name(self.walk[-1].digest)

    @property
    def extra(self) -> Path:
        """What the mtree manifest could not record; umoci's bundles have none."""
        return self.path / extra_name(self.walk[-1].digest)

    @property
    def stat_cache(self) -> Path:
        """The stat cache of the rootfs; only bundles that layerfarm made have one."""
        return self.path / stat_cache_name(self.walk[-1].digest)

    def save(self) -> None:
        """Write umoci.json, in one step."""
        temporary = self.path / f".{META_NAME}.{os.getpid()}"
        temporary.write_bytes(encode_document(self.meta) + b"\n")
        temporary.rename(self.path / META_NAME)
