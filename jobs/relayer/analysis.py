"""The components of one image: their names, sizes, and digests of everything that a layer holds of them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from deflate import deflate_compress
from pydantic import BaseModel, ConfigDict, ValidationError

from layerfarm.jobs.mtree.model import Entry
from layerfarm.jobs.relayer.components import Component, ImageTree, Rule, find_owners
from layerfarm.jobs.relayer.components.image_tree import text
from layerfarm.jobs.relayer.planner.plan import Part, Snapshot
from layerfarm.jobs.relayer.spool import Difference, Spool, Written
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import read_result, write_result

_NOTES = "analyses"
_NS = 10**9
_HEADER_BYTES = 90
"""Compressed bytes of an entry without its content, measured over the packages of Debian 12."""
_TAR_BYTES, _DIRECTORY_BYTES = 110, 15
"""Compressed bytes of a tar of directories, and of each of them, measured over /usr of Debian 12: within 20 % from 10
directories on, within 10 % from 100 on. One after the other, directories compress better than files' headers do."""
LARGE: Final = 256 << 10
"""Bytes from which a file is listed by itself: duplicates of it may be worth a rule."""
_SAMPLES = 8
_SAMPLE_BYTES = 64 << 10
_SAMPLE_LEVEL = 6


@dataclass(frozen=True)
class AnalysisOptions:
    """Parameters of an analysis."""

    keep: int = 0
    """Number of lowest layers that stay unchanged and are not analyzed."""
    epoch: int | None = None
    """Seconds; newer mtimes become this value."""
    rules: tuple[Rule, ...] = ()


class LargeFile(NamedTuple):
    """A file of :data:`LARGE` bytes or more."""

    key: str
    """Key of its component."""
    path: str
    """From the root; one printable line."""
    size: int
    content: str
    """Digest of its content."""
    entry: str
    """Digest of everything that a layer holds of it."""


class Metadata(NamedTuple):
    """A layer without content: of directories, or of deletions."""

    digest: str
    packed: int
    """Estimated compressed bytes."""


