"""The tree on which ``build --base`` builds is the one that unpacking the base gives, however the base was made."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, ImageResult, RepackRequest, UnpackRequest
from layerfarm.jobs.image import Resolved, resolve, unpack_rootfs
from layerfarm.jobs.image.bundle import Bundle
from layerfarm.jobs.mtree import Output, snapshot, write_tree
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.trees import read_tree
from tests.unit.image.images import image, special, tar

LAYERS = [
    tar(("usr/lib/foo", b"foo"), special("lib", tarfile.SYMTYPE, "usr/lib")),
    tar(("lib", None), ("lib/bar", b"bar")),
]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def run(request: Request) -> ImageResult:
    return local.run(request, Policy(shards=1, threads=1), 1)  # type: ignore[return-value]


def repacked(layout: Layout, bundle: Path) -> Resolved:
    """The image of a bundle in which one file is new, under the tag ``new``."""
    (bundle / "rootfs/added").write_bytes(b"added")
    run(RepackRequest(image=ImageRef(store=layout.path, tag="new"), bundle=bundle))
    return resolve(layout, "new")


def built_on(layout: Layout, base: str, rootfs: Path) -> ImageResult:
    ref = ImageRef(store=layout.path, tag="built")
    return run(BuildRequest(rootfs=rootfs, image=ref, base=ImageRef(store=layout.path, tag=base)))


def test_base_that_was_repacked_with_kept_links(layout: Layout, tmp_path: Path) -> None:
    image(layout, LAYERS)
    run(UnpackRequest(image=ImageRef(store=layout.path, tag="t"), bundle=tmp_path / "b", keep_dirlinks=True))
    assert (tmp_path / "b/rootfs/lib").is_symlink()
    new = repacked(layout, tmp_path / "b")
    unpack_rootfs(layout, tmp_path / "plain", new)
    assert not (tmp_path / "plain/lib").is_symlink()
    assert built_on(layout, "new", tmp_path / "plain").deltas == 0


def test_base_whose_bundle_had_other_times(layout: Layout, tmp_path: Path) -> None:
    """umoci gives the parents that no layer names the time at which it unpacks."""
    image(layout, [tar(("implied/file", b"x"))])
    run(UnpackRequest(image=ImageRef(store=layout.path, tag="t"), bundle=tmp_path / "b"))
    bundle = Bundle.open(tmp_path / "b")
    os.utime(bundle.rootfs / "implied", (1_500_000_000, 1_500_000_000))
    with bundle.mtree.open("wb") as out:
        write_tree(snapshot(bundle.rootfs), Output(out))
    bundle.extra.unlink()
    bundle.stat_cache.unlink()
    new = repacked(layout, tmp_path / "b")
    unpack_rootfs(layout, tmp_path / "plain", new)
    assert (tmp_path / "plain/implied").stat().st_mtime == 0
    assert built_on(layout, "new", tmp_path / "plain").deltas == 0


def test_equal_builds_are_equal_in_the_store_of_the_repack_and_in_a_copy(layout: Layout, tmp_path: Path) -> None:
    image(layout, LAYERS)
    run(UnpackRequest(image=ImageRef(store=layout.path, tag="t"), bundle=tmp_path / "b", keep_dirlinks=True))
    new = repacked(layout, tmp_path / "b")
    copy = Layout.create(tmp_path / "copy")
    for blob in new.blobs:
        copy.put((layout.blob_path(blob.digest)).read_bytes(), blob.media_type)
    copy.tag("new", new.path[0])
    unpack_rootfs(layout, tmp_path / "plain", new)
    here, there = (built_on(each, "new", tmp_path / "plain").manifest for each in (layout, copy))
    assert here == there


def test_build_on_a_layout_with_a_forged_tree(layout: Layout, tmp_path: Path) -> None:
    made = image(layout, [tar(("passwd", b"root"), ("shadow", b"x"))])
    unpack_rootfs(layout, tmp_path / "plain", made)
    (tmp_path / "plain/shadow").unlink()
    os.utime(tmp_path / "plain", (0, 0))
    forged = layout.path / ".layerfarm/trees" / made.descriptor.digest.replace(":", "_")
    forged.parent.mkdir(parents=True)
    with forged.with_suffix(".mtree").open("wb") as out, forged.with_suffix(".layerfarm").open("wb") as extra:
        write_tree(snapshot(tmp_path / "plain"), Output(out, extra))
    built_on(layout, "t", tmp_path / "plain")
    unpack_rootfs(layout, tmp_path / "again", resolve(layout, "built"))
    assert read_tree(tmp_path / "again") == read_tree(tmp_path / "plain")
