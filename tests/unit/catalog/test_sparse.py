"""Indexes that name manifests which the layout does not hold, as ``docker save`` writes them (image-layout.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.catalog.pull import copy_in
from layerfarm.jobs.store import Layout
from tests.unit.catalog.images import entry, index, without
from tests.unit.image.images import image, tar

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


def test_what_is_there_is_copied(sparse: Layout, other: Layout) -> None:
    top = copy_in(sparse, "t", other, "copy")
    assert other.read(top) == sparse.read(top)
    assert {path.name for path in other.path.glob("blobs/*/*")} == {path.name for path in sparse.path.glob("blobs/*/*")}
