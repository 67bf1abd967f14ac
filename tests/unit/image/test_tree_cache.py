from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from layerfarm.jobs.errors import DigestMismatch
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.jobs.image import load_tree, portable, resolve, store_tree, tree_digest, tree_of
from layerfarm.jobs.mtree import Entry, snapshot
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.trees import char, directory, file, hardlink, socket, symlink, tree
from tests.unit.image.images import image, tar

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return tree(
        tmp_path / "rootfs",
        {
            "d": directory(mode=0o1777, mtime=1_500_000_000_987_654_321, xattrs={"user.d": b"1"}),
            "d/f": file(b"x", mtime=-1_500_000_000, xattrs={"user.big": b"v" * 2000, "user.small": b"1"}),
            "d/same": hardlink("d/f"),
            "link": symlink("d", xattrs={"trusted.l": b"2"}),
            "null": char(1, 3, xattrs={"trusted.n": b"3"}),
        },
    )


def test_stored_tree_is_loaded_as_it_was(layout: Layout, rootfs: Path) -> None:
    entries = list(snapshot(rootfs))
    store_tree(layout, DIGEST, iter(entries))
    loaded = load_tree(layout, DIGEST)
    assert loaded is not None
    assert list(loaded) == list(portable(entries))
    assert sorted(os.listdir(layout.path / ".layerfarm/trees")) == [
        f"{DIGEST.replace(':', '_')}.layerfarm",
        f"{DIGEST.replace(':', '_')}.mtree",
    ]


def test_tree_that_nobody_stored(layout: Layout) -> None:
    assert load_tree(layout, DIGEST) is None


def test_many_entries_that_need_the_extra_file_are_all_kept(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfarm.jobs.mtree.outputs._BATCH", 3)
    entries = [Entry(b".", "dir", 0o755, 0, 0, 0, 1, 0)]
    entries += [Entry(b"%02d" % n, "char", 0o600, 0, 0, 0, 1, 0, device=(1, n)) for n in range(10)]
    store_tree(layout, DIGEST, iter(entries))
    assert list(load_tree(layout, DIGEST) or ()) == entries


def test_failed_store_leaves_nothing(layout: Layout) -> None:
    def failing() -> object:
        yield Entry(b".", "dir", 0o755, 0, 0, 0, 1, 0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store_tree(layout, DIGEST, failing())  # type: ignore[arg-type]
    assert os.listdir(layout.path / ".layerfarm/trees") == []
    assert load_tree(layout, DIGEST) is None


def test_portable_form_leaves_out_what_no_layer_carries(tmp_path: Path) -> None:
    rootfs = tree(tmp_path / "r", {"s": socket(), "f": file(b"x", mtime=1_999_999_999, xattrs={"user.empty": b""})})
    entries = {entry.path: entry for entry in portable(snapshot(rootfs))}
    assert sorted(entries) == [b".", b"f"]
    assert (entries[b"f"].mtime, entries[b"f"].xattrs) == (1_000_000_000, ())
    assert (entries[b"."].size, entries[b"."].nlink) == (0, 1)


def test_digest_is_that_of_the_tree_not_of_the_filesystem(rootfs: Path, tmp_path: Path) -> None:
    for number in range(300):  # ext4 directories grow and never shrink
        (rootfs / "d" / f"{'long' * 20}{number}").touch()
        (rootfs / "d" / f"{'long' * 20}{number}").unlink()
    os.utime(rootfs / "d", ns=(0, 1_500_000_000_000_000_001))
    first = tree_digest(snapshot(rootfs))
    os.utime(rootfs / "d", ns=(0, 1_500_000_000_000_000_002))
    assert tree_digest(snapshot(rootfs)) == first
    os.chmod(rootfs / "d", 0o755)
    assert tree_digest(snapshot(rootfs)) != first


@pytest.mark.usefixtures("as_root")
def test_a_build_keeps_the_tree_that_unpacking_its_layer_gives(layout: Layout, tmp_path: Path) -> None:
    capability = bytes.fromhex("010000030004000000000000000000000000000000e80300")
    xattrs = {"user.a=b": b"1", "user.k": b"v", "user.empty": b"", "security.selinux": b"l"}
    rootfs = tree(
        tmp_path / "r", {".": directory(xattrs=xattrs), "f": file(xattrs={**xattrs, "security.capability": capability})}
    )
    request = BuildRequest(rootfs=rootfs, image=ImageRef(store=layout.path, tag="t"))
    local.run(request, Policy(shards=1, threads=1), 1)
    made = resolve(layout, "t")
    kept = list(load_tree(layout, made.descriptor.digest) or ())
    shutil.rmtree(layout.path / ".layerfarm/trees")
    assert list(tree_of(layout, made)) == kept
    assert [name for name, _ in kept[1].xattrs or ()] == [b"security.capability", b"user.k"]


def test_tree_of_an_image_is_read_once_and_then_kept(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"x"), ("d", None))])
    first = list(tree_of(layout, made, keep=True))
    assert [entry.path for entry in first] == [b".", b"a", b"d"]
    layout.blob_path(made.manifest.layers[0].digest).unlink()
    assert list(tree_of(layout, made)) == first


def test_tree_of_a_broken_image_keeps_nothing(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"x"))], diff_ids=lambda _: ["sha256:" + "0" * 64])
    with pytest.raises(DigestMismatch):
        tree_of(layout, made)
    assert load_tree(layout, made.descriptor.digest) is None
