"""Layers whose media type is wrong: bytes of another compression, as skopeo wrote them, or one of Docker's types."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import (
    RebaseRequest,
    RechunkRequest,
    RecompressRequest,
    SquashRequest,
    StripRequest,
    TransformRequest,
)
from layerfarm.jobs.image import resolve, write_image
from layerfarm.jobs.image.validate import validate_image
from layerfarm.jobs.store import Layout
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import ref, run, tree_of

LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
LOW = tar(("etc", None), ("etc/a", b"low" * 500), ("etc/gone", b"x"))
MIDDLE = tar(("etc/b", b"middle"), ("etc/.wh.gone", b""))
HIGH = tar(("etc/c", b"high"))
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda raw: gzip.compress(raw, mtime=0),
    "zstd": zstandard.ZstdCompressor().compress,
    "none": bytes,
}


def mislabelled(layout: Layout, compression: str, label: str) -> None:
    """The tag ``t``: a layer of another compression than its label, one with a label of Docker's, and a right one."""
    for tag, tars in (("base", [LOW]), ("t", [LOW, MIDDLE, HIGH])):
        made = image(layout, tars, tag=tag)
        wrong = layout.put(BYTES[compression](LOW), label)
        layers = [wrong, *(layer.model_copy() for layer in made.manifest.layers[1:])]
        if layers[1:]:
            layers[1] = layers[1].model_copy(update={"media_type": DOCKER})
        changed = write_image(layout, made.path, made.manifest.model_copy(update={"layers": layers}), made.config)
        layout.tag(tag, changed.path[0])


@pytest.fixture(params=[("gzip", "+zstd"), ("zstd", "+gzip"), ("none", "+gzip")], ids="".join)
def layout(layout: Layout, request: pytest.FixtureRequest) -> Layout:
    compression, suffix = request.param
    mislabelled(layout, compression, LAYER + suffix)
    assert [finding.code for finding in validate_image(layout.path, "t").findings] == ["compression", "media-type"]
    return layout


@pytest.mark.parametrize("compress", ["gzip", "zstd", "none", "estargz"])
def test_recompress_repairs_the_labels(layout: Layout, compress: Any) -> None:
    request = RecompressRequest(image=ref(layout, "t"), target=ref(layout, "new"), compress=compress)
    assert not run(request).unchanged
    assert validate_image(layout.path, "new").findings == []
    label = {"none": LAYER, "estargz": f"{LAYER}+gzip"}.get(compress, f"{LAYER}+{compress}")
    assert [layer.media_type for layer in resolve(layout, "new").manifest.layers] == [label] * 3
    assert tree_of(layout, "new") == tree_of(layout, "t")
    assert run(request.model_copy(update={"image": ref(layout, "new")})).unchanged


def test_layers_that_recompress_keeps_have_their_labels(layout: Layout) -> None:
    old = resolve(layout, "t").manifest.layers
    made = run(RecompressRequest(image=ref(layout, "t"), target=ref(layout, "new"), compress="gzip", keep=3))
    assert made.unchanged and resolve(layout, "new").manifest.layers == old


def transform(kind: type[TransformRequest], image: ImageRef, target: ImageRef, **fields: object) -> None:
    run(kind.model_validate({"image": image, "target": target, **fields}))


@pytest.mark.parametrize(
    ("kind", "fields", "left"),
    [
        (SquashRequest, {}, []),
        (SquashRequest, {"keep": 1}, ["compression"]),
        (SquashRequest, {"keep": 2}, ["compression", "media-type"]),
        (RechunkRequest, {"budget": 4}, []),
        (StripRequest, {"paths": ["etc/a", "etc/b"]}, []),
    ],
)
def test_layers_that_other_transforms_write_have_right_labels(
    layout: Layout, kind: type[TransformRequest], fields: dict[str, Any], left: list[str]
) -> None:
    transform(kind, ref(layout, "t"), ref(layout, "new"), **fields)
    assert [finding.code for finding in validate_image(layout.path, "new").findings] == left
    tree = tree_of(layout, "t")
    for path in fields.get("paths", []):
        del tree[path.encode()]
    assert tree_of(layout, "new") == tree


def test_such_an_image_is_moved_to_another_base_and_such_a_base_replaced(layout: Layout) -> None:
    image(layout, [LOW, tar(("srv", b"y"))], tag="other")
    bases = {"old_base": ref(layout, "base"), "new_base": ref(layout, "other")}
    transform(RebaseRequest, ref(layout, "t"), ref(layout, "new"), accept="refuse", **bases)
    layers = resolve(layout, "t").manifest.layers
    assert resolve(layout, "new").manifest.layers == [*resolve(layout, "other").manifest.layers, *layers[1:]]
    transform(
        RebaseRequest,
        ref(layout, "new"),
        ref(layout, "again"),
        accept="refuse",
        old_base=ref(layout, "other"),
        new_base=ref(layout, "base"),
    )
    assert tree_of(layout, "again") == tree_of(layout, "t")
