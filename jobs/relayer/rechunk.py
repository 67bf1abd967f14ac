"""The layers of a rechunked image: the components of each, the recipe of its content, and its tar.

A recipe is a file beside the store, one line for each entry of the layer, with the offset of a file's content in
the spool (:mod:`layerfarm.jobs.relayer.spool`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final, NamedTuple

from layerfarm.jobs.errors import BlobNotFound, MalformedDocument, TransformError
from layerfarm.jobs.layer.names import walk_key, whiteout_name
from layerfarm.jobs.mtree.model import ROOT, Entry
from layerfarm.jobs.relayer.analysis import Analysis, Analyzed, canonical, clamped, parents_of, restored_directories
from layerfarm.jobs.relayer.planner.plan import MOST_LAYERS, Chunk, Divider, Plan, parse_plan
from layerfarm.jobs.relayer.planner.search import PlanOptions, make_plan
from layerfarm.jobs.relayer.spool import Difference, Spool, Written
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.tar.writer import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    REGULAR,
    SYMLINK,
    TRAILER,
    Header,
    encode_header,
    hardlink,
    padding,
)

MEDIA_TYPE_PLAN: Final = "application/vnd.layerfarm.plan.v1+json"
DIRECTORIES: Final = "directories"
"""Name of the last layer, which gives directories their metadata."""
DELETIONS: Final = "deletions"
"""Name of the first layer above kept ones, if it deletes entries of theirs."""

_HINT = "a higher budget has room for more layers; a component alone is not split, rules may divide it"
_NS = 10**9
_PIECE = 1 << 20
_TYPES = {"file": REGULAR, "link": SYMLINK, "char": CHAR, "block": BLOCK_DEVICE, "fifo": FIFO, "dir": DIRECTORY}


class LayerToBe(NamedTuple):
    """One layer above the kept ones."""

    name: str
    digest: str
    """Digest of its content."""
    packed: int
    """Estimated compressed bytes."""
    keys: tuple[str, ...] = ()
    """Keys of its parts; none for :data:`DIRECTORIES` and :data:`DELETIONS`."""


def put_plan(layout: Layout, plan: Plan) -> str:
    """Store a plan for the jobs that use it; return the blob's digest."""
    return layout.put(plan.encode(), MEDIA_TYPE_PLAN).digest


def read_plan(layout: Layout, digest: str) -> Plan:
    """Return a plan stored by :func:`put_plan`, and mark it as just used.

    Raises:
        BlobNotFound: it is not in the store; DigestMismatch: it is damaged.
        MalformedPlan: the blob is not a plan.
    """
    try:
        size = layout.blob_path(digest).stat().st_size
    except OSError as error:
        raise BlobNotFound("store does not hold the plan", where=digest) from error
    blob = Descriptor(mediaType=MEDIA_TYPE_PLAN, digest=digest, size=size)
    layout.claim(blob)
    return parse_plan(layout.read(blob), digest)


def layers_to_be(analysis: Analysis, divider: Divider | None, budget: int) -> list[LayerToBe]:
    """Return the layers above the kept ones, lowest first. Without a plan's divider, plan for this image alone.

    Raises:
        TransformError: the kept layers use up the budget, or a layer would be larger than the plan allows.
    """
    if analysis.parts and analysis.room(budget) < 1:
        raise TransformError(
            f"{analysis.keep} kept layers leave no room in a budget of {budget}",
            where=analysis.image,
            hint=f"keep fewer layers, or allow more, up to {MOST_LAYERS}",
        )
    image = analysis.snapshot("", 0, "", budget)
    divider = divider or Divider(make_plan([image], PlanOptions(spare=0)))
    chunks = divider.divide(image.parts, image.room)
    largest = divider.plan.largest
    for chunk in chunks:
        if largest is not None and chunk.packed > largest:
            raise TransformError(_too_large(chunk, largest), where=analysis.image, hint=_HINT)
    layers = [
        LayerToBe(chunk.name, chunk.digest, chunk.packed, tuple(part.key for part in chunk.parts)) for chunk in chunks
    ]
    if analysis.deletions is not None:
        layers.insert(0, LayerToBe(DELETIONS, *analysis.deletions))
    if analysis.directories is not None:
        layers.append(LayerToBe(DIRECTORIES, *analysis.directories))
    return layers


def _too_large(chunk: Chunk, largest: int) -> str:
    part = max(chunk.parts, key=lambda part: part.packed)
    what = f"component {part.key}" if part.packed > largest else f"layer {chunk.name}"
    size = part.packed if part.packed > largest else chunk.packed
    return f"{what} would have about {size} bytes, more than the {largest} of the largest layer"


# --- recipes -------------------------------------------------------------------------------------


