"""Operations on each kind of input, and the invariants that must hold afterwards.

Only a LayerfarmError may come out, its message in one printable line. Everything else is a finding.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import zstandard

from layerfarm.jobs.compress import Compression, decompress
from layerfarm.jobs.flows import FLOWS
from layerfarm.jobs.flows.base import Context
from layerfarm.jobs.flows.requests import ImageRef, RepackRequest
from layerfarm.jobs.image import resolve, unpack_manifest
from layerfarm.jobs.image.bundle import Bundle, mtree_name
from layerfarm.jobs.image.stat import stat_json, stat_text
from layerfarm.jobs.layer import ExtractOptions, Extractor, IdMap, generate_layer
from layerfarm.jobs.layer.merge import merge_layers
from layerfarm.jobs.layer.stack import Stack, read_members
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.mtree import Entry, compare, read_deltas, read_full, simplify, snapshot, write_deltas
from layerfarm.jobs.relayer.equivalence import differences, facts_of
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, Layout, encode_document
from tests.fuzz import (
    bytes_mutations,
    chunked,
    header_mutations,
    json_mutations,
    mtree_mutations,
    seeds,
    stargz,
    tar_mutations,
)
from tests.fuzz.archive_tar import Oracle
from tests.fuzz.archive_tar import compare as compare_with_go
from tests.fuzz.sandbox import Place
from tests.trees import directory, file, symlink, tree

LIMITS = Limits(
    entries=2_000,
    pax_bytes=1 << 16,
    xattr_bytes=1 << 16,
    stream_bytes=4 << 20,
    hole_bytes=1 << 20,
    sparse_parts=1_000,
    ratio_floor=1 << 20,
)
Mutate = Callable[[Random], bytes]
Run = Callable[[Place, bytes, int], None]


@dataclass(frozen=True)
class Target:
    """One kind of input. ``run`` gets the number of the variant to use, below ``variants``."""

    name: str
    weight: int
    mutate: Mutate
    run: Run
    variants: int = 1
    build: Callable[[], None] = lambda: None
    """Called once, before the processes are started."""
    start: Callable[[], None] = lambda: None
    """Called in each process, before it enters its place."""
    figures: Counter[str] = field(default_factory=Counter)
    """Counted by ``run`` in a process, beyond what comes out of each input."""

    def variant(self, data: bytes) -> int:
        return crc32(data) % self.variants


# --- layers --------------------------------------------------------------------------------------

_LAYERS = [tar_mutations.split(layer) for layer in seeds.layers()]
_RAW = seeds.layers()
_BASE = seeds.base()
_DEFAULT = ExtractOptions(limits=LIMITS)
_VARIANTS: tuple[tuple[str, ExtractOptions], ...] = (
    ("empty", _DEFAULT),
    ("empty", _DEFAULT),
    ("upper", ExtractOptions(limits=LIMITS, keep_dirlinks=True)),
    ("upper", _DEFAULT),
    ("found", ExtractOptions(limits=LIMITS, hash_content=False)),
    ("empty", ExtractOptions(limits=LIMITS, rootless=True)),
    ("upper", ExtractOptions(limits=LIMITS, uid_map=IdMap.of((0, 1000, 70000)), gid_map=IdMap.of((0, 1000, 70000)))),
)


def _mutated_layer(rng: Random) -> bytes:
    # The smallest one more often: what matters is what is put beside it.
    seed = _LAYERS[max(rng.randrange(-2, len(_LAYERS)), 0)]
    return tar_mutations.mutate(rng, seed, rng.choice(_LAYERS))


def extract(place: Place, data: bytes, variant: int) -> None:
    """Apply the layer to an empty tree, above another layer, or onto a tree that is there already."""
    begin, options = _VARIANTS[variant]
    root = place.work / "root"
    root.mkdir()
    if begin == "found":
        _found_tree(root)
    with Extractor(root, options) as extractor:
        if begin == "upper":
            extractor.apply(io.BytesIO(_BASE))
        extractor.apply(io.BytesIO(data))
        extractor.finish()
        if begin == "found" or crc32(data) & 7:
            return
        if options is _DEFAULT:
            told, there = list(extractor.entries()), list(snapshot(root))
            if told != there:
                differing = [pair for pair in zip(told, there, strict=False) if pair[0] != pair[1]][:1]
                raise AssertionError(f"entries are not those on disk: {differing or (len(told), len(there))}")


def merge(place: Place, data: bytes, variant: int) -> None:
    """Stack the layer on another one in memory, and write both as one layer: the tree is the same.

    In one of four cases extraction has to make that tree, too, or refuse for the same reason.
    """
    layers = [_BASE, data] if variant & 1 else [data]
    stack = Stack.of((read_members(io.BytesIO(layer), LIMITS) for layer in layers), LIMITS)
    merged = b"".join(merge_layers(None, stack, lambda number: nullcontext(io.BytesIO(layers[number - 1]))))
    again = Stack.of([read_members(io.BytesIO(merged))])
    found = next(differences(facts_of(stack), facts_of(again)), None)
    if found is not None:
        raise AssertionError(f"the merged layer makes another tree: {found}")
    if not crc32(data) & 3:
        root = place.work / "root"
        root.mkdir()
        os.utime(root, (0, 0))
        with Extractor(root, _DEFAULT) as extractor:
            for layer in layers:
                extractor.apply(io.BytesIO(layer))
            extractor.finish()
            told = [entry._replace(size=0, nlink=1) if entry.type == "dir" else entry for entry in extractor.entries()]
        # A warning says that the host, or its filesystem, did not take all that the layer asks for.
        if told != list(stack.entries()) and not extractor.warnings:
            raise AssertionError("the stack is not the tree that extraction makes")


_ORACLE = Oracle()
_COMPARED: Counter[str] = Counter()


def _mutated_headers(rng: Random) -> bytes:
    return header_mutations.mutate(rng) if rng.randrange(3) else _mutated_layer(rng)


def read_as_go(place: Place, data: bytes, variant: int) -> None:
    """Read the layer beside Go's archive/tar."""
    compare_with_go(data, _ORACLE, LIMITS, _COMPARED)


