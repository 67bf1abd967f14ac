"""Our manifests and umoci's are one format: the same bytes for the same tree, and each reads the other's."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from layerfarm.jobs.mtree import Entry, Output, compare, read_full, snapshot, write_extra, write_tree
from tests.trees import file, symlink, tree

Run = Callable[..., str]
LATER = 1_700_000_000


def odd_tree(root: Path) -> None:
    """One of everything that a layer can carry, at most one xattr each: umoci keeps the file system's order."""
    top = os.fsencode(root)

    def at(name: bytes) -> bytes:
        path = os.path.join(top, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    names = [
        b"line\nbreak",
        b"sp ace\ttab",
        b"non-utf8-\xff\xfe",
        b"glob[*?]",
        b"#hash",
        b"back\\slash",
        b"\xc3\xa9t\xc3\xa9",
        b"a=b",
        b"ctrl-\x01\x7f",
        b"\"quoted' $(x) `y` {z}~^",
        b"dir \xff#/f",
        b"dir/z",
        b"dir/sub/a",
        b"dir.d/x",
        b"dir-d",
        b"long" * 60 + b"/" + b"name" * 60,
        b"owned/f",
        b"owned/g",
        b"owned/sub/h",
        b"setuid",
        b"plain",
        b"mode0",
        b"xattr-fits",
        b"xattr-too-large",
    ]
    for number, name in enumerate(names):
        with open(at(name), "wb") as out:
            out.write(name * number)
    os.makedirs(at(b"empty"))
    os.symlink(b"tar get\n\xe9", at(b"link"))
    os.mkfifo(at(b"fifo"), 0o622)
    os.mknod(at(b"char"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(at(b"block"), stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.link(at(b"dir/z"), at(b"hard"))
    for name in (b"owned", b"owned/f", b"owned/sub"):
        os.chown(at(name), 5, 3_000_000)
    for name, mode in ((b"setuid", 0o6755), (b"plain", 0o664), (b"mode0", 0), (b"empty", 0o1777), (b"owned", 0o664)):
        os.chmod(at(name), mode)
    os.setxattr(at(b"dir"), b"user.on dir#", b"v\0")
    os.setxattr(at(b"xattr-fits"), b"user.x", b"x" * 1024)
    os.setxattr(at(b"xattr-too-large"), b"user.x", b"x" * 1025)
    os.setxattr(at(b"link"), b"trusted.on-link", b"l", follow_symlinks=False)
    for number, name in enumerate((b"plain", b"dir/z", b"char", b"owned/sub", b"dir-d")):
        seconds = (0, -5, 2**33, 1, LATER)[number]
        os.utime(at(name), (seconds, seconds))


def bundle_of(root: Path, tmp_path: Path, run: Run) -> Path:
    run("umoci", "init", "--layout", "store")
    run("umoci", "new", "--image", "store:tree")
    run("umoci", "insert", "--image", "store:tree", root, "/")
    run("umoci", "unpack", "--image", "store:tree", "bundle")
    return tmp_path / "bundle"


def manifest_of(bundle: Path) -> Path:
    (path,) = bundle.glob("sha256_*.mtree")
    return path


def written(rootfs: Path) -> bytes:
    out = io.BytesIO()
    write_tree(snapshot(rootfs), Output(out))
    return out.getvalue()


def after_header(manifest: bytes) -> bytes:
    return manifest.partition(b"\n\n")[2]


def test_manifest_is_byte_identical_to_the_one_umoci_unpack_writes(tmp_path: Path, run: Run) -> None:
    odd_tree(tmp_path / "tree")
    bundle = bundle_of(tmp_path / "tree", tmp_path, run)
    assert after_header(written(bundle / "rootfs")) == after_header(manifest_of(bundle).read_bytes())


def test_manifest_of_a_debian_is_byte_identical_to_the_one_umoci_unpack_writes(
    debian: Path, tmp_path: Path, run: Run
) -> None:
    bundle = bundle_of(debian, tmp_path, run)
    assert after_header(written(bundle / "rootfs")) == after_header(manifest_of(bundle).read_bytes())


def test_directories_with_line_breaks_differ_in_nothing_but_the_comments(tmp_path: Path, run: Run) -> None:
    (tmp_path / "tree/line\nbreak/sub\n..").mkdir(parents=True)
    (tmp_path / "tree/line\nbreak/sub\n../f").touch()
    bundle = bundle_of(tmp_path / "tree", tmp_path, run)
    theirs = manifest_of(bundle).read_bytes()
    encoded = re.sub(rb"# line\nbreak/sub\n\.\.\n", rb"# line\\012break/sub\\012..\n", theirs)
    encoded = re.sub(rb"# line\nbreak\n", rb"# line\\012break\n", encoded)
    assert encoded != theirs
    assert after_header(written(bundle / "rootfs")) == after_header(encoded)
    with manifest_of(bundle).open("rb") as stream:
        assert list(compare(read_full(stream, None), snapshot(bundle / "rootfs"))) == []


def test_umoci_manifest_is_read_and_shows_no_difference_but_the_xattrs_it_could_not_record(
    tmp_path: Path, run: Run
) -> None:
    odd_tree(tmp_path / "tree")
    bundle = bundle_of(tmp_path / "tree", tmp_path, run)
    with manifest_of(bundle).open("rb") as stream:
        deltas = list(compare(read_full(stream, None), snapshot(bundle / "rootfs")))
    assert [(delta.path, delta.keys) for delta in deltas] == [
        (b"link", ("xattr.trusted.on-link",)),
        (b"xattr-too-large", ("xattr.user.x",)),
    ]


def test_our_manifest_and_extra_file_show_no_difference_at_all(tmp_path: Path) -> None:
    odd_tree(tmp_path / "tree")
    entries: list[Entry] = list(snapshot(tmp_path / "tree"))
    manifest, extra = io.BytesIO(), io.BytesIO()
    write_tree(entries, Output(manifest))
    write_extra(entries, extra)
    manifest.seek(0)
    extra.seek(0)
    assert list(compare(read_full(manifest, extra), entries)) == []


def test_umoci_repack_sees_no_change_through_our_manifest(tmp_path: Path, run: Run) -> None:
    odd_tree(tmp_path / "tree")
    (tmp_path / "tree/line\nbreak dir/f").parent.mkdir()
    bundle = bundle_of(tmp_path / "tree", tmp_path, run)
    layers = len(_manifest(tmp_path, "tree")["layers"])
    manifest_of(bundle).write_bytes(written(bundle / "rootfs"))
    run("umoci", "repack", "--image", "store:again", "bundle")
    assert len(_manifest(tmp_path, "again")["layers"]) == layers


def test_umoci_repack_sees_a_change_through_our_manifest(tmp_path: Path, run: Run) -> None:
    odd_tree(tmp_path / "tree")
    bundle = bundle_of(tmp_path / "tree", tmp_path, run)
    layers = len(_manifest(tmp_path, "tree")["layers"])
    manifest_of(bundle).write_bytes(written(bundle / "rootfs"))
    (bundle / "rootfs/plain").write_bytes(b"changed")
    run("umoci", "repack", "--image", "store:again", "bundle")
    assert len(_manifest(tmp_path, "again")["layers"]) == layers + 1


def _manifest(tmp_path: Path, tag: str) -> dict[str, list[object]]:
    index = json.loads((tmp_path / "store/index.json").read_bytes())
    (digest,) = (
        m["digest"] for m in index["manifests"] if m["annotations"]["org.opencontainers.image.ref.name"] == tag
    )
    manifest: dict[str, list[object]] = json.loads((tmp_path / "store/blobs" / digest.replace(":", "/")).read_bytes())
    return manifest


def test_D_limit_10_bsdtar_knows_our_manifests_for_mtree(tmp_path: Path, program: Callable[[str], str]) -> None:
    """It refuses umoci's, which lack the first line; tar_time is a keyword that it passes over with a warning."""
    root = tree(tmp_path / "root", {"f": file(b"x"), "l": symlink("f"), "d/e": file(mode=0o4755)})
    with (tmp_path / "manifest").open("wb") as out:
        write_tree(snapshot(root), Output(out))
    command = [program("bsdtar"), "-tf", str(tmp_path / "manifest")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [".", "f", "l", "d", "d/e"]
    assert {line.partition("=")[0] for line in done.stderr.splitlines()} <= {
        "bsdtar: Unrecognized key tar_time",
        "bsdtar: Error exit delayed from previous errors.",
    }
