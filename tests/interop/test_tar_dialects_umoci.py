"""Headers written by hand are read as Go's archive/tar reads them: umoci, a Go program, is asked.

Whatever umoci unpacks, layerfarm unpacks to the same tree. umoci itself knows no entries of the types ``7``,
``S`` and ``g``, so there is none of them here.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.tar.pax import encode_records
from layerfarm.jobs.tar.writer import TRAILER, Header, encode_header
from tests.trees import Node, read_tree, tree
from tests.unit.layer.archives import apply

pytestmark = pytest.mark.usefixtures("as_root")  # owners and devices are made as the headers say

GNU = (257, b"ustar  \0")
V7 = (257, bytes(8))
STAR = (508, b"tar\0")


def block(*fields: tuple[int, bytes]) -> bytes:
    made = bytearray(encode_header(Header(b"f", b"0", mode=0o640, mtime=5)))
    for at, field in fields:
        made[at : at + len(field)] = field
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def whole(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def extended(flag: bytes, body: bytes) -> bytes:
    return block((156, flag), size(len(body))) + whole(body)


def pax(**records: str) -> bytes:
    """A PAX header; ``_`` in a key stands for a full stop."""
    return extended(b"x", encode_records((key.replace("_", ".").encode(), v.encode()) for key, v in records.items()))


def size(count: int) -> tuple[int, bytes]:
    return 124, b"%011o\0" % count


ABC = block(size(3)) + whole(b"abc")
SPARSE = "GNU_sparse_"
CASES = {
    "plain": ABC,
    "ustar prefix": block((345, b"a/b")),
    "ustar prefix of all 155 bytes": block((345, b"p" * 155)),
    "ustar name of all 100 bytes": block((0, b"n" * 100)),
    "ustar, another version": block((263, b"xx"), (345, b"dir")),
    "star prefix": block(STAR, (345, b"dir")),
    "star prefix of all 131 bytes": block(STAR, (345, b"p" * 131 + b"00000000007 ")),
    "gnu prefix": block(GNU, (345, b"usr/share/doc")),
    "gnu prefix, digits first": block(GNU, (345, b"00000000007 usr")),
    "gnu prefix, not ASCII": block(GNU, (345, b"dir/\xc3\xa9")),
    "gnu atime": block(GNU, (345, b"00000000007\0")),
    "gnu atime and ctime": block(GNU, (345, b"00000000007\0" + b"00000000006\0")),
    "gnu ctime only, no number": block(GNU, (357, b"ctime")),
    "gnu version, one space": block((257, b"ustar \0\0"), (345, b"dir")),
    "v7 prefix": block(V7, (345, b"dir")),
    "v7 device": block(V7, (156, b"3"), (329, b"0000001\0" + b"0000003\0")),
    "device": block((156, b"3"), (329, b"0000001\0" + b"0000003\0")),
    "gnu device": block(GNU, (156, b"4"), (329, b"0000001\0" + b"0000003\0")),
    "v7 directory": block(V7, (156, b"\0"), (0, b"d/")),
    "v7 directory with a size": block(V7, (156, b"\0"), (0, b"d/"), size(3)) + ABC,
    "file with a slash": block((0, b"d/"), size(3)) + whole(b"abc"),
    "link with a size": ABC + block((0, b"l"), (156, b"2"), (157, b"f"), size(700)),
    "directory with a negative size": block((156, b"5"), (124, b"\xff" * 12)),
    "link with a negative size in a record": pax(size="-3") + block((156, b"2"), (157, b"f")),
    "octal with NULs before": block((100, b"\0\0 755 \0")),
    "octal with text behind a NUL": block((100, b"755\0" + b"zzz\0")),
    "octal of spaces": block((100, b" " * 8)),
    "octal without an end": block((100, b"00000755")),
    "mode with bits of the type": block((100, b"0104755\0")),
    "base-256 owner": block((108, b"\x80\0\0\0\0\x2d\xc6\xc0")),
    "base-256 negative time": block((136, b"\xff" * 11 + b"\xfb")),
    "pax over fields": pax(path="p", uid="7", gid="8", mtime="9.5", size="3") + ABC,
    "pax empty values": pax(path="", uid="", mtime="", size="", linkpath="") + ABC,
    "pax twice": pax(mtime="9", path="p") + pax(uid="7") + ABC,
    "pax key twice": extended(b"x", encode_records([(b"uid", b"7"), (b"uid", b"8")])) + ABC,
    "pax plus sign": pax(uid="+7", mtime="+9.25") + ABC,
    "pax negative time": pax(mtime="-1.5") + ABC,
    "pax time, many digits": pax(mtime="1.99999999999999") + ABC,
    "pax negative time, many digits": pax(mtime="-0.0000000001") + ABC,
    "pax NUL in a comment": pax(comment="p\0q") + ABC,
    "pax path ends with a slash, v7 type": pax(path="d/") + block((156, b"\0")),
    "gnu long name": extended(b"L", b"long\0") + ABC,
    "gnu long name without a NUL": extended(b"L", b"long") + ABC,
    "gnu empty long name": extended(b"L", b"\0") + ABC,
    "gnu two long names": extended(b"L", b"one\0") + extended(b"L", b"two\0") + ABC,
    "gnu long name, then pax path": extended(b"L", b"long\0") + pax(path="p") + ABC,
    "pax path, then gnu long name": pax(path="p") + extended(b"L", b"long\0") + ABC,
    "gnu long link and pax": pax(linkpath="p") + extended(b"K", b"long\0") + block((156, b"2")),
    "sparse 0.0": extended(
        b"x",
        encode_records(
            [
                (b"GNU.sparse.size", b"8"),
                (b"GNU.sparse.numblocks", b"1"),
                (b"GNU.sparse.offset", b"1"),
                (b"GNU.sparse.numbytes", b"3"),
            ]
        ),
    )
    + ABC,
    "sparse 0.1": pax(**{SPARSE + "size": "8", SPARSE + "numblocks": "1", SPARSE + "map": "1,3"}) + ABC,
    "sparse 0.1 and a name": pax(
        **{SPARSE + "size": "8", SPARSE + "numblocks": "1", SPARSE + "map": "1,3", SPARSE + "name": "real"}
    )
    + extended(b"L", b"long\0")
    + ABC,
    "sparse 0.1 without a size": pax(**{SPARSE + "numblocks": "1", SPARSE + "map": "0,3"}) + ABC,
    "sparse 1.0": pax(**{SPARSE + "major": "1", SPARSE + "minor": "0", SPARSE + "realsize": "8"})
    + block(size(515))
    + whole(b"1\n1\n3\n".ljust(512, b"\0") + b"abc"),
    "sparse of an unknown version": pax(**{SPARSE + "major": "2", SPARSE + "minor": "0", SPARSE + "map": "1,3"}) + ABC,
    "sparse size alone": pax(**{SPARSE + "size": "8", SPARSE + "name": "real"}) + ABC,
    "checksum with NULs before": ABC[:148] + b"\0\0" + b"%06o" % sum(ABC[:148] + b" " * 8 + ABC[156:512]) + ABC[156:],
}
REFUSED = {
    "octal with a sign": block((100, b"+000755\0")),
    "octal with an underscore": block((100, b"00_0755\0")),
    "octal with a space inside": block((100, b"07 0755\0")),
    "not octal": block((100, b"0000089\0")),
    "base-256 time of more than 64 bits": block((136, b"\x80\0\0\x01" + bytes(8))),
    "base-256 huge size": block((124, b"\x80" + b"\x7f" * 11)),
    "base-256 negative size": block((124, b"\xff" * 12)),
    "pax time without seconds": pax(mtime=".5") + ABC,
    "pax time, sign in the fraction": pax(mtime="1.-5") + ABC,
    "pax number with spaces": pax(uid=" 7") + ABC,
    "pax number with an underscore": pax(uid="1_0") + ABC,
    "pax negative size": pax(size="-3") + ABC,
    "pax NUL in a path": pax(path="p\0q") + ABC,
    "pax key without a value": extended(b"x", b"7 path\n") + ABC,
    "pax length too long": extended(b"x", b"99 path=p\n") + ABC,
    "pax length too short": extended(b"x", b"5 path=p\n") + ABC,
    "sparse 0.1, overlapping": pax(**{SPARSE + "size": "8", SPARSE + "numblocks": "2", SPARSE + "map": "1,2,2,1"})
    + ABC,
    "a zero block and then an entry": ABC + bytes(512) + block((0, b"g")),
}


@pytest.mark.parametrize("name", CASES)
def test_archives_that_archive_tar_reads_unpack_to_the_same_tree(tmp_path: Path, name: str) -> None:
    layer = CASES[name] + TRAILER
    theirs = _by_umoci(tmp_path, layer)
    assert theirs is not None
    ours = tree(tmp_path / "ours", {})
    apply(ours, layer)
    assert _comparable(ours) == theirs


@pytest.mark.parametrize("name", REFUSED)
def test_archives_that_archive_tar_refuses_are_an_error(tmp_path: Path, name: str) -> None:
    layer = REFUSED[name] + TRAILER
    assert _by_umoci(tmp_path, layer) is None
    with pytest.raises(LayerfarmError):
        apply(tree(tmp_path / "ours", {}), layer)


CASES_MADE = 200
_OCTAL = (
    b"0000644\0",
    b" 755\0\0\0\0",
    b"\0 644 \0\0",
    b"644\0" + b"99\0\0",
    b"00000777",
    b"        ",
    bytes(8),
    b"\x80\0\0\0\0\0\x01\xa4",
    b"0000648\0",
    b"-000644\0",
    b"06_4\0\0\0\0",
)
_LONG = (
    b"00000000007\0",
    b"       7 \0\0\0",
    b"\0" + b"7".rjust(11),
    b"000000000007",
    bytes(12),
    b"\x80" + bytes(10) + b"\x07",
    b"\xff" * 11 + b"\xf9",
    b"0x0000000007",
    b"usr/share/do",
)
_MAGICS = (b"ustar\x0000", b"ustar\x0000", b"ustar  \0", b"ustar  \0", bytes(8), b"ustar\0  ", b"ustar \x0000")
_RECORDS = (
    *((b"mtime", value) for value in (b"5", b"-5.25", b"7.123456789123", b"", b"+7", b"1e3", b" 7", b"7.")),
    *((b"uid", value) for value in (b"7", b"", b"+8", b"0x7", b"007", b"7.0")),
    *((b"size", value) for value in (b"3", b"", b"+3", b"-3", b"003")),
    *((b"atime", value) for value in (b"9", b"9.5", b"x")),
    *((b"GNU.sparse.size", value) for value in (b"8", b"", b"x")),
    *((b"GNU.sparse.realsize", value) for value in (b"8", b"9")),
    *((b"GNU.sparse.map", value) for value in (b"1,2", b"0,3", b"1,3", b"2,2,1,1", b"")),
    *((b"GNU.sparse.major", value) for value in (b"0", b"1", b"2", b"")),
    *((b"GNU.sparse.minor", value) for value in (b"0", b"1", b"2", b"")),
    (b"GNU.sparse.numblocks", b"1"),
    (b"SCHILY.xattr.user.x", b"a=b\n"),
    (b"comment", b"\xff\0"),
)


def _made(rng: Random, number: int) -> bytes:
    """A member with headers before it, its fields taken from the lists above; ``number`` makes its names unique."""
    name = b"%d" % number
    fields = [(0, b"n" + name), (257, rng.choice(_MAGICS)), (156, rng.choice((b"0", b"0", b"\0", b"2", b"5", b"6")))]
    fields += [(at, rng.choice(_OCTAL)) for at in (100, 108, 116) if rng.random() < 0.2]
    fields += [(at, rng.choice(_LONG)) for at in (136, 345, 357, 476, 488) if rng.random() < 0.15]
    fields += [(157, b"target")]
    if rng.random() < 0.3:
        fields.append((345, b"d" + name))
    if rng.random() < 0.15:
        fields.append(STAR)
    if rng.random() < 0.1:
        fields.append((1 + len(name), b"/"))
    headers = []
    if rng.random() < 0.2:
        headers.append(extended(b"L", rng.choice((b"long%b\0", b"long%b", b"long%b/\0")) % name))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        chosen = rng.sample(_RECORDS, rng.randint(0, 4))
        chosen += [(key, value % name) for key, value in _NAMES if rng.random() < 0.2]
        headers.append(extended(b"x", encode_records(chosen)))
    rng.shuffle(headers)
    return b"".join((*headers, block(*fields, size(3)), whole(b"abc") if rng.random() < 0.9 else b""))


_NAMES = ((b"path", b"p%b"), (b"linkpath", b"l%b"), (b"GNU.sparse.name", b"s%b"), (b"path", b"p%b/"))


def test_headers_made_at_random_are_read_as_archive_tar_reads_them(tmp_path: Path) -> None:
    rng = Random(20261128)
    both = 0
    for number in range(CASES_MADE):
        place = tmp_path / str(number)
        layer = _made(rng, number) + TRAILER
        theirs = _by_umoci(place, layer)
        if theirs is not None:
            ours = tree(place / "ours", {})
            apply(ours, layer)
            assert _comparable(ours) == theirs, layer
            both += 1
    assert both > CASES_MADE / 4


def _by_umoci(place: Path, layer: bytes) -> Found | None:
    """The tree that umoci unpacks the layer to; None: it refuses it."""
    place.mkdir(exist_ok=True)
    _write_image(place / "image", layer)
    command = ["umoci", "raw", "unpack", "--image", "image:t", "theirs"]
    done = subprocess.run(command, cwd=place, capture_output=True, timeout=60, check=False)
    return None if done.returncode else _comparable(place / "theirs")


Found = dict[bytes, tuple[Node, int]]


def _comparable(root: Path) -> Found:
    """Everything, files with their atime; without the root and the times of directories that no entry names.

    umoci takes those from the clock, and reading a tree changes the atimes of all but files.
    """
    top = os.fsencode(root)
    paths = [os.path.join(here, name) for here, _, names in os.walk(top) for name in names]
    found = [(path, os.lstat(path)) for path in paths]
    atimes = {os.path.relpath(path, top): st.st_atime_ns for path, st in found if stat.S_ISREG(st.st_mode)}
    nodes = {path: node for path, node in read_tree(root).items() if path != b"."}
    return {
        path: (replace(node, mtime=0) if _is_implied(node) else node, atimes.get(path, 0))
        for path, node in nodes.items()
    }


def _is_implied(node: Node) -> bool:
    return node.type == "dir" and node.mtime != 5 * 10**9


def _write_image(layout: Path, layer: bytes) -> None:
    """An OCI layout with one image ``t`` of one uncompressed layer."""
    blobs = layout / "blobs" / "sha256"
    os.makedirs(blobs)

    def put(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    kind = "application/vnd.oci.image."
    tar = put(layer, kind + "layer.v1.tar")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [tar["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": put(json.dumps(config).encode(), kind + "config.v1+json"),
        "layers": [tar],
    }
    tagged = put(json.dumps(manifest).encode(), kind + "manifest.v1+json")
    tagged["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
