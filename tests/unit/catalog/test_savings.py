"""A repository that the plan would not save enough stays as it is; the others are planned without it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogFileError
from layerfarm.jobs.image import resolve
from layerfarm.jobs.relayer.referrers import referrers
from layerfarm.jobs.store import Layout
from layerfarm.worker.cli.catalog_text import report_lines
from tests.unit.catalog.works import Seen, catalog_file, costs, planned, ran, work_on
from tests.unit.image.images import image, tar

PARTS = 12


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    """``fat`` is one layer, in which one part changes; in ``fine`` only a small layer changes."""
    layout = Layout.create(tmp_path / "images")
    for tag in (1, 2, 3):
        fat(layout, tag)
        fine(layout, tag)
    return layout


def noise(seed: object, size: int) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def fat(layout: Layout, tag: int) -> None:
    parts = [(f"opt/{part}/data", noise((part, tag if part == 0 else 0), 40_000)) for part in range(PARTS)]
    image(layout, [tar(*parts)], tag=f"fat:{tag}", created=f"2024-01-0{tag}T00:00:00Z")


def fine(layout: Layout, tag: int) -> None:
    base = tar(*((f"usr/{part}/data", noise(("base", part), 40_000)) for part in range(PARTS)))
    image(
        layout,
        [base, tar(("srv/app", noise(("app", tag), 500)))],
        tag=f"fine:{tag}",
        created=f"2024-01-0{tag}T00:00:00Z",
    )


def digests(layout: Layout, *tags: str) -> list[str]:
    return [resolve(layout, tag).descriptor.digest for tag in tags]


def test_a_run_does_not_carry_out_a_loss_that_its_plan_predicts(images: Layout, tmp_path: Path) -> None:
    path = catalog_file(tmp_path)
    before = planned(path)
    (loss,) = before.losses
    assert (loss.repository, loss.images) == ("fine", 3)
    assert loss.pull_before < loss.pull_planned
    assert before.planned is not None
    rows = {row.name: row for row in before.images}
    assert rows["fine:2"].pull_planned == rows["fine:2"].pull_before
    assert rows["fine:2"].layers_planned == 2

    report = ran(path)
    assert report.losses == before.losses
    assert {row.state for row in report.images} == {"done"}
    store = Layout.open(tmp_path / "store")
    assert digests(store, *(f"new/fine:{n}" for n in (1, 2, 3))) == digests(images, *(f"fine:{n}" for n in (1, 2, 3)))
    assert not referrers(store, digests(store, "new/fine:1")[0])
    after = {row.name: row for row in report.images}
    assert after["fat:2"].pull_after is not None and before.images[1].pull_before is not None
    assert after["fat:2"].pull_after < 0.2 * before.images[1].pull_before
    assert after["fine:2"].pull_after == after["fine:2"].pull_before
    assert "  fine, 3 images: pulls " in "\n".join(report_lines(report))


def test_repositories_left_as_they_are_are_left_and_reported_again(images: Layout, tmp_path: Path) -> None:
    path = catalog_file(tmp_path)
    report, view = ran(path), Seen()
    assert costs(ran(path, view)) == costs(report)
    assert view.steps["transform"] == 0
    work = work_on(path)
    work.plan_again()
    assert list(work.losses) == list(report.losses)
    assert work.joint is not None
    assert {member.name for member in work.joint.members} == {"fat:1", "fat:2", "fat:3"}


def test_off_rechunks_all_and_a_percentage_asks_for_more(images: Layout, tmp_path: Path) -> None:
    assert planned(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: off}")).losses == ()
    assert planned(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: 80}")).losses[0].repository == "fine"
    report = planned(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: 99.5}"))
    assert [(loss.repository, loss.wanted) for loss in report.losses] == [("fat", 99.5), ("fine", 99.5)]
    assert report.planned == report.before
    assert {row.state for row in ran(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: 99.5}")).images} == {
        "done"
    }
    with pytest.raises(CatalogFileError, match="only-if-saves"):
        planned(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: 100}"))


def test_each_policy_has_its_own_percentage(images: Layout, tmp_path: Path) -> None:
    path = catalog_file(tmp_path)
    path.write_text(
        "store: store\nsources: [{layout: images}]\npolicies:\n"
        "  - {match: 'fine:*', do: {transform: rechunk, only-if-saves: off}}\n"
        "  - {match: '*', do: {transform: rechunk, only-if-saves: 99}}\n"
    )
    assert [loss.repository for loss in planned(path).losses] == ["fat"]


@pytest.mark.large
def test_a_policy_that_changes_its_mind_is_followed(images: Layout, tmp_path: Path) -> None:
    ran(catalog_file(tmp_path))
    view = Seen()
    ran(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: off}"), view)
    assert view.steps["transform"] == 3
    store = Layout.open(tmp_path / "store")
    assert digests(store, "new/fine:1") != digests(images, "fine:1")


@pytest.mark.large
def test_rechunked_repositories_stay_rechunked_until_a_new_plan(images: Layout, tmp_path: Path) -> None:
    """Hosts have its layers: to go back costs each a whole image."""
    ran(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: off}"))
    fine(images, 4)
    view = Seen()
    report = ran(catalog_file(tmp_path), view)
    assert (report.losses, view.steps["transform"]) == ((), 1)
    assert [loss.repository for loss in ran(catalog_file(tmp_path), replan=True).losses] == ["fine"]
    assert digests(Layout.open(tmp_path / "store"), "new/fine:4") == digests(images, "fine:4")


def test_a_repository_of_one_tag_has_no_pulls_to_lose(tmp_path: Path) -> None:
    fine(Layout.create(tmp_path / "images"), 1)
    report = planned(catalog_file(tmp_path))
    assert report.losses == ()
    assert report.images[0].layers_planned != 2
