"""Places of new images: never an original's, unless the catalog asks for it, and then once."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogError
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Destination, parse_catalog
from layerfarm.worker.catalog.places import is_replaced, place_of, reference_at, repository_in
from layerfarm.worker.catalog.sources import CatalogImage, Listing, select
from tests.unit.catalog.works import Seen, catalog_file, costs, places, ran
from tests.unit.image.images import image, tar


def images_of(directory: Path, sources: str, destination: str) -> list[CatalogImage]:
    text = (
        f"store: store\nsources: {sources}\npolicies: [{{match: '*', do: {{transform: squash}}}}]\n"
        f"destination: {destination}\n"
    )
    found = parse_catalog(text.encode(), directory / "c.yaml")
    return select(found, [Listing(source, name, ["1.0"]) for source, name, _ in places(found)])


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("docker://h/team", "docker://h"),
        ("docker://h:443/team", "docker://H/"),
        ("docker://h", "docker://h"),
        ("docker://docker.io/team", "docker://registry-1.docker.io"),
        ("docker://docker.io", "docker://index.docker.io/library"),
    ],
)
def test_a_registry_that_is_source_and_destination_is_refused(tmp_path: Path, source: str, destination: str) -> None:
    sources = f"[{{registry: '{source}', repositories: [web]}}]"
    with pytest.raises(CatalogError, match=r"would replace the original docker://.*web:1\.0"):
        images_of(tmp_path, sources, f"{{registry: '{destination}'}}")
    assert images_of(tmp_path, sources, f"{{registry: '{destination}', replace: true}}")
    assert images_of(tmp_path, sources, f"{{registry: '{destination}/other'}}")


def test_the_original_of_another_image_is_not_replaced_either(tmp_path: Path) -> None:
    sources = "[{registry: 'docker://h/new', repositories: [web]}, {registry: 'docker://other', repositories: [web]}]"
    with pytest.raises(CatalogError, match=r"replace the original docker://h/new/web:1\.0: web:1\.0 "):
        images_of(tmp_path, sources, "{registry: 'docker://h/new'}")


def test_a_name_without_a_tag_is_published_as_latest_and_replaces_no_original_of_that_tag() -> None:
    destination = Destination(registry="docker://h")
    assert place_of(destination, "app") == reference_at(destination, "app") == "docker://h/app:latest"
    assert is_replaced(destination, "app", "docker://h/app:latest")


@pytest.mark.parametrize("end", ["", ":1.0", "@sha256:" + "a" * 64])
def test_the_repository_of_a_reference_keeps_a_port(end: str) -> None:
    assert repository_in(f"docker://h:5000/team/app{end}") == "docker://h:5000/team/app"


def test_a_layout_that_is_source_and_destination_is_refused_by_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    with pytest.raises(CatalogError, match="would replace the original"):
        images_of(tmp_path, "[{layout: images}]", "{layout: link}")
    assert images_of(tmp_path, "[{layout: images, prefix: new/}]", "{layout: link}")


def test_the_store_is_no_destination(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="destination is the store"):
        images_of(tmp_path, "[{layout: images}]", "{layout: ./store, replace: true}")


def test_a_replaced_image_is_not_transformed_again(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "images")
    old = image(layout, [tar(("a", b"1")), tar(("b", b"2"))], tag="web:1.0")
    path = catalog_file(tmp_path, "{transform: squash}", "destination: {layout: images, replace: true}\n")
    (row,) = costs(ran(path)).images
    assert (row.state, row.layers_before, row.layers_after) == ("done", 2, 1)
    new = resolve(layout, "web:1.0")
    assert new.descriptor.digest == row.new != old.descriptor.digest
    assert resolve(Layout.open(tmp_path / "store"), "web:1.0").descriptor.digest == old.descriptor.digest

    view = Seen()
    (again,) = costs(ran(path, view)).images
    assert (again, view.steps["transform"]) == (row, 0)

    newer = image(layout, [tar(("a", b"1")), tar(("b", b"3"))], tag="web:1.0")
    (row,) = ran(path).images
    assert (row.old, row.layers_after) == (newer.descriptor.digest, 1)


def test_the_new_images_of_a_store_that_is_also_the_source_are_no_originals(tmp_path: Path) -> None:
    image(Layout.create(tmp_path / "images"), [tar(("a", b"1")), tar(("b", b"2"))], tag="web:1.0")
    path = catalog_file(tmp_path, "{transform: squash}")
    path.write_text(path.read_text().replace("store: store", "store: images"))
    for _ in range(3):
        assert [row.name for row in ran(path).images] == ["web:1.0"]
    assert sorted(Layout.open(tmp_path / "images").tags()) == ["new/web:1.0", "web:1.0"]
