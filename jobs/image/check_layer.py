"""Read a layer without unpacking it: is it a tar that can be applied, and what is its diff_id?"""

from __future__ import annotations

from dataclasses import dataclass, field

from layerfarm.jobs.compress import Compression
from layerfarm.jobs.errors import LayerfarmError, MalformedLayer, display
from layerfarm.jobs.image.layers import Advanced, open_layer
from layerfarm.jobs.layer.modeltree import clean
from layerfarm.jobs.layer.whiteouts import OPAQUE, PREFIX, whiteout_target
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.tar.reader import Member, MemberReader

MOST_FAULTS = 20
"""Of one layer; a layer of millions of them says no more."""
_KNOWN_TYPES = frozenset(b"0123456")
_HARDLINK = 0x31
_DIRECTORY = 0x35
_LINKS = frozenset(b"12")
_CONTRADICTION = "hard link gives its file another owner, mode or capability, which containerd and Docker apply"


@dataclass
class CheckedLayer:
    """What reading a layer told."""

    compression: Compression
    """Of the blob's bytes, whatever its media type says."""
    diff_id: str = ""
    entries: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Name of the entry, and what no reader can apply of it."""
    warnings: list[tuple[str, str]] = field(default_factory=list)
    """Name of the entry, and what readers apply each in another way."""


def check_layer(layout: Layout, layer: Descriptor, advanced: Advanced, limits: Limits | None = None) -> CheckedLayer:
    """Read the blob to its end, verified, through the decompressor and the tar reader.

    Raises:
        BlobNotFound, DigestMismatch, SizeMismatch: it is not the blob that was promised.
        LayerError, LimitExceeded: the stream is damaged, or larger than the limits.
    """
    limits = limits or process_limits()
    with open_layer(layout, layer, None, advanced, limits) as stream:
        checked = CheckedLayer(stream.compression)
        links = _Links()
        for member in MemberReader(stream, limits):
            checked.entries += 1
            if len(checked.warnings) < MOST_FAULTS and links.contradicts(member):
                checked.warnings.append((display(member.name[:200]), _CONTRADICTION))
            if len(checked.faults) < MOST_FAULTS:
                try:
                    _check_member(member)
                except LayerfarmError as error:
                    checked.faults.append((display(member.name[:200]), error.what))
    checked.diff_id = stream.diff_id
    return checked


def _check_member(member: Member) -> None:
    """What the extractor refuses whatever the layers below hold (umoci.md B2.2, B3.9, B4.5)."""
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


class _Links:
    """Compares the entries of hard links with those of their files."""

    def __init__(self) -> None:
        self._files: dict[bytes, tuple[object, ...]] = {}
        """What chown, chmod and setcap give each file that they change, by path."""

    def contradicts(self, member: Member) -> bool:
        """Whether the member is a hard link whose entry gives its file, earlier in the layer, other rights."""
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
    # Other xattrs stay: chown clears capabilities, and unpackers remove none.
    return member.mode, member.uid, member.gid, dict(member.xattrs).get(b"security.capability")