class Analysis(BaseModel):
    """One image as components. The version changes if the same image would give another analysis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[5] = 5
    image: str
    """Digest of the manifest."""
    keep: int
    parts: tuple[Part, ...]
    """Sorted by key."""
    directories: Metadata | None
    """The layer that gives directories their metadata; None: the kept layers do that."""
    deletions: Metadata | None = None
    """The layer that deletes from the kept ones; None: nothing is deleted."""
    large: tuple[LargeFile, ...] = ()
    """Sorted by key and path."""
    warnings: tuple[str, ...] = ()

    def room(self, budget: int) -> int:
        """Return the layers left for the parts of an image of at most ``budget`` layers."""
        return budget - self.keep - (self.directories is not None) - (self.deletions is not None)

    def snapshot(self, line: str, when: int, tag: str, budget: int) -> Snapshot:
        """Return the image as input of the planner. ``room`` is at least 1, even if that exceeds the budget."""
        return Snapshot(line, when, tag, self.parts, max(1, self.room(budget)))


def kept_analysis(layout: Layout, manifest: str, options: AnalysisOptions) -> Analysis | None:
    """Return the analysis stored beside the layout; None: there is none, or it is damaged."""
    content = read_result(layout, _NOTES, _note_of(manifest, options))
    try:
        return None if content is None else Analysis.model_validate_json(content)
    except ValidationError:
        return None


def keep_analysis(layout: Layout, analysis: Analysis, options: AnalysisOptions) -> bool:
    """Store an analysis beside the layout; return False if the store is read-only."""
    return write_result(layout, _NOTES, _note_of(analysis.image, options), analysis.model_dump_json().encode())


def _note_of(manifest: str, options: AnalysisOptions) -> str:
    known = [Analysis.model_fields["version"].default, manifest, options.keep, options.epoch, options.rules]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


@dataclass(frozen=True)
class Analyzed:
    """An analysis with the paths of its parts."""

    analysis: Analysis
    members: dict[str, list[bytes]]
    """The paths of each part, by its key."""


def analyze(manifest: str, content: Difference, spool: Spool, options: AnalysisOptions) -> Analyzed:
    """Divide an image into components. The same image and options give the same analysis."""
    tree = image_tree(content, spool)
    ownership = find_owners(tree, options.rules)
    members: defaultdict[str, list[bytes]] = defaultdict(list)
    components: dict[str, Component] = {}
    for path, component in sorted(ownership.owners.items()):
        members[component.key].append(path)
        components.setdefault(component.key, component)
    parts = tuple(_part(components[key], members[key], content, spool, options) for key in sorted(members))
    analysis = Analysis(
        image=manifest,
        keep=options.keep,
        parts=parts,
        directories=_directories(content, options.epoch) if restored_directories(content) else None,
        deletions=_deletions(content) if content.deleted else None,
        large=tuple(_large_files(members, content, options.epoch)),
        warnings=tuple(ownership.warnings),
    )
    return Analyzed(analysis, dict(members))


def image_tree(content: Difference, spool: Spool) -> ImageTree:
    """Return the files above the kept layers, and all directories, for the readers of package databases."""
    files = content.files

    def read(path: bytes) -> bytes:
        written = files[path]
        return spool.read(written.offset, written.entry.size)

    links = {path: written.names for path, written in files.items() if written.names}
    entries = [*content.directories.values(), *(written.entry for written in files.values())]
    return ImageTree(sorted(entries), links, read)


def _part(
    component: Component, paths: list[bytes], content: Difference, spool: Spool, options: AnalysisOptions
) -> Part:
    written = [content.files[path] for path in paths]
    first = [each for each in written if not each.names or each.entry.path == each.names[0]]
    size = sum(each.entry.size for each in first if each.entry.type == "file")
    return Part(
        key=component.key,
        source=component.source,
        digest=_digest_of_files(written, content, options.epoch),
        size=size,
        packed=int(size * _ratio(first, spool)) + _HEADER_BYTES * len(written),
        files=len(written),
        kind=component.kind,
        version=component.version,
        layer=min(each.layer for each in written),
    )


def _large_files(members: Mapping[str, list[bytes]], content: Difference, epoch: int | None) -> Iterator[LargeFile]:
    for key in sorted(members):
        for path in members[key]:
            written = content.files[path]
            if written.entry.size >= LARGE and written.entry.sha256 and path == (written.names or (path,))[0]:
                line = _line(clamped(written.entry, epoch), written.names)
                digest = hashlib.sha256(line).hexdigest()
                yield LargeFile(key, text(path), written.entry.size, written.entry.sha256, digest)


def _ratio(written: Iterable[Written], spool: Spool) -> float:
    """Return the compressed bytes per byte of content, estimated from samples spread evenly over all of it.

    This is within 3 % of gzip's result for whole images of Debian packages, within 10 % for one package.
    """
    files = [each for each in written if each.offset >= 0 and each.entry.size]
    plain = packed = 0
    for begin, length in _samples(sum(each.entry.size for each in files)):
        sample = b"".join(_piece(files, spool, begin, begin + length))
        plain += len(sample)
        packed += len(deflate_compress(sample, _SAMPLE_LEVEL))
    return packed / plain if plain else 1.0


def _samples(total: int) -> list[tuple[int, int]]:
    """Yield offsets and lengths of the samples of ``total`` bytes."""
    if total <= _SAMPLES * _SAMPLE_BYTES:
        return [(0, total)]
    middles = ((2 * number + 1) * total // (2 * _SAMPLES) for number in range(_SAMPLES))
    return [(middle - _SAMPLE_BYTES // 2, _SAMPLE_BYTES) for middle in middles]


def _piece(files: Iterable[Written], spool: Spool, begin: int, end: int) -> Iterator[bytes]:
    """Return the bytes from ``begin`` to ``end`` of the concatenated files."""
    at = 0
    for each in files:
        first, last = max(begin - at, 0), min(end - at, each.entry.size)
        if first < last:
            yield spool.read(each.offset + first, last - first)
        at += each.entry.size


def _digest_of_files(written: Iterable[Written], content: Difference, epoch: int | None) -> str:
    """Return the digest of all that a layer holds of these files: themselves, and their directories without times."""
    digest = hashlib.sha256()
    parents: set[bytes] = set()
    for each in written:
        # All names of an inode are in one part: only the line of the first one lists them.
        names = each.names if each.names[:1] == (each.entry.path,) else each.names[:1]
        digest.update(_line(clamped(each.entry, epoch), names))
        parents.update(parents_of(each.entry.path))
    for path in sorted(parents):
        digest.update(_line(canonical(content.directories[path]), ()))
    return digest.hexdigest()


def _directories(content: Difference, epoch: int | None) -> Metadata:
    digest, paths = hashlib.sha256(b"directories\n"), restored_directories(content)
    for path in paths:
        digest.update(_line(clamped(content.directories[path], epoch), ()))
    return Metadata(digest.hexdigest(), _packed(len(paths)))


def _deletions(content: Difference) -> Metadata:
    digest, parents = hashlib.sha256(b"deletions\n"), set[bytes]()
    for path in content.deleted:
        digest.update(repr(path).encode() + b"\n")
        for parent in parents_of(path):
            digest.update(_line(canonical(content.directories[parent]), ()))
            parents.add(parent)
    return Metadata(digest.hexdigest(), _packed(len(content.deleted) + len(parents)))


def _packed(entries: int) -> int:
    return _TAR_BYTES + _DIRECTORY_BYTES * entries


def restored_directories(content: Difference) -> list[bytes]:
    """Return the directories of the last layer: new or changed ones, and those that other layers touch."""
    touched = set(content.changed)
    for path in (*content.files, *content.deleted):
        touched.update(parents_of(path))
    for path in list(touched):
        touched.update(parents_of(path))
    return sorted(touched)


def parents_of(path: bytes) -> list[bytes]:
    """Return the directories above a path, without the root, highest first."""
    found = []
    at = path.find(b"/")
    while at >= 0:
        found.append(path[:at])
        at = path.find(b"/", at + 1)
    return found


def canonical(directory: Entry) -> Entry:
    """Return a directory as layers of files hold it: mode and owner, which protect its content, no time, no xattrs."""
    return directory._replace(mtime=0, xattrs=())


def clamped(entry: Entry, epoch: int | None) -> Entry:
    """Return the entry with its mtime no newer than ``epoch``."""
    return entry if epoch is None or entry.mtime <= epoch * _NS else entry._replace(mtime=epoch * _NS)


def _line(entry: Entry, names: tuple[bytes, ...]) -> bytes:
    """Return one entry as bytes: ``repr`` writes integers, bytes, strings and tuples in one way only."""
    return repr((*entry._replace(nlink=1), names)).encode() + b"\n"
