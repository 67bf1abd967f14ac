"""Tar archives for tests, written and read by Python's tarfile: an implementation that is not ours."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from layerfarm.jobs.layer import ExtractOptions, Extractor, GenerateOptions, generate_layer
from layerfarm.jobs.mtree.model import Delta, DeltaKind, Entry

TYPES = {
    "file": tarfile.REGTYPE,
    "hardlink": tarfile.LNKTYPE,
    "link": tarfile.SYMTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "dir": tarfile.DIRTYPE,
    "fifo": tarfile.FIFOTYPE,
}
MTIME = 1_400_000_000
Metadata = tuple[int, int, int, float, dict[str, str]]
"""Mode, uid, gid, mtime and xattrs of an entry."""


def entry(
    name: str | bytes,
    type_: str | bytes = "file",
    content: bytes = b"",
    *,
    mode: int | None = None,
    uid: int = 0,
    gid: int = 0,
    mtime: float = MTIME,
    link: str | bytes = "",
    device: tuple[int, int] = (0, 0),
    pax: Mapping[str, str] | None = None,
    xattrs: Mapping[str, bytes] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    """One member; ``type_`` a name of TYPES or a raw type flag."""
    info = tarfile.TarInfo(os.fsdecode(name))
    info.type = TYPES[type_] if isinstance(type_, str) else type_
    info.mode = (0o755 if type_ == "dir" else 0o644) if mode is None else mode
    info.uid, info.gid, info.mtime = uid, gid, mtime
    info.linkname = os.fsdecode(link)
    info.devmajor, info.devminor = device
    info.size = len(content)
    info.pax_headers = dict(pax or {})
    for key, value in (xattrs or {}).items():
        info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    return info, content


def archive(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """The members as one archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def apply(root: Path, *layers: bytes, options: ExtractOptions | None = None) -> list[str]:
    """Apply layers to an existing directory; the warnings."""
    with Extractor(root, options) as extractor:
        for layer in layers:
            extractor.apply(io.BytesIO(layer))
        extractor.finish()
        return extractor.warnings


def applied_entries(root: Path, *layers: bytes, options: ExtractOptions | None = None) -> list[Entry]:
    """Apply layers to an empty directory; what the extractor says is there."""
    with Extractor(root, options) as extractor:
        for layer in layers:
            extractor.apply(io.BytesIO(layer))
        extractor.finish()
        return list(extractor.entries())


def generate(root: Path, deltas: Iterable[Delta], **options: object) -> bytes:
    return b"".join(generate_layer(root, deltas, GenerateOptions(**options)))  # type: ignore[arg-type]


def extra(*paths: str | bytes) -> list[Delta]:
    return [Delta(DeltaKind.EXTRA, os.fsencode(path)) for path in paths]


def modified(*paths: str | bytes) -> list[Delta]:
    return [Delta(DeltaKind.MODIFIED, os.fsencode(path)) for path in paths]


def missing(*paths: str | bytes) -> list[Delta]:
    return [Delta(DeltaKind.MISSING, os.fsencode(path)) for path in paths]


def members(layer: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer), encoding="utf-8", errors="surrogateescape") as tar:
        return tar.getmembers()


def links_beside_their_inodes(layer: bytes) -> list[tuple[Metadata, Metadata]]:
    """For each hard link of a layer, in its order: the metadata that its entry gives, and that of its target's."""
    read = {info.name: info for info in members(layer)}
    return [(_metadata(info), _metadata(read[info.linkname])) for info in read.values() if info.islnk()]


def _metadata(info: tarfile.TarInfo) -> Metadata:
    xattrs = {key: value for key, value in info.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    return info.mode, info.uid, info.gid, info.mtime, xattrs


def names(layer: bytes) -> list[str]:
    return [info.name + ("/" if info.isdir() and info.name != "." else "") for info in members(layer)]
