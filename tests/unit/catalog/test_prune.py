"""Images that left a catalog are removed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogError
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.prune import Pruning, find_removals, prune
from tests.unit.catalog.works import catalog_file, ran, work_on
from tests.unit.image.images import image, tar

LAYOUT = "destination: {layout: out}\n"


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    layout = Layout.create(tmp_path / "images")
    for tag in ("app:1", "app:2", "lib:1", "lib:2"):
        image(layout, [tar((tag, b"x" * 1000)), tar(("b", tag.encode()))], tag=tag)
    return layout


def found(path: Path) -> Pruning:
    return find_removals(work_on(path))


def places(pruning: Pruning, directory: Path) -> set[str]:
    return {removal.place.replace(f"{directory}/", "") for removal in pruning.removals}


def apply(path: Path, at_most: float = 100) -> list[tuple[str, str]]:
    work = work_on(path)
    return prune(work, find_removals(work), at_most)


def tags(path: Path) -> set[str]:
    return set(Layout.open(path).tags())


def test_a_tag_that_is_gone_at_the_source_is_removed_in_the_store_and_at_the_destination(
    images: Layout, tmp_path: Path
) -> None:
    path = catalog_file(tmp_path, "{transform: squash}", LAYOUT)
    ran(path)
    assert found(path).removals == []
    images.untag("app:1")
    for _ in range(2):  # also after a run, which no longer has the image
        pruning = found(path)
        assert places(pruning, tmp_path) == {"store:app:1", "out:app:1"}
        assert (pruning.kept, pruning.missed, pruning.percent) == ([], [], 25)
        ran(path)
    assert "app:1" in tags(tmp_path / "out") and "app:1" in tags(tmp_path / "store")
    assert apply(path) == []
    assert tags(tmp_path / "out") == {"app:2", "lib:1", "lib:2"}
    assert "app:1" not in tags(tmp_path / "store")
    assert found(path).removals == found(path).absent == []
    assert {row.state for row in ran(path).images} == {"done"}


def test_an_image_that_is_no_longer_selected_is_removed_and_comes_back_when_it_is(
    images: Layout, tmp_path: Path
) -> None:
    path = catalog_file(tmp_path, "{transform: squash}")
    ran(path)
    text = path.read_text()
    path.write_text(text.replace("{layout: images}", "{layout: images, tags: ['app:*']}"))
    assert places(found(path), tmp_path) == {f"store:{start}lib:{tag}" for start in ("", "new/") for tag in (1, 2)}
    apply(path)
    assert {tag for tag in tags(tmp_path / "store") if "lib" in tag} == set()
    path.write_text(text)
    assert {(row.name, row.state) for row in ran(path).images} >= {("lib:1", "done"), ("lib:2", "done")}
    assert found(path).removals == []


def test_old_names_at_the_destination_are_removed_and_the_images_stay(images: Layout, tmp_path: Path) -> None:
    ran(catalog_file(tmp_path, "{transform: keep}", LAYOUT))
    path = catalog_file(tmp_path, "{transform: keep}", "destination: {layout: out, tag-suffix: -k}\n")
    ran(path)
    assert places(found(path), tmp_path) == {f"out:{name}" for name in ("app:1", "app:2", "lib:1", "lib:2")}
    apply(path)
    assert tags(tmp_path / "out") == {"app:1-k", "app:2-k", "lib:1-k", "lib:2-k"}
    assert {row.state for row in ran(path).images} == {"done"}
    assert found(path).removals == []


def test_tags_of_others_stay(images: Layout, tmp_path: Path) -> None:
    path = catalog_file(tmp_path, "{transform: squash}", LAYOUT)
    ran(path)
    out = Layout.open(tmp_path / "out")
    other = image(out, [tar(("other", b"x"))], tag="app:1").descriptor.digest
    image(out, [tar(("more", b"x"))], tag="others:1")
    out.untag("app:2")
    for tag in ("app:1", "app:2"):
        images.untag(tag)
    pruning = found(path)
    assert places(pruning, tmp_path) == {"store:app:1", "store:app:2"}
    ((place, why),) = pruning.kept
    assert place.endswith("out:app:1") and other in why
    assert [removal.image for removal in pruning.absent] == ["app:2"]
    apply(path)
    assert {"app:1", "others:1"} <= tags(tmp_path / "out")


def test_another_catalog_of_the_store_keeps_its_images(images: Layout, tmp_path: Path) -> None:
    path = catalog_file(tmp_path, "{transform: squash}", LAYOUT)
    ran(path)
    ran(catalog_file(tmp_path, "{transform: keep}", "destination: {layout: other}\n", name="other.yaml"))
    images.untag("app:1")
    pruning = found(path)
    assert pruning.removals == []
    assert {why for _, why in pruning.kept} == {"another catalog of this store has the image"}


def test_the_store_as_a_source_keeps_its_originals(tmp_path: Path) -> None:
    store = Layout.create(tmp_path / "store")
    image(store, [tar(("a", b"x")), tar(("b", b"x"))], tag="app:1")
    image(store, [tar(("a", b"y")), tar(("b", b"x"))], tag="app:2")
    path = catalog_file(tmp_path, "{transform: squash}")
    path.write_text(path.read_text().replace("layout: images", "layout: store"))
    ran(path)
    path.write_text(path.read_text().replace("layout: store", "layout: store, tags: ['app:1']"))
    assert places(found(path), tmp_path) == {"store:new/app:2"}


def test_a_source_that_cannot_be_listed_loses_nothing(images: Layout, tmp_path: Path) -> None:
    path = catalog_file(tmp_path, "{transform: squash}", LAYOUT)
    ran(path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    pruning = found(path)
    assert pruning.removals == []
    assert len(pruning.missed) == 1


def test_more_than_the_share_is_refused_and_nothing_removed(images: Layout, tmp_path: Path) -> None:
    path = catalog_file(tmp_path, "{transform: squash}", LAYOUT)
    ran(path)
    for tag in ("app:1", "app:2"):
        images.untag(tag)
    before = tags(tmp_path / "out")
    with pytest.raises(CatalogError, match=r"50 % of the images would be removed, more than 25 %"):
        apply(path, 25)
    assert tags(tmp_path / "out") == before
    assert apply(path, 50) == []
    assert tags(tmp_path / "out") == {"lib:1", "lib:2"}
