"""Check a layer without unpacking it: that it is a tar that can be applied, and its diff_id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from layerfarm.jobs.compress.estargz.check import EstargzCheck
from layerfarm.jobs.compress.estargz.marks import TOC_DIGEST
from layerfarm.jobs.compress.toc.check import Fault, ReadAt, TocCheck
from layerfarm.jobs.compress.zstd_chunked.check import ZstdChunkedCheck
from layerfarm.jobs.compress.zstd_chunked.places import CHECKSUM
from layerfarm.jobs.errors import LayerfarmError, MalformedLayer, display
from layerfarm.jobs.image.layers import Advanced, is_estargz, open_layer, other_compression, reading, unheard
from layerfarm.jobs.layer.names import OPAQUE, PREFIX, clean, whiteout_target
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.tar.reader import Member, MemberReader

MOST_FAULTS = 20
"""Most faults, and most warnings, that are kept of one layer."""
_KNOWN_TYPES = frozenset(b"0123456")
_HARDLINK = 0x31
_DIRECTORY = 0x35
_LINKS = frozenset(b"12")
_CONTRADICTION = "hard link gives its file another owner, mode or capability, which containerd and Docker apply"


@dataclass
class CheckedLayer:
    """The result of reading a layer. Faults and warnings are pairs: name of the tar entry, message."""

    diff_id: str = ""
    other_compression: str | None = None
    """Warning if the bytes are compressed otherwise than the media type says."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Entries that no reader can apply."""
    warnings: list[tuple[str, str]] = field(default_factory=list)
    """Entries that readers apply differently."""
    toc_faults: list[tuple[str, str]] = field(default_factory=list)
    """Differences between a layer and its table of contents: name or annotation, message."""


def check_layer(layout: Layout, layer: Descriptor, advanced: Advanced = unheard) -> CheckedLayer:
    """Read the blob to its end, verified, through the decompressor and the tar reader.

    Raises:
        BlobNotFound, DigestMismatch, SizeMismatch: the blob is missing or corrupt.
        LayerError, LimitExceeded: the stream is damaged, or larger than the limits.
    """
    checked = CheckedLayer()
    links = _HardLinks()
    with _open_toc(layout, layer, checked.toc_faults) as toc:
        with open_layer(layout, layer, None, advanced) as stream:
            checked.other_compression = other_compression(stream, layer)
            reader = MemberReader(stream, limits(), hide=False)
            for member in reader:
                if len(checked.warnings) < MOST_FAULTS and links.contradicts(member):
                    checked.warnings.append((display(member.name[:200]), _CONTRADICTION))
                if len(checked.faults) < MOST_FAULTS:
                    try:
                        _check_member(member)
                    except LayerfarmError as error:
                        checked.faults.append((display(member.name[:200]), error.what))
                if toc is not None:
                    toc.member(member, reader)
        checked.diff_id = stream.diff_id
        if toc is not None:
            toc.finish(checked.diff_id, stream.size)
    return checked


@contextmanager
def _open_toc(layout: Layout, layer: Descriptor, faults: list[tuple[str, str]]) -> Iterator[TocCheck | None]:
    """Yield the check of a layer's table of contents, which adds to ``faults``; None if it has none."""

    def fault(where: str, message: str) -> None:
        if len(faults) < MOST_FAULTS:
            faults.append((display(where[:200]), message))

    # closing: leaving the blob's own `with` would read all of it.
    with closing(layout.open_blob(layer)) as blob:
        yield toc_of(reading(blob), layer, fault)


def has_toc(layer: Descriptor) -> bool:
    """Return True if the annotations of a layer lead to a table of contents."""
    return not {CHECKSUM, TOC_DIGEST}.isdisjoint(layer.annotations or {})


def toc_of(read_at: ReadAt, layer: Descriptor, fault: Fault) -> TocCheck | None:
    """Read the table of contents of a layer; None: it has none."""
    annotations = layer.annotations or {}
    if CHECKSUM in annotations:
        return ZstdChunkedCheck(read_at, layer.size, annotations, fault)
    if TOC_DIGEST in annotations or is_estargz(read_at, layer):
        return EstargzCheck(read_at, layer.size, annotations, fault)
    return None


def _check_member(member: Member) -> None:
    """Raise for an entry that the extractor refuses whatever the layers below hold (umoci.md B2.2, B3.9, B4.5)."""
    if member.type not in _KNOWN_TYPES:
        raise MalformedLayer(f"tar entry of type {chr(member.type)!r}")
    parts = clean(member.name)
    if not parts and member.type != _DIRECTORY:
        raise MalformedLayer("the root of a layer must be a directory")
    if member.type in _LINKS:
        if not member.link or b"\0" in member.link:
            raise MalformedLayer("link has no target")
        if member.type == _HARDLINK and not clean(member.link):
            raise MalformedLayer("hard link to the root")
    for part in parts[:-1]:
        if part.startswith(PREFIX) and not part.startswith(b".wh..wh."):
            raise MalformedLayer("a directory cannot have a name that starts with .wh.")
    base = member.name.rstrip(b"/").rpartition(b"/")[2]
    if base.startswith(PREFIX) and base != OPAQUE:
        whiteout_target(base)


class _HardLinks:
    """Compares the entries of hard links with the entries of their files."""

    def __init__(self) -> None:
        self._files: dict[bytes, tuple[object, ...]] = {}
        """Owner, mode and capabilities by path, of the files that chown, chmod or setcap would change."""

    def contradicts(self, member: Member) -> bool:
        """Return True for a hard link whose entry differs from its file's in owner, mode or capabilities."""
        if member.type == _HARDLINK:
            before = self._files.get(b"/".join(clean(member.link)))
            if before is None:
                return False
            self._files[b"/".join(clean(member.name))] = before
            return before != _rights(member)
        if member.type != _DIRECTORY and (member.uid or member.gid or member.mode & 0o6000 or member.xattrs):
            self._files[b"/".join(clean(member.name))] = _rights(member)
        return False


def _rights(member: Member) -> tuple[object, ...]:
    # Only capabilities: chown clears them. Unpackers remove no other xattr.
    return member.mode, member.uid, member.gid, dict(member.xattrs).get(b"security.capability")
