"""The record of a run: the steps that changed something, for each image, and the begin and end."""

from __future__ import annotations

from pathlib import Path

from layerfarm.jobs.store import Layout
from tests.unit.catalog.works import catalog_file, planned, ran, work_on
from tests.unit.image.images import image, tar


def images(directory: Path, *tags: str) -> None:
    path = directory / "images"
    layout = Layout.open(path) if path.exists() else Layout.create(path)
    for tag in tags:
        image(layout, [tar(("base", b"base")), tar(("tag", tag.encode()))], tag=tag)


def acts(path: Path) -> dict[str, tuple[str, ...]]:
    """By image, the steps of the last run."""
    states = work_on(path).states
    began = states.last_run().began
    return {state.name: state.acts if state.run == began else () for state in states.all()}


def test_each_image_has_the_steps_of_the_last_run_only(tmp_path: Path) -> None:
    images(tmp_path, "a:1", "a:2")
    path = catalog_file(tmp_path, "{transform: squash}")
    ran(path)
    assert acts(path) == {"a:1": ("fetched", "made"), "a:2": ("fetched", "made")}
    images(tmp_path, "a:3")
    ran(path)
    assert acts(path) == {"a:1": (), "a:2": (), "a:3": ("fetched", "made")}


def test_an_image_that_is_published_unchanged_is_copied(tmp_path: Path) -> None:
    images(tmp_path, "a:1")
    path = catalog_file(tmp_path, "{transform: keep}")
    ran(path)
    assert acts(path) == {"a:1": ("fetched", "copied")}


def test_an_image_that_the_destination_lost_is_copied_again(tmp_path: Path) -> None:
    images(tmp_path, "a:1")
    path = catalog_file(tmp_path, "{transform: keep}", more="destination: {layout: out}\n")
    ran(path)
    Layout.open(tmp_path / "out").untag("a:1")
    ran(path)
    assert acts(path) == {"a:1": ("copied",)}


def test_a_run_and_a_plan_have_a_kind_a_begin_and_an_end(tmp_path: Path) -> None:
    images(tmp_path, "a:1")
    path = catalog_file(tmp_path)
    planned(path)
    plan = work_on(path).states.last_run()
    assert (plan.kind, plan.began is not None, plan.ended is not None) == ("plan", True, True)
    ran(path)
    run = work_on(path).states.last_run()
    assert run.kind == "run"
    assert plan.ended is not None and run.began is not None and run.ended is not None
    assert plan.ended <= run.began <= run.ended


def test_an_interrupted_run_has_no_end_and_the_steps_it_took(tmp_path: Path) -> None:
    images(tmp_path, "a:1")
    path = catalog_file(tmp_path, "{transform: squash}")
    work_on(path).fetch()
    assert work_on(path).states.last_run().ended is None
    assert acts(path) == {"a:1": ("fetched",)}


def test_the_step_that_failed_is_recorded(tmp_path: Path) -> None:
    images(tmp_path, "a:1")
    path = catalog_file(tmp_path, "{transform: squash, keep: 9}")
    ran(path)
    state = work_on(path).states["a:1"]
    assert state.error is not None
    assert state.failed_in == "transform"
