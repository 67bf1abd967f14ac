"""``layerfarm catalog`` on layouts: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from tests.trees import read_tree
from tests.unit.catalog.works import catalog_file
from tests.unit.cli.conftest import Run
from tests.unit.image.images import image, tar


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    """The images a:1 of two layers, and b:1 of one."""
    layout = Layout.create(tmp_path / "images")
    image(layout, [tar(("a", b"1")), tar(("b", b"2"))], tag="a:1")
    image(layout, [tar(("a", b"1"))], tag="b:1")
    return layout


def test_plan_fails_with_an_image_that_fails(images: Layout, tmp_path: Path, layerfarm: Run) -> None:
    path = catalog_file(tmp_path)
    assert layerfarm("catalog", "plan", path).code == 0
    image(images, [b"this is no tar" * 100], tag="broken:1")
    code, out, _ = layerfarm("catalog", "plan", path)
    assert code == 1
    assert "failed: 1" in out
    assert "a:1" in layerfarm("catalog", "plan", path, "--images").out


def test_verify_counts_the_images_that_it_read(images: Layout, tmp_path: Path, layerfarm: Run) -> None:
    path = catalog_file(tmp_path, "{transform: squash}")
    assert layerfarm("catalog", "run", path).code == 0
    assert layerfarm("catalog", "verify", path)[:2] == (0, "1 image, 0 faults, 1 kept and not read\n")

    path = catalog_file(tmp_path, "{transform: keep}")
    assert layerfarm("catalog", "run", path).code == 0
    assert layerfarm("catalog", "verify", path)[:2] == (0, "0 images, 0 faults, 2 kept and not read\n")


def test_verify_says_that_a_catalog_has_not_run(images: Layout, tmp_path: Path, layerfarm: Run) -> None:
    path = catalog_file(tmp_path)
    not_run = (0, "catalog has not run yet: 0 images\n")
    assert layerfarm("catalog", "verify", path)[:2] == not_run
    assert layerfarm("catalog", "plan", path).code == 0
    assert layerfarm("catalog", "verify", path)[:2] == not_run

    image(images, [b"this is no tar" * 100], tag="a:1")
    images.untag("b:1")
    assert layerfarm("catalog", "run", path).code == 1
    assert layerfarm("catalog", "verify", path)[:2] == (0, "0 images, 0 faults\n")


def test_verify_after_a_run_and_a_later_plan_reads_the_images(images: Layout, tmp_path: Path, layerfarm: Run) -> None:
    path = catalog_file(tmp_path, "{transform: squash}")
    assert layerfarm("catalog", "run", path).code == 0
    assert layerfarm("catalog", "plan", path).code == 0
    assert layerfarm("catalog", "verify", path).out.startswith("1 image, 0 faults")


def test_report_and_prune_change_nothing_on_disk(images: Layout, tmp_path: Path, layerfarm: Run) -> None:
    path = catalog_file(tmp_path, "{transform: squash}", "destination: {layout: out}\n")
    assert layerfarm("catalog", "run", path).code == 0
    images.untag("b:1")
    before = read_tree(tmp_path)
    assert "2 images" in layerfarm("catalog", "report", path).out
    assert "would remove 2 tags" in layerfarm("catalog", "prune", path).out
    assert read_tree(tmp_path) == before
    assert layerfarm("catalog", "report", path, "--html", "report.html").code == 0
    assert read_tree(tmp_path).keys() - before.keys() == {b"report.html"}


def test_prune_lists_more_than_the_share_and_names_the_option(images: Layout, tmp_path: Path, layerfarm: Run) -> None:
    path = catalog_file(tmp_path, "{transform: squash}", "destination: {layout: out}\n")
    assert layerfarm("catalog", "run", path).code == 0
    images.untag("b:1")
    code, out, _ = layerfarm("catalog", "prune", path)
    assert code == 0
    assert out.endswith("50 % of all images lose one, more than 25 %: allow it with --at-most\n")
    assert layerfarm("catalog", "prune", path, "--at-most", "50").out.endswith("50 % of all images lose one\n")


def test_a_run_that_would_replace_originals_does_nothing(images: Layout, tmp_path: Path, layerfarm: Run) -> None:
    before = resolve(images, "a:1").descriptor.digest
    path = catalog_file(tmp_path, "{transform: squash}", "destination: {layout: images}\n")
    for command in ("plan", "run"):
        code, out, err = layerfarm("catalog", command, path)
        assert (code, out) == (1, "")
        assert f"the new image would replace the original {images.path}:a:1: a:1 (" in err
        assert "replace: true" in err
    assert resolve(images, "a:1").descriptor.digest == before
