"""Starting points of the mutations: small layers of every kind, and the documents of an image and a bundle."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

from layerfarm.jobs.image.bundle import BundleMeta
from layerfarm.jobs.image.documents import ImageConfig, Manifest
from layerfarm.jobs.mtree import Entry, Output, write_tree
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST
from layerfarm.jobs.store.descriptor import MEDIA_TYPE_INDEX, REF_NAME, Index
from tests.unit.layer.archives import archive, entry

TAG = "t"


def layers() -> list[bytes]:
    """Uncompressed layers; together they have every entry type, PAX, GNU, sparse files, links, whiteouts."""
    tiny = archive(entry("f", content=b"one"), format=tarfile.USTAR_FORMAT)
    links = archive(
        entry("f", content=b"file"),
        entry("d", "dir"),
        entry("d/f", content=b"below"),
        entry("h", "hardlink", link="d/f"),
        entry("l", "link", link="d"),
        entry("up", "link", link=".."),
        entry("abs", "link", link="/canary"),
        entry("loop", "link", link="loop"),
        format=tarfile.USTAR_FORMAT,
    )
    through = archive(
        entry("s", "link", link="d"),
        entry("d/s", "dir"),
        entry("s/f", content=b"through a link"),
        entry("early", "hardlink", link="late"),
        entry("late", content=b"target"),
        entry("abs", "link", link="/canary"),
        entry("abs/file", content=b"inside"),
        format=tarfile.USTAR_FORMAT,
    )
    special = archive(
        entry(".", "dir", mode=0o1777),
        entry("fifo", "fifo"),
        entry("c", "char", device=(1, 3)),
        entry("b", "block", device=(8, 1), mode=0o660),
        entry("suid", content=b"x", mode=0o6755, uid=5, gid=6),
        entry("locked", "dir", mode=0),
        entry("locked/f", content=b"y", mode=0),
    )
    pax = archive(
        entry("d/" + "n" * 120, content=b"long"),
        entry("é", "link", link="t" * 130),
        entry("x", content=b"x", xattrs={"user.x": b"v", "trusted.t": b"w\0x", "security.selinux": b"s"}),
        entry("t", content=b"t", mtime=-1.5, pax={"atime": "12.25", "comment": "none"}),
        entry("id", uid=3_000_000, gid=3_000_000),
        entry("D", "dir", xattrs={"trusted.d": b"1"}),
    )
    gnu = archive(
        entry("d/" + "n" * 120, content=b"long"),
        entry("l", "link", link="t" * 130),
        entry("big", uid=2**31, mtime=2**35),
        format=tarfile.GNU_FORMAT,
    )
    whiteouts = archive(
        entry("d", "dir"),
        entry("d/.wh..wh..opq"),
        entry("d/new", content=b"n"),
        entry(".wh.f"),
        entry("l/.wh.f"),
        entry(".wh..wh.plnk", "dir"),
        format=tarfile.USTAR_FORMAT,
    )
    return [tiny, links, through, special, pax, gnu, whiteouts, _sparse_gnu(), _sparse_pax()]


def base() -> bytes:
    """A lower layer for those that delete, replace and lead through links."""
    return archive(
        entry("d", "dir", mode=0o750),
        entry("d/f", content=b"lower"),
        entry("d/s/x", content=b"x"),
        entry("f", content=b"lower"),
        entry("h", "hardlink", link="f"),
        entry("l", "link", link="d"),
        entry("up", "link", link="../.."),
        entry("abs", "link", link="/canary"),
        entry("fifo", "fifo"),
        format=tarfile.USTAR_FORMAT,
    )


def _sparse_gnu() -> bytes:
    block = bytearray(archive(entry("s", content=b"data" * 128), format=tarfile.GNU_FORMAT)[:1024])
    block[156:157] = b"S"
    for at, number in ((386, 1024), (398, 512), (483, 4096)):
        block[at : at + 12] = b"%011o\0" % number
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block) + bytes(1024)


def _sparse_pax() -> bytes:
    content = b"data" * 128
    inline = b"1\n1024\n512\n".ljust(512, b"\0")
    return archive(
        entry("v00", content=content, pax={"GNU.sparse.size": "4096", "GNU.sparse.numblocks": "1",
                                           "GNU.sparse.offset": "0", "GNU.sparse.numbytes": "512"}),
        entry("v01", content=content, pax={"GNU.sparse.size": "4096", "GNU.sparse.numblocks": "1",
                                           "GNU.sparse.map": "1024,512"}),
        entry("v10", content=inline + content, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                                                    "GNU.sparse.realsize": "4096", "GNU.sparse.name": "sparse"}),
    )  # fmt: skip


# --- documents -----------------------------------------------------------------------------------


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def described(blob: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)} | more


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


LAYER = archive(
    entry("etc/passwd", content=b"bob:x:1000:100::/home/bob:/bin/sh\n"),
    entry("etc/group", content=b"wheel:x:10:bob\n"),
    entry("bin/true", content=b"#!", mode=0o755),
)
CONFIG: dict[str, Any] = {
    "created": "2020-01-01T00:00:00Z",
    "author": "somebody",
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "config": {
        "User": "bob:wheel",
        "ExposedPorts": {"80/tcp": {}},
        "Env": ["PATH=/bin", "A=b"],
        "Entrypoint": ["/bin/true"],
        "Cmd": ["x"],
        "Volumes": {"/data": {}},
        "WorkingDir": "/data",
        "Labels": {"a": "b"},
        "StopSignal": "SIGTERM",
    },
    "rootfs": {"type": "layers", "diff_ids": [digest(LAYER)]},
    "history": [{"created": "2020-01-01T00:00:00Z", "created_by": "x"}, {"empty_layer": True}],
}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": MEDIA_TYPE_MANIFEST,
    "config": described(encoded(CONFIG), MEDIA_TYPE_CONFIG),
    "layers": [described(LAYER, MEDIA_TYPE_LAYER, annotations={"a": "b"})],
    "annotations": {"a": "b"},
}
_TAGGED = described(
    encoded(MANIFEST),
    MEDIA_TYPE_MANIFEST,
    platform={"os": "linux", "architecture": "arm64"},
    annotations={REF_NAME: TAG},
)
NESTED: dict[str, Any] = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [_TAGGED]}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "manifests": [_TAGGED, described(encoded(NESTED), MEDIA_TYPE_INDEX, annotations={REF_NAME: "nested"})],
}
UMOCI: dict[str, Any] = {
    "umoci_version": "2",
    "from_descriptor_path": {"descriptor_walk": [_TAGGED]},
    "map_options": {
        "uid_mappings": [{"containerID": 0, "hostID": 0, "size": 65536}],
        "gid_mappings": [{"containerID": 0, "hostID": 0, "size": 65536}],
        "rootless": False,
    },
}
ImageConfig.model_validate(CONFIG)
Manifest.model_validate(MANIFEST)
Index.model_validate(INDEX)
BundleMeta.model_validate(UMOCI)


def manifests(entries: list[Entry]) -> list[bytes]:
    """mtree manifests: as umoci writes them, and by full paths."""
    out = io.BytesIO()
    write_tree(entries, Output(out))
    full = b"#mtree v2.0\n" + b"".join(
        b"./%s type=%s mode=0644 uid=0 gid=0 size=%d time=%d.5 nlink=%d\n"
        % (e.path, e.type.encode(), e.size, e.mtime // 10**9, e.nlink)
        for e in entries
    )
    return [out.getvalue(), full]
