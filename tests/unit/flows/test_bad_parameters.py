"""Parameters that no layer can be written with are refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows.base import Context
from layerfarm.jobs.flows.build import BUILD
from layerfarm.jobs.flows.repack import REPACK
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, LayerOptions, RepackRequest
from layerfarm.jobs.flows.transforms import FlattenRequest, SquashRequest
from layerfarm.jobs.image import resolve, unpack_manifest
from layerfarm.jobs.store import Layout
from tests.unit.image.images import image, tar


@pytest.fixture
def target(tmp_path: Path) -> ImageRef:
    layout = Layout.create(tmp_path / "store")
    image(layout, [tar(("f", b""))])
    unpack_manifest(layout, tmp_path / "bundle", resolve(layout, "t"))
    return ImageRef(store=layout.path, tag="new")


@pytest.mark.parametrize(("compress", "level"), [("gzip", 13), ("gzip", -1), ("zstd", 99), ("none", 1)])
def test_level_that_the_codec_does_not_have(tmp_path: Path, target: ImageRef, compress: Any, level: int) -> None:
    layer = LayerOptions(compress=compress, level=level)
    with pytest.raises(RequestError, match="level"):
        BUILD.begin(Context("one"), BuildRequest(rootfs=tmp_path / "bundle/rootfs", image=target, layer=layer))
    with pytest.raises(RequestError, match="level"):
        REPACK.begin(Context("one"), RepackRequest(bundle=tmp_path / "bundle", image=target, layer=layer))


@pytest.mark.parametrize("epoch", [253_402_300_800, -62_135_596_801])
def test_epoch_that_no_document_can_hold(tmp_path: Path, target: ImageRef, epoch: int) -> None:
    with pytest.raises(ValidationError):
        LayerOptions(source_date_epoch=epoch)
    fields = {"image": target, "target": target, "output": tmp_path / "x", "source_date_epoch": epoch}
    for kind in (FlattenRequest, SquashRequest):
        with pytest.raises(ValidationError, match="source_date_epoch"):
            kind.model_validate({name: fields[name] for name in kind.model_fields if name in fields})
