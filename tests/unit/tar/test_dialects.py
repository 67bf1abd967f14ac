"""Layers that other tools made unpack to what their own ``tar -x`` gives; our layers are read by theirs."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from layerfarm.jobs.compress import Codec, Compression, compress, decompress
from layerfarm.jobs.layer import Extractor
from tests.trees import Node, block, char, directory, fifo, file, hardlink, in_seconds, read_tree, symlink, tree
from tests.unit.layer.archives import apply, archive, entry, extra, generate

PLAIN: dict[str, Node] = {
    ".": directory(mode=0o751, mtime=77 * 10**9),
    "bin/su": file(b"#!/bin/sh\n" * 100, mode=0o4755),
    "bin/link": symlink("su"),
    "bin/hard": hardlink("bin/su"),
    "empty": directory(mode=0o1777, uid=5, gid=6),
    "old": file(b"x" * 513, uid=1000, gid=1000, mtime=1),
    "none": file(b"", mode=0o000),
}
SPECIAL: dict[str, Node] = {"dev/null": char(1, 3, mode=0o666), "dev/sda": block(8, 0), "run/fifo": fifo()}
LONG: dict[str, Node] = {
    "/".join(["long" * 20] * 3) + "/file": file(b"far away"),
    "n" * 200: symlink("t" * 300),
    "h" * 150: hardlink("n" * 200),
    "d" * 120 + "/sub": directory(),
}
ODD: dict[bytes, Node] = {
    "é/ü".encode(): file(b"unicode"),
    b"\xff\xfe": file(b"not utf-8"),
    b"new\nline": file(b"newline"),
    b"-dash": file(),
    b" ": file(),
    b"back\\slash": file(),
}
XATTRS: dict[str, Node] = {
    "x": file(b"x", xattrs={"user.text": b"v", "user.binary": bytes(range(256)), "trusted.t": b"\n=1"}),
    "xd": directory(xattrs={"user.d": b"dir"}),
}


def bytes_spec(*specs: dict[str, Node] | dict[bytes, Node]) -> dict[bytes, Node]:
    return {os.fsencode(path): node for spec in specs for path, node in spec.items()}


def run(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(arguments, input=stdin, capture_output=True, check=True).stdout


def sparse_file(path: Path) -> None:
    with path.open("wb") as out:
        for at in range(40):
            out.seek(at * 300_000)
            out.write(b"data %d" % at)
        out.truncate(13_000_000)


@pytest.mark.parametrize(
    ("format", "sparse"),
    [
        ("v7", False),
        ("ustar", False),
        *((name, sparse) for name in ("oldgnu", "gnu", "pax") for sparse in (False, True)),
    ],
)
def test_layers_of_gnu_tar(tmp_path: Path, format: str, sparse: bool) -> None:
    spec = bytes_spec(PLAIN)
    options: list[str] = []
    if format != "v7":
        spec |= bytes_spec(SPECIAL)
    if format in ("gnu", "oldgnu", "pax"):
        spec |= bytes_spec(LONG, ODD)
    if format == "pax":
        spec |= bytes_spec(XATTRS)
        options += ["--xattrs", "--xattrs-include=*"]
    source = tree(tmp_path / "source", spec)
    if sparse:
        sparse_file(source / "sparse")
        options.append("--sparse")
    raw = run("tar", "-C", source, f"--format={format}", *options, "-cf", "-", ".")
    theirs = tree(tmp_path / "theirs", {})
    run("tar", "-C", theirs, "--numeric-owner", *[o for o in options if o != "--sparse"], "-xpf", "-", stdin=raw)
    ours = tree(tmp_path / "ours", {})
    apply(ours, raw)
    assert read_tree(ours) == read_tree(theirs)
    assert in_seconds(read_tree(ours)) == in_seconds(read_tree(source))


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_of_every_pax_version_keep_their_holes(tmp_path: Path, version: str) -> None:
    source = tree(tmp_path / "source", {})
    sparse_file(source / "sparse")
    tree(tmp_path / "source2", {"after": file(b"after")})
    os.rename(tmp_path / "source2/after", source / "z")
    with (source / "only-hole").open("wb") as out:
        out.truncate(5_000_000)
    raw = run(
        "tar",
        "-C",
        source,
        "--format=pax",
        "--sparse",
        f"--sparse-version={version}",
        "-cf",
        "-",
        "sparse",
        "only-hole",
        "z",
    )
    ours = tree(tmp_path / "ours", {})
    with Extractor(ours) as extractor:
        extractor.apply(io.BytesIO(raw))
        extractor.finish()
        digests = {entry.path: entry.sha256 for entry in extractor.entries()}
    import hashlib

    for name in ("sparse", "only-hole", "z"):
        content = (source / name).read_bytes()
        assert (ours / name).read_bytes() == content
        assert digests[name.encode()] == hashlib.sha256(content).hexdigest()
    assert (ours / "only-hole").stat().st_blocks == 0
    assert (ours / "sparse").stat().st_blocks * 512 < 2_000_000


@pytest.mark.parametrize("format", ["ustar", "pax", "gnutar", "v7"])
def test_layers_of_bsdtar(tmp_path: Path, format: str) -> None:
    spec = bytes_spec(PLAIN)
    if format != "v7":
        spec |= bytes_spec(SPECIAL)
    if format in ("pax", "gnutar"):
        spec |= bytes_spec(LONG)
    if format == "pax":
        spec |= bytes_spec(XATTRS)
    source = tree(tmp_path / "source", spec)
    raw = run("bsdtar", "-C", source, f"--format={format}", "-cf", "-", ".")
    theirs, ours = tree(tmp_path / "theirs", {}), tree(tmp_path / "ours", {})
    run("bsdtar", "-C", theirs, "--numeric-owner", "-xpf", "-", stdin=raw)
    apply(ours, raw)
    found = read_tree(theirs)
    # bsdtar gives the directory that it unpacks into no mtime.
    found[b"."] = replace(found[b"."], mtime=77 * 10**9)
    assert in_seconds(read_tree(ours)) == in_seconds(found) == in_seconds(read_tree(source))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_layers_of_python(tmp_path: Path, format: int) -> None:
    spec = bytes_spec(PLAIN, SPECIAL)
    if format != tarfile.USTAR_FORMAT:
        spec |= bytes_spec(LONG, ODD)
    source = tree(tmp_path / "source", spec)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        tar.add(source, ".")
    ours, theirs = tree(tmp_path / "ours", {}), tree(tmp_path / "theirs", {})
    apply(ours, out.getvalue())
    out.seek(0)
    with tarfile.open(fileobj=out, encoding="utf-8", errors="surrogateescape") as tar:
        # Extract everything as it is recorded: the default filter differs between versions of Python.
        tar.extraction_filter = lambda member, _: member
        tar.extractall(theirs, numeric_owner=True)
    # tarfile knows hard links of regular files only.
    wanted = {p: replace(n, group=()) if n.type == "link" else n for p, n in read_tree(source).items()}
    assert in_seconds(read_tree(ours)) == in_seconds(wanted)
    assert _without_times(read_tree(ours)) == _without_times(read_tree(theirs))


def _without_times(found: dict[bytes, Node]) -> dict[bytes, Node]:
    """tarfile restores no mtime of a symbolic link, and follows one that is hard-linked."""
    return {path: replace(node, mtime=0, group=()) for path, node in found.items()}


def test_global_pax_headers_change_nothing_and_end_what_came_before_them(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"mtime": "7.5", "path": "other"}
    ) as tar:
        for name, pax in (("a", {}), ("b", {"mtime": "8"})):
            info, _ = entry(name, mtime=3, pax=pax)
            tar.addfile(info)
    local = archive(entry("c", mtime=3, pax={"mtime": "9"}))
    pending, rest = local[:1024], local[1024:]
    global_header = out.getvalue()[:1024]
    root = tree(tmp_path / "root", {})
    apply(root, out.getvalue(), pending + global_header + rest)
    times = {name: os.stat(root / name).st_mtime_ns for name in os.listdir(root)}
    assert times == {"a": 3_000_000_000, "b": 8_000_000_000, "c": 3_000_000_000}


def test_base_256_numbers_are_read(tmp_path: Path) -> None:
    info, content = entry("f", content=b"x", uid=3_000_000, gid=4_000_000_000, mtime=-5)
    root = tree(tmp_path / "root", {})
    apply(root, archive((info, content), format=tarfile.GNU_FORMAT))
    found = read_tree(root)[b"f"]
    assert (found.uid, found.gid, found.mtime) == (3_000_000, 4_000_000_000, -5 * 10**9)


def test_signed_checksums_of_old_writers_are_read(tmp_path: Path) -> None:
    raw = bytearray(archive(entry(b"\xff\xfe", content=b"x"), format=tarfile.GNU_FORMAT))
    signed = sum(b - 256 if b > 127 else b for b in raw[:148] + raw[156:512]) + 256
    raw[148:156] = b"%06o\0 " % signed
    root = tree(tmp_path / "root", {})
    apply(root, bytes(raw))
    assert read_tree(root)[b"\xff\xfe"].content == b"x"


@pytest.mark.large
@pytest.mark.parametrize("compression", ["none", "gzip", "gzip members", "zstd", "zstd program"])
def test_layers_of_every_compression(tmp_path: Path, compression: str) -> None:
    source = tree(tmp_path / "source", bytes_spec(PLAIN, LONG) | {b"big": file(random.Random(1).randbytes(3_000_000))})
    raw = run("tar", "-C", source, "-cf", "-", ".")
    blobs = {
        "none": (raw, Compression.NONE),
        "gzip": (gzip.compress(raw), Compression.GZIP),
        "gzip members": (
            b"".join(gzip.compress(raw[a : a + 70_001]) for a in range(0, len(raw), 70_001)),
            Compression.GZIP,
        ),
        "zstd": (b"".join(compress([raw], Codec(Compression.ZSTD))), Compression.ZSTD),
        "zstd program": (run("zstd", "-19", "-c", stdin=raw), Compression.ZSTD),
    }
    blob, known = blobs[compression]
    ours = tree(tmp_path / "ours", {})
    with decompress(io.BytesIO(blob), known, ahead=True) as reader:
        assert apply(ours, reader.read()) == []
    assert in_seconds(read_tree(ours)) == in_seconds(read_tree(source))


_GNU = [("tar", name, ()) for name in ("v7", "ustar", "oldgnu", "gnu", "pax")]
_GNU_SPARSE = [("tar", name, ("--sparse",)) for name in ("oldgnu", "gnu", "pax")]
_BSD = [("bsdtar", name, ()) for name in ("v7", "ustar", "gnutar", "pax")]
_PYTHON = [("tarfile", name, ()) for name in ("USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT")]


@pytest.mark.large
@pytest.mark.parametrize(
    ("maker", "format", "options"), [*_GNU, *_GNU_SPARSE, *_BSD, *_PYTHON], ids=lambda value: "".join(value)
)
def test_layers_of_every_maker_in_every_compression_unpack_as_tar_x_does(
    tmp_path: Path, maker: str, format: str, options: tuple[str, ...]
) -> None:
    # A nanosecond after the epoch is 1e-09 to tarfile, which GNU tar takes for one second.
    spec = bytes_spec(PLAIN, {"old": file(b"x" * 513, uid=1000, gid=1000, mtime=10**9)})
    if format != "v7":
        spec |= bytes_spec(SPECIAL)
    if format not in ("v7", "ustar", "USTAR_FORMAT"):
        spec |= bytes_spec(LONG)
    source = tree(tmp_path / "source", spec)
    sparse_file(source / "sparse")
    raw = _archived(maker, format, options, source)
    theirs = tree(tmp_path / "theirs", {})
    # bsdtar goes back to a directory after having left it; by itself GNU tar then forgets its mtime.
    run("tar", "-C", theirs, "--numeric-owner", "--delay-directory-restore", "-xpf", "-", stdin=raw)
    wanted = read_tree(theirs)
    assert wanted.keys() == spec.keys() | read_tree(source).keys()
    for name, (blob, compression) in _compressed(raw).items():
        ours = tree(tmp_path / name, {})
        with decompress(io.BytesIO(blob), compression) as reader:
            assert apply(ours, reader.read()) == []
        assert read_tree(ours) == wanted, name


def _archived(maker: str, format: str, options: tuple[str, ...], source: Path) -> bytes:
    if maker != "tarfile":
        return run(maker, "-C", source, f"--format={format}", *options, "-cf", "-", ".")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=getattr(tarfile, format)) as tar:
        tar.add(source, ".")
    return out.getvalue()


def _compressed(raw: bytes) -> dict[str, tuple[bytes, Compression]]:
    """As other programs compress: none of it is ours."""
    third = len(raw) // 3
    parts = (raw[:third], raw[third : 2 * third], raw[2 * third :])
    return {
        "plain": (raw, Compression.NONE),
        "gzip": (run("gzip", "-n", "-c", stdin=raw), Compression.GZIP),
        "members": (b"".join(run("gzip", "-n", "-c", stdin=part) for part in parts), Compression.GZIP),
        "zstd": (run("zstd", "-c", stdin=raw), Compression.ZSTD),
    }


def test_our_layers_are_listed_and_unpacked_by_the_others(tmp_path: Path) -> None:
    source = tree(tmp_path / "source", bytes_spec(PLAIN, SPECIAL, LONG, ODD, XATTRS))
    raw = generate(source, extra(*read_tree(source)))
    wanted = in_seconds(read_tree(source))
    for program, options in (("tar", ["--xattrs", "--xattrs-include=*"]), ("bsdtar", [])):
        listed = run(program, "-tf", "-", stdin=raw)
        assert listed.count(b"\n") == len(wanted)
        theirs = tree(tmp_path / program, {})
        run(program, "-C", theirs, "--numeric-owner", *options, "-xpf", "-", stdin=raw)
        found = read_tree(theirs)
        if program == "bsdtar":
            found[b"."] = replace(found[b"."], mtime=wanted[b"."].mtime)
        assert found == wanted
    ours = tree(tmp_path / "ours", {})
    apply(ours, raw)
    assert read_tree(ours) == wanted
