"""Indexes that name manifests which the layout does not hold, as ``docker save`` writes them (image-layout.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import BlobNotFound
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.transforms import (
    FlattenRequest,
    FlattenResult,
    RebaseRequest,
    RechunkRequest,
    RecompressRequest,
    SquashRequest,
    StripRequest,
    TransformRequest,
)
from layerfarm.jobs.image.resolve import read_index
from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, Descriptor, Layout
from layerfarm.worker.catalog.pull import copy_in
from layerfarm.worker.engine import local
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import enter, entry, index, ref, run, tree_of, without

LAYERS = (tar(("etc", None), ("etc/f", b"x" * 500)), tar(("etc/g", b"y")))


@pytest.fixture
def sparse(layout: Layout) -> Layout:
    """The tag ``t`` of two platforms, of which only ``linux/amd64`` is there."""
    here = image(layout, LAYERS, tag="here", architecture="amd64")
    absent = image(layout, LAYERS[:1], tag="absent", architecture="arm64", variant="v8")
    index(layout, [entry(absent), entry(here)], "t")
    for tag in ("here", "absent"):
        layout.untag(tag)
    for blob in (absent.descriptor, absent.manifest.config):
        without(layout.path, blob.digest)
    return layout


@pytest.fixture
def other(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "other")


@pytest.mark.parametrize(
    ("kind", "fields", "removed"),
    [
        (RecompressRequest, {"compress": "zstd"}, []),
        (SquashRequest, {}, []),
        (StripRequest, {"paths": ["etc/g"]}, [b"etc/g"]),
        (RechunkRequest, {"budget": 2}, []),
        (RebaseRequest, {"accept": "refuse"}, []),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_transform_of_a_sparse_index_transforms_the_existing_images(
    sparse: Layout, other: Layout, kind: type[TransformRequest], fields: dict[str, object], removed: list[bytes]
) -> None:
    (before,) = sparse.find("t")
    absent, here = read_index(sparse, before).manifests
    tree = tree_of(sparse, "t", "linux/amd64")
    for path in removed:
        del tree[path]
    if kind is RebaseRequest:
        image(sparse, LAYERS[:1], tag="old", architecture="amd64")
        image(sparse, [LAYERS[0], tar(("srv", b"z"))], tag="base", architecture="amd64")
        image(sparse, [LAYERS[0], tar(("srv", b"z")), LAYERS[1]], tag="wanted", architecture="amd64")
        fields = fields | {"old_base": ref(sparse, "old"), "new_base": ref(sparse, "base")}
        tree = tree_of(sparse, "wanted")
    for store, tag in ((sparse, "new"), (other, "new")):
        result = run(kind.model_validate({"image": ref(sparse, "t"), "target": ref(store, tag), **fields}))
        assert [image.old for image in result.images] == [here.digest]
        assert [text for text in result.warnings if "skipped: 1," in text and absent.digest in text]
        (top,) = store.find(tag)
        still, made = read_index(store, top).manifests
        assert still == absent
        assert made.digest == result.images[0].new != here.digest
        assert tree_of(store, tag) == tree


def test_a_transform_of_another_image_goes_on(sparse: Layout) -> None:
    """Untagged entries of index.json that are missing might refer to the image."""
    image(sparse, LAYERS, tag="another")
    enter(sparse, Descriptor(mediaType=MEDIA_TYPE_MANIFEST, digest=f"sha256:{'a' * 64}", size=9))
    made = run(RecompressRequest(image=ref(sparse, "another"), target=ref(sparse, "new"), compress="zstd"))
    assert not made.unchanged and made.warnings == []


def test_a_transform_of_a_missing_image_reports_it(sparse: Layout) -> None:
    absent, _ = read_index(sparse, sparse.find("t")[0]).manifests
    index(sparse, [absent], "none")
    with pytest.raises(BlobNotFound, match="this layout does not hold"):
        run(RecompressRequest(image=ref(sparse, "none"), target=ref(sparse, "new"), compress="zstd"))
    assert "new" not in sparse.tags()


def test_flatten_writes_the_existing_platforms_and_reports_it(sparse: Layout, tmp_path: Path) -> None:
    result = local.run(FlattenRequest(image=ref(sparse, "t"), output=tmp_path / "out"), Policy(shards=1, threads=1), 1)
    assert isinstance(result, FlattenResult)
    assert [tree.output for tree in result.trees] == [str(tmp_path / "out")]
    assert "skipped: 1," in result.warnings[0]


def test_existing_blobs_are_copied(sparse: Layout, other: Layout) -> None:
    top = copy_in(sparse, "t", other, "copy")
    assert other.read(top) == sparse.read(top)
    assert {path.name for path in other.path.glob("blobs/*/*")} == {path.name for path in sparse.path.glob("blobs/*/*")}