def recipe_of(layer: LayerToBe, content: Difference, analyzed: Analyzed, epoch: int | None) -> Iterable[bytes]:
    """Yield the lines of the recipe of one layer of an analyzed image."""
    if layer.keys:
        return recipe_of_files((path for key in layer.keys for path in analyzed.members[key]), content, epoch)
    if layer.name == DIRECTORIES:
        return _recipe_of_directories(content, epoch)
    return _recipe_of_deletions(content)


def recipe_of_files(paths: Iterable[bytes], content: Difference, epoch: int | None) -> Iterator[bytes]:
    """Yield the recipe of a layer of files: each inode's content once, and the directories above in canonical form."""
    lines: dict[bytes, bytes] = {}
    firsts: dict[bytes, bytes] = {}
    """By the lowest name of an inode with several: the name that is first in the layer, and holds the content."""
    for path in paths:
        written = content.files[path]
        first = path
        if written.names:
            lowest = written.names[0]
            if lowest not in firsts:
                firsts[lowest] = min(written.names, key=walk_key)
            first = firsts[lowest]
        lines[walk_key(path)] = _file(written, first, epoch)
        for parent in parents_of(path):
            key = walk_key(parent)
            if key not in lines:
                lines[key] = _directory(canonical(content.directories[parent]))
    return (lines[key] for key in sorted(lines))


def _recipe_of_directories(content: Difference, epoch: int | None) -> Iterator[bytes]:
    """Yield the recipe of the last layer: directories with their metadata."""
    for path in sorted(restored_directories(content), key=walk_key):
        yield _directory(clamped(content.directories[path], epoch))


def _recipe_of_deletions(content: Difference) -> Iterator[bytes]:
    """Yield the recipe of the first layer above the kept ones: whiteouts, and directories above in canonical form."""
    lines: dict[bytes, bytes] = {}
    for path in content.deleted:
        name = whiteout_name(path)
        lines[walk_key(name)] = _line(Header(name, REGULAR), -1)
        for parent in parents_of(path):
            lines[walk_key(parent)] = _directory(canonical(content.directories[parent]))
    return (lines[key] for key in sorted(lines))


def write_layer(recipe: BinaryIO, spool: Spool) -> Iterator[bytes]:
    """Yield the raw tar of a recipe. The same recipe and content give the same bytes.

    Raises (while iterating):
        MalformedDocument: a line of the recipe does not parse, or the spool is too short for it.
    """
    held = bytearray()
    for line in recipe:
        header, offset = _parsed(line)
        held += encode_header(header)
        left = header.size
        while left:
            piece = spool.read(offset, min(left, _PIECE))
            if not piece:
                raise MalformedDocument("content of a file is missing in the spool", where=spool.path)
            held += piece
            offset += len(piece)
            left -= len(piece)
            if len(held) >= _PIECE:
                yield bytes(held)
                held.clear()
        held += padding(header.size)
    held += TRAILER
    yield bytes(held)


def _file(written: Written, first: bytes, epoch: int | None) -> bytes:
    entry = clamped(written.entry, epoch)
    seconds, nanoseconds = divmod(entry.mtime, _NS)
    header = Header(
        entry.path,
        _TYPES[entry.type],
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size if entry.type == "file" else 0,
        seconds,
        entry.link or b"",
        entry.device or (0, 0),
        entry.xattrs or (),
        nanoseconds,
    )
    if entry.path != first:
        return _line(hardlink(header._replace(name=first), entry.path), -1)
    return _line(header, written.offset)


def _directory(entry: Entry) -> bytes:
    seconds, nanoseconds = divmod(entry.mtime, _NS)
    name = entry.path if entry.path == ROOT else entry.path + b"/"
    header = Header(name, DIRECTORY, entry.mode, entry.uid, entry.gid, mtime=seconds, nanoseconds=nanoseconds)
    return _line(header._replace(xattrs=entry.xattrs or ()), -1)


def _line(header: Header, offset: int) -> bytes:
    # Latin-1 maps every byte to one character, and back.
    fields: list[Any] = [_as_text(value) for value in header]
    return json.dumps([*fields, offset], separators=(",", ":")).encode() + b"\n"


def _as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return [_as_text(item) for item in value] if isinstance(value, tuple) else value


def _parsed(line: bytes) -> tuple[Header, int]:
    try:
        *fields, offset = json.loads(line)
        name, type_, mode, uid, gid, size, mtime, link, device, xattrs, nanoseconds = fields
        header = Header(
            name.encode("latin-1"),
            type_.encode("latin-1"),
            mode,
            uid,
            gid,
            size,
            mtime,
            link.encode("latin-1"),
            (device[0], device[1]),
            tuple((key.encode("latin-1"), value.encode("latin-1")) for key, value in xattrs),
            nanoseconds,
        )
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise MalformedDocument("malformed line of a recipe", where=line[:200]) from error
    return header, offset
