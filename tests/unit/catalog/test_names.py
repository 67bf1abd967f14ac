"""Names of new images at the destination."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogError, CatalogFileError
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Destination, parse_catalog
from layerfarm.worker.catalog.names import check_names, published_name
from layerfarm.worker.catalog.places import place_of, reference_at, repository_at, target_of
from tests.unit.catalog.works import Seen, catalog_file, ran
from tests.unit.image.images import image, tar


def destination(**fields: str) -> Destination:
    return Destination.model_validate({name.replace("_", "-"): value for name, value in fields.items()})


def registry(**fields: str) -> Destination:
    return destination(registry="docker://h:5000/new", **fields)


@pytest.mark.parametrize(
    ("fields", "name", "published"),
    [
        ({}, "team/web:1.0", "team/web:1.0"),
        ({}, "tools", "tools:latest"),
        ({"strip_prefix": "team/"}, "team/web:1.0", "web:1.0"),
        ({"strip_prefix": "team/"}, "other/team/web:1.0", "other/team/web:1.0"),
        ({"tag_suffix": "-slim"}, "team/web:1.0", "team/web:1.0-slim"),
        ({"tag_suffix": "-slim"}, "team/tools", "team/tools:latest-slim"),
        ({"strip_prefix": "team/", "tag_suffix": "-slim"}, "team/web:1.0", "web:1.0-slim"),
        ({"name": "mirror/{basename}:{tag}"}, "team/ui/web:1.0", "mirror/web:1.0"),
        ({"name": "{repository}/slim:{tag}", "strip_prefix": "team/"}, "team/web:1.0", "web/slim:1.0"),
        ({"name": "all:{basename}-{tag}", "tag_suffix": "-x"}, "team/web:1.0", "all:web-1.0-x"),
        ({"name": "{basename}:{tag}"}, "tools", "tools:latest"),
        ({"name": "{basename}:{tag}"}, "base/web-1.0", "web:1.0"),
        ({"name": "{basename}"}, "team/web:1.0", "web:latest"),
    ],
)
def test_names_in_a_registry(fields: dict[str, str], name: str, published: str) -> None:
    assert published_name(registry(**fields), name) == published
    check_names(registry(**fields), [name])
    assert reference_at(registry(**fields), name) == place_of(registry(**fields), name)
    assert reference_at(registry(**fields), name) == f"docker://h:5000/new/{published}"
    assert repository_at(registry(**fields), name) == f"docker://h:5000/new/{published.rpartition(':')[0]}"


def test_in_a_layout_a_name_need_not_have_a_tag() -> None:
    there = destination(layout="/out", strip_prefix="base/", tag_suffix="-slim")
    assert target_of(Path("/s"), there, "base/web-1.0").tag == "web-1.0-slim"
    assert target_of(Path("/s"), Destination(), "web:1").tag == "new/web:1"


@pytest.mark.parametrize(
    ("fields", "names", "words"),
    [
        ({"strip_prefix": "team/"}, ["team/web:1", "web:1"], "get the name web:1"),
        ({"name": "all:{tag}"}, ["a:1", "b:2", "b:1"], "a:1 and b:1"),
        ({}, ["app", "app:latest"], "app and app:latest"),
        ({"name": "{basename}:{tag}:x"}, ["a:1"], "not a valid name"),
        ({"name": "UP/{basename}:{tag}"}, ["a:1"], "not a valid name"),
        ({"name": "/{basename}:{tag}"}, ["a:1"], "not a valid name"),
        ({"name": "../{basename}:{tag}"}, ["a:1"], "not a valid name"),
        ({"strip_prefix": "team/web"}, ["team/web:1"], "not a valid name"),
        ({"tag_suffix": " x"}, ["a:1"], "not a valid name"),
        ({"tag_suffix": "x" * 128}, ["a:1"], "not a valid name"),
    ],
)
def test_two_images_of_one_name_and_invalid_names_are_errors(
    fields: dict[str, str], names: list[str], words: str
) -> None:
    with pytest.raises(CatalogError, match=words):
        check_names(registry(**fields), names)


@pytest.mark.parametrize(
    "template", ["{tag", "{host}:{tag}", "{tag.x}", "{tag!r}", "{tag:>9}", "{0}", "{}", "{tag[0]}"]
)
def test_templates_have_the_known_fields_alone(template: str) -> None:
    text = "store: s\nsources: [{layout: a}]\npolicies: [{match: '*', do: {transform: keep}}]\n"
    with pytest.raises(CatalogFileError, match=r"c\.yaml:4"):
        parse_catalog((text + f"destination: {{layout: out, name: '{template}'}}\n").encode(), Path("/c.yaml"))


def test_a_run_publishes_under_the_new_names_and_a_change_of_them_publishes_again(tmp_path: Path) -> None:
    images = Layout.create(tmp_path / "images")
    for tag in ("team/web:1", "team/web:2"):
        image(images, [tar((tag, b"x" * 1000))], tag=tag)
    rename = "destination: {layout: out, strip-prefix: team/, tag-suffix: -slim}\n"
    path = catalog_file(tmp_path, "{transform: squash}", rename)
    for transformed in (2, 0):
        view = Seen()
        assert {row.state for row in ran(path, view).images} == {"done"}
        assert view.steps["transform"] == transformed
    assert sorted(Layout.open(tmp_path / "out").tags()) == ["web:1-slim", "web:2-slim"]
    ran(catalog_file(tmp_path, "{transform: squash}", rename.replace("-slim", "-s")))
    assert {"web:1-s", "web:2-s"} < set(Layout.open(tmp_path / "out").tags())
    with pytest.raises(CatalogError, match="two images get the name"):
        ran(catalog_file(tmp_path, "{transform: squash}", "destination: {layout: out, name: all}\n"))