def _found_tree(root: Path) -> None:
    os.mkdir(root / "d", 0o750)
    (root / "d/f").write_bytes(b"x")
    (root / "f").write_bytes(b"x")
    os.link(root / "f", root / "h")
    for name, target in (("l", "d"), ("up", "../.."), ("abs", "/canary"), ("loop", "loop")):
        os.symlink(target, root / name)


def _mutated_gzip(rng: Random) -> bytes:
    data, other = rng.choice(_GZIP), rng.choice(_GZIP)
    return bytes_mutations.mutate(rng, data, other)


def _mutated_zstd(rng: Random) -> bytes:
    data, other = rng.choice(_ZSTD), rng.choice(_ZSTD)
    return bytes_mutations.mutate(rng, data, other)


def _frame(layer: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(layer)


_GZIP = [gzip.compress(layer, mtime=0) for layer in _RAW] + [
    gzip.compress(_RAW[0][:512]) + gzip.compress(_RAW[0][512:]),
    gzip.compress(bytes(1 << 17)),
]
_ZSTD = [_frame(layer, write_checksum=True) for layer in _RAW] + [
    _frame(_RAW[0][:512]) + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + _frame(_RAW[0][512:], write_content_size=False),
    _frame(bytes(1 << 17)),
]


def _extract_compressed(compression: Compression) -> Run:
    def run(place: Place, data: bytes, variant: int) -> None:
        root = place.work / "root"
        root.mkdir()
        with Extractor(root, _DEFAULT) as extractor:
            extractor.apply(decompress(io.BytesIO(data), compression, limits=LIMITS))  # type: ignore[arg-type]
            extractor.finish()

    return run


# --- the documents of an image -------------------------------------------------------------------


def _mutated_json(document: Any, other: Any) -> Mutate:
    return lambda rng: json_mutations.mutate(rng, document, other)


def _layout(place: Place, blobs: list[bytes], index: bytes) -> Layout:
    path = place.work / "store"
    os.makedirs(path / "blobs/sha256")
    (path / "oci-layout").write_bytes(b'{"imageLayoutVersion": "1.0.0"}')
    for blob in blobs:
        (path / "blobs" / seeds.digest(blob).replace(":", "/")).write_bytes(blob)
    (path / "index.json").write_bytes(index)
    return Layout.open(path)


def _index_of(manifest: bytes) -> bytes:
    described = seeds.described(
        manifest,
        "application/vnd.oci.image.manifest.v1+json",
        annotations={"org.opencontainers.image.ref.name": seeds.TAG},
    )
    return seeds.encoded({"schemaVersion": 2, "manifests": [described]})


def run_index(place: Place, data: bytes, variant: int) -> None:
    known = [seeds.LAYER, *map(seeds.encoded, (seeds.CONFIG, seeds.MANIFEST, seeds.NESTED))]
    _use(place, _layout(place, known, data))


def run_manifest(place: Place, data: bytes, variant: int) -> None:
    _use(place, _layout(place, [seeds.LAYER, seeds.encoded(seeds.CONFIG), data], _index_of(data)))


def run_config(place: Place, data: bytes, variant: int) -> None:
    manifest = seeds.encoded(seeds.MANIFEST | {"config": seeds.described(data, MEDIA_TYPE_CONFIG)})
    _use(place, _layout(place, [seeds.LAYER, data, manifest], _index_of(manifest)))


def _use(place: Place, layout: Layout) -> None:
    """Everything that reads an image: by tag, to be shown, to be unpacked, and its documents written again."""
    for tag in layout.tags() or [seeds.TAG]:
        image = resolve(layout, tag)
        json.dumps(stat_json(layout, image))
        stat_text(image)
        for document in (image.manifest, image.config, layout.index()):
            encode_document(document)
        unpack_manifest(layout, place.work / f"bundle-{len(os.listdir(place.work))}", image)


# --- the documents of a bundle -------------------------------------------------------------------


def _bundle(place: Place, umoci: bytes, manifest: bytes) -> Path:
    path = place.work / "bundle"
    tree(path / "rootfs", _TREE)
    (path / "umoci.json").write_bytes(umoci)
    digest = seeds.UMOCI["from_descriptor_path"]["descriptor_walk"][0]["digest"]
    (path / mtree_name(digest)).write_bytes(manifest)
    return path


_TREE = {
    "f": file(b"x"),
    "d": directory(),
    "d/f": file(b"y", mode=0o600, uid=5),
    "l": symlink("d"),
    "canary": symlink("../../canary"),
    "sp ace\n": file(b"z"),
}
_ENTRIES = [
    Entry(b".", "dir", 0o755, 0, 0, 100, 2, 10**18),
    Entry(b"canary", "link", 0o777, 0, 0, 12, 1, 10**18, link=b"../../canary"),
    Entry(b"f", "file", 0o644, 0, 0, 1, 1, 10**18, sha256="0" * 64, xattrs=((b"user.x", b"v"),)),
    Entry(b"gone", "file", 0o4755, 0, 0, 5, 1, 10**18, sha256="1" * 64),
    Entry(b"l", "link", 0o777, 0, 0, 1, 1, 10**18, link=b"d"),
    Entry(b"sp ace\n", "file", 0o644, 0, 0, 1, 1, 10**18, sha256="0" * 64),
    Entry(b"d", "dir", 0o700, 1, 1, 60, 2, 10**18),
    Entry(b"d/f", "file", 0o600, 5, 0, 1, 1, 10**18, sha256="0" * 64),
]
_MTREES = seeds.manifests(_ENTRIES)


def _mutated_mtree(rng: Random) -> bytes:
    return mtree_mutations.mutate(rng, rng.choice(_MTREES), rng.choice(_MTREES))


def run_mtree(place: Place, data: bytes, variant: int) -> None:
    """As the old tree of a repack: read, compared with what is there, made into a layer."""
    old = list(read_full(io.BytesIO(data), None))
    root = tree(place.work / "root", _TREE) if variant == 0 else None
    new = list(snapshot(root)) if root is not None else _ENTRIES
    deltas = io.BytesIO()
    write_deltas(simplify(compare(old, new)), deltas)
    deltas.seek(0)
    again = list(read_deltas(deltas))
    if root is not None:
        for piece in generate_layer(root, again):
            if b"alive" in piece:
                raise AssertionError("the layer holds a file from outside the root")


def run_umoci(place: Place, data: bytes, variant: int) -> None:
    """A bundle to be repacked."""
    known = [seeds.LAYER, *map(seeds.encoded, (seeds.CONFIG, seeds.MANIFEST))]
    layout = _layout(place, known, seeds.encoded(seeds.INDEX))
    path = _bundle(place, data, _MTREES[0])
    list(Bundle.open(path).baseline())
    request = RepackRequest(bundle=path, image=ImageRef(store=layout.path, tag="new"))
    flow = FLOWS["repack"]
    context = Context("fuzz")
    state = flow.begin(context, request)
    for stage in flow.stages:
        results = [stage.run(context, unit) for unit in stage.plan(context, state)]
        state = stage.join(context, state, results)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("tar", 600, _mutated_layer, extract, len(_VARIANTS)),
        Target("merge", 120, _mutated_layer, merge, 2),
        Target("gotar", 120, _mutated_headers, read_as_go, 1, _ORACLE.build, _ORACLE.start, _COMPARED),
        Target("gzip", 80, _mutated_gzip, _extract_compressed(Compression.GZIP)),
        Target("zstd", 80, _mutated_zstd, _extract_compressed(Compression.ZSTD)),
        Target("chunked", 60, _mutated_layer, chunked.write),
        Target("toc", 40, chunked.mutated_toc, chunked.check),
        Target("estargz", 60, _mutated_layer, stargz.write, len(stargz.PREFETCH)),
        Target("stargz-toc", 40, stargz.mutated_toc, stargz.check, 2),
        Target("mtree", 120, _mutated_mtree, run_mtree, 8),
        Target("index", 20, _mutated_json(seeds.INDEX, seeds.MANIFEST), run_index),
        Target("manifest", 20, _mutated_json(seeds.MANIFEST, seeds.INDEX), run_manifest),
        Target("config", 20, _mutated_json(seeds.CONFIG, seeds.MANIFEST), run_config),
        Target("umoci", 10, _mutated_json(seeds.UMOCI, seeds.MANIFEST), run_umoci),
    )
}
