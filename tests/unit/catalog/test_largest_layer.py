"""The largest layer that a destination takes: layers are split, or the image fails in the plan."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import pytest

from layerfarm.jobs.errors import CatalogFileError
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Destination
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.state import ImageState
from layerfarm.worker.catalog.transfer import Pusher
from layerfarm.worker.catalog.versions import parse_size
from tests.unit.catalog.works import Seen, catalog_file, planned, ran
from tests.unit.image.images import image, tar


def noise(seed: object, size: int) -> bytes:
    return random.Random(str(seed)).randbytes(size)


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    """Two images with eight equal files of 40 kB, that belong together; the tag 2 of ``big`` has one of 200 kB."""
    layout = Layout.create(tmp_path / "images")
    parts = [(f"opt/{part}/data", noise(part, 40_000)) for part in range(8)]
    image(layout, [tar(*parts)], tag="app:1")
    image(layout, [tar(*parts, ("opt/big/data", noise("big", 200_000)))], tag="big:1")
    return layout


def catalog(directory: Path, largest: str, policy: str = "rechunk, only-if-saves: off") -> Path:
    return catalog_file(
        directory, f"{{transform: {policy}}}", f"destination: {{layout: out, largest-layer: {largest}}}\n"
    )


def test_layers_are_split_below_the_limit_and_unsplittable_ones_fail_in_the_plan(
    images: Layout, tmp_path: Path
) -> None:
    for report in (planned(catalog(tmp_path, "150kB")), ran(catalog(tmp_path, "150kB"))):
        rows = {row.name: row for row in report.images}
        assert rows["app:1"].state == ("planned" if report.after is None else "done")
        assert rows["big:1"].state == "failed"
        assert "opt/big" in (rows["big:1"].error or "") and "150000" in (rows["big:1"].error or "")
    sizes = [layer.size for layer in resolve(Layout.open(tmp_path / "out"), "app:1").manifest.layers]
    assert max(sizes) <= 150_000
    assert sum(sizes) > 8 * 40_000
    rows = {row.name: row for row in ran(catalog(tmp_path, "'off'")).images}
    assert {row.state for row in rows.values()} == {"done"}


def test_a_second_run_splits_alike(images: Layout, tmp_path: Path) -> None:
    ran(catalog(tmp_path, "150kB"))
    view = Seen()
    ran(catalog(tmp_path, "150kB"), view)
    assert view.steps["transform"] == 0


def test_an_image_that_is_copied_fails_in_the_plan(images: Layout, tmp_path: Path) -> None:
    report = planned(catalog(tmp_path, "400kB", "keep"))
    rows = {row.name: row for row in report.images}
    (layer,) = resolve(images, "big:1").manifest.layers
    assert rows["app:1"].state == "pending"
    assert rows["big:1"].state == "failed"
    assert layer.digest in (rows["big:1"].error or "")


def test_a_budget_without_room_for_the_pieces_is_an_error(images: Layout, tmp_path: Path) -> None:
    rows = {row.name: row for row in planned(catalog(tmp_path, "100kB", "rechunk, budget: 3")).images}
    assert "a higher budget has room" in (rows["app:1"].error or "")


def test_an_image_with_a_layer_that_turned_out_too_large_is_not_pushed(images: Layout) -> None:
    there = Destination.model_validate({"registry": "docker://h/new", "largest-layer": "100kB"})
    pusher = Pusher(cast(Skopeo, None), there, [], "store", print)
    new = images.find("app:1")[0]
    state, nbytes = pusher.push(ImageState(name="app:1", new=new), images)
    assert nbytes == 0 and state.pushed is None
    assert "more than the 100000 of largest-layer" in (state.error or "")


def test_a_registry_has_a_limit_by_default() -> None:
    registry = {"registry": "docker://h/new"}
    assert Destination.model_validate(registry).largest == 10 * 10**9
    assert Destination.model_validate(registry | {"largest-layer": "off"}).largest is None
    assert Destination.model_validate(registry | {"largest-layer": "512MiB"}).largest == 512 << 20
    assert Destination.model_validate({"layout": "out"}).largest is None


@pytest.mark.parametrize("text", ["10", "10gb", "0GB", "1.5GB", "-1GB", "GB", "10 G"])
def test_a_size_has_a_unit(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
    with pytest.raises(CatalogFileError, match="is not a size"):
        ran(catalog(tmp_path, f"'{text}'"))
