"""An index of images for Linux and for Windows: the first are transformed, the others stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import TransformError
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.transforms import (
    AnalyzeRequest,
    AnalyzeResult,
    FlattenRequest,
    RechunkRequest,
    RecompressRequest,
    SquashRequest,
    StripRequest,
    TransformRequest,
)
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.image.mutate import with_manifest
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.engine import local
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import entry, index, manifest, ref, run

LINUX = [tar(("base", b"base")), tar(("app", b"app"))]
WINDOWS = [tar(("Files/base", b"base")), tar(("Files/app", b"app"))]
REQUESTS: dict[str, tuple[type[TransformRequest], dict[str, object]]] = {
    "squash": (SquashRequest, {}),
    "strip": (StripRequest, {"paths": ["/app"]}),
    "rechunk": (RechunkRequest, {"compress": "zstd"}),
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def foreign(layout: Layout, made: Resolved) -> Resolved:
    """The image with its lowest layer to be fetched from elsewhere, and not in the layout."""
    lowest, *rest = made.manifest.layers
    away = lowest.model_copy(
        update={
            "media_type": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "urls": ["https://example.org/base"],
        }
    )
    layout.blob_path(lowest.digest).unlink()
    return with_manifest(layout, made, made.manifest.model_copy(update={"layers": [away, *rest]}))


def two_systems(layout: Layout) -> tuple[Resolved, Resolved, Descriptor]:
    """The tag ``t``: an image for Linux, one for Windows with a foreign layer, whose SBOM is beside it."""
    linux = image(layout, LINUX, tag="l")
    windows = foreign(layout, image(layout, WINDOWS, tag="w", os="windows"))
    sbom = manifest(layout, "application/spdx+json", b"{}", windows.descriptor)
    layout.untag("l")
    layout.untag("w")
    top = index(layout, [entry(linux), entry(windows)], "t")
    layout.update_index(lambda old: old.model_copy(update={"manifests": [*old.manifests, sbom]}))
    return linux, windows, top


@pytest.mark.parametrize("operation", sorted(REQUESTS))
@pytest.mark.parametrize("elsewhere", [False, True])
def test_images_for_other_systems_stay_byte_for_byte_with_a_warning(
    layout: Layout, tmp_path: Path, operation: str, elsewhere: bool
) -> None:
    linux, windows, _ = two_systems(layout)
    target = Layout.create(tmp_path / "target") if elsewhere else layout
    kind, fields = REQUESTS[operation]
    result = run(kind.model_validate({"image": ref(layout, "t"), "target": ref(target, "new"), **fields}))
    assert not result.unchanged
    assert [change.platform for change in result.images] == ["linux/amd64"]
    assert resolve(target, "new", "windows/amd64").descriptor.digest == windows.descriptor.digest
    assert resolve(target, "new", "linux/amd64").descriptor.digest != linux.descriptor.digest
    assert all(target.has(blob) for blob in windows.blobs if not blob.urls)
    (warning,) = [text for text in result.warnings if "kept unchanged" in text]
    assert "windows/amd64" in warning and windows.descriptor.digest in warning
    assert result.referrers == (1 if elsewhere else 0)


def test_recompress_is_for_every_system_and_leaves_foreign_layers(layout: Layout) -> None:
    _, windows, _ = two_systems(layout)
    request = RecompressRequest(image=ref(layout, "t"), target=ref(layout, "new"), compress="zstd")
    assert [change.platform for change in run(request).images] == ["linux/amd64", "windows/amd64"]
    lowest, upper = resolve(layout, "new", "windows/amd64").manifest.layers
    assert lowest == windows.manifest.layers[0]
    assert upper.media_type.endswith("+zstd")


def test_flatten_and_analysis_are_of_the_images_for_linux(layout: Layout, tmp_path: Path) -> None:
    linux, _, _ = two_systems(layout)
    policy = Policy(shards=1, threads=1)
    flat = local.run(FlattenRequest(image=ref(layout, "t"), output=tmp_path / "tree"), policy, 1)
    assert (tmp_path / "tree" / "app").read_bytes() == b"app"
    analyzed = local.run(AnalyzeRequest(image=ref(layout, "t")), policy, 1)
    assert isinstance(analyzed, AnalyzeResult)
    assert [parts.image for parts in analyzed.images] == [linux.descriptor.digest]
    for warnings in (analyzed.warnings, flat.warnings):  # type: ignore[attr-defined]
        assert any("windows/amd64 is kept unchanged" in text for text in warnings)


@pytest.mark.parametrize("operation", sorted(REQUESTS))
def test_an_index_without_an_image_for_linux_is_refused(layout: Layout, operation: str) -> None:
    windows = image(layout, WINDOWS, tag="w", os="windows")
    index(layout, [entry(windows)], "t")
    kind, fields = REQUESTS[operation]
    with pytest.raises(TransformError, match="'windows' can only be recompressed"):
        run(kind.model_validate({"image": ref(layout, "t"), "target": ref(layout, "new"), **fields}))
    assert "new" not in layout.tags()
