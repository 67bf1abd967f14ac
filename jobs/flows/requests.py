"""The typed requests and results of every flow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows.base import Model, Request, Result
from layerfarm.jobs.image.documents import SECONDS, is_timestamp, names_root

__all__ = [
    "ImageRef",
    "IdMapping",
    "HistoryOptions",
    "LayerOptions",
    "BuildRequest",
    "RepackRequest",
    "UnpackRequest",
    "ImageResult",
    "UnpackResult",
]


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("path must be absolute, workers have their own working directory")
    if "\0" in str(path):
        raise ValueError("path holds a NUL byte")
    return path


def _below_root(path: str) -> str:
    if names_root(path):
        raise ValueError("path to mask is empty or the root, and nothing would be packed")
    return path


def _rfc3339(text: str) -> str:
    if not is_timestamp(text):
        raise ValueError("not an RFC 3339 time, write 2006-01-02T15:04:05Z")
    return text


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
MaskPath = Annotated[str, AfterValidator(_below_root)]
Timestamp = Annotated[str, AfterValidator(_rfc3339)]
CompressionChoice = Literal["auto", "gzip", "estargz", "zstd", "zstd:chunked", "none"]
Prefetch = Annotated[list[str], Field(max_length=10_000)]
"""Paths in the image that clients of eStargz fetch before they are read, in this order; only for ``estargz``."""


class ImageRef(Model):
    """An image in a layout: the layout's directory and a tag."""

    store: AbsolutePath
    tag: str = "latest"

    @classmethod
    def parse(cls, text: str) -> ImageRef:
        """Parse ``path[:tag]``; the path ends at the first ``:`` (umoci.md A).

        A relative path is taken from the current directory.

        Raises:
            RequestError: the path is empty.
        """
        path, colon, tag = text.partition(":")
        if not path:
            raise RequestError("image reference has no path", where=text, hint="write PATH[:TAG]")
        if colon and not tag:
            raise RequestError("image reference has an empty tag", where=text, hint="write PATH[:TAG]")
        return cls(store=Path(path).absolute(), tag=tag or "latest")

    def __str__(self) -> str:
        return f"{self.store}:{self.tag}"


class IdMapping(Model):
    """Map ``size`` ids from ``container`` on to ids of the host from ``host`` on."""

    container: int = Field(ge=0, le=0xFFFFFFFF)
    host: int = Field(ge=0, le=0xFFFFFFFF)
    size: int = Field(default=1, ge=1, le=0xFFFFFFFF)


class HistoryOptions(Model):
    """The history entry of a new layer (image-spec config.md "history")."""

    omit: bool = False
    """Write no history entry at all (umoci's ``--no-history``)."""
    author: str | None = None
    comment: str | None = None
    created: Timestamp | None = None
    """RFC 3339. Default: the job's ``source_date_epoch``, else the newest mtime of the changed entries."""
    created_by: str | None = None


Epoch = Annotated[int, Field(ge=SECONDS.start, lt=SECONDS.stop)]
"""Seconds since 1970, in the range that a document can express."""


class LayerOptions(Model):
    """Options of a new layer; shared by every flow that writes one."""

    compress: CompressionChoice = "auto"
    """``auto``: that of the newest compressed layer below, else gzip."""
    level: int | None = None
    """Compression level of the chosen codec; None: layerfarm's default."""
    prefetch: Prefetch = []
    history: HistoryOptions = HistoryOptions()
    source_date_epoch: Epoch | None = None
    """Seconds; mtimes newer than it are clamped to it (umoci.md B1.4)."""


class BuildRequest(Request):
    """Make an image of a directory, on top of a base image if one is given."""

    kind = "build"

    rootfs: AbsolutePath
    image: ImageRef
    base: ImageRef | None = None
    platform: str | None = None
    """``os/arch[/variant]``, if the base is an index of several."""
    layer: LayerOptions = LayerOptions()
    mask_paths: list[MaskPath] = []
    """Absolute paths inside the rootfs whose changes are omitted."""

    @model_validator(mode="after")
    def _platform_is_of_a_base(self) -> BuildRequest:
        if self.platform is not None and self.base is None:
            raise ValueError("platform selects an image of the base, but there is no base")
        return self


class RepackRequest(Request):
    """Pack the changes in a bundle as a layer, and set a tag."""

    kind = "repack"

    bundle: AbsolutePath
    image: ImageRef
    layer: LayerOptions = LayerOptions()
    mask_paths: list[MaskPath] = []
    mask_volumes: bool = True
    refresh_bundle: bool = False
    stat_cache: bool = True
    """Read only files touched since the bundle was made; False: all of them."""


class UnpackRequest(Request):
    """Turn an image into a runtime bundle."""

    kind = "unpack"

    image: ImageRef
    bundle: AbsolutePath
    uid_map: list[IdMapping] = []
    gid_map: list[IdMapping] = []
    rootless: bool = False
    keep_dirlinks: bool = False
    volumes: Literal["tmpfs", "none"] = "tmpfs"
    """Mounts over the image's volumes in config.json: an empty tmpfs, as in umoci, or nothing."""
    platform: str | None = None
    """``os/arch[/variant]``, if the tag is an index of several."""


class ImageResult(Result):
    """A build or a repack. ``layer`` and ``diff_id`` are None if nothing had changed."""

    image: str
    manifest: str
    """Digest of the image manifest."""
    config: str
    layer: str | None
    layer_size: int
    """Compressed bytes."""
    diff_id: str | None
    mtree: str
    """``sha256:`` digest of the tree's mtree manifest."""
    entries: int
    """Entries of the tree."""
    deltas: int
    """Paths that differ from the base."""
    warnings: list[str] = []


class UnpackResult(Result):
    """An unpacked bundle."""

    bundle: str
    manifest: str
    layers: int
    entries: int
    mtree: str
    """``sha256:`` digest of the bundle's mtree manifest."""
    warnings: list[str] = []
