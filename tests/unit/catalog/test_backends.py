"""Jobs of a catalog on this machine: their tags are set together, and nothing of them is lost before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import SquashRequest
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout, tag_group
from layerfarm.jobs.store.gc import collect
from layerfarm.jobs.store.leases import Leases
from layerfarm.worker.catalog.backends import Local, Task
from layerfarm.worker.model import Progress
from tests.unit.image.images import image, tar


class Watching:
    """A watcher; at the first progress of one task Ctrl-C is pressed."""

    def __init__(self, interrupted: str) -> None:
        self._interrupted = interrupted

    def submitted(self, task: Task, job: str) -> None:
        pass

    def progress(self, task: Task, progress: Progress) -> None:
        if task.name == self._interrupted:
            raise KeyboardInterrupt


class Ground:
    """Three images, and a store for new ones."""

    def __init__(self, directory: Path) -> None:
        self.source = Layout.create(directory / "source")
        self.store = Layout.create(directory / "store")
        for name in ("a", "b", "c"):
            image(self.source, [tar(("base", b"base")), tar((name, name.encode()))], tag=name)
        self.ended: list[tuple[str, str | None]] = []

    def task(self, name: str, tag: str | None = None) -> Task:
        old, new = ImageRef(store=self.source.path, tag=tag or name), ImageRef(store=self.store.path, tag=name)
        return Task(name, SquashRequest(image=old, target=new))

    def run(self, tasks: Iterator[Task], interrupted: str = "") -> None:
        def end(task: Task, result: object, error: LayerfarmError | None) -> None:
            if error is None:
                assert [blob for blob in resolve(self.store, task.name).blobs if not self.store.has(blob)] == []
            self.ended.append((task.name, type(error).__name__ if error else None))

        Local(Policy(shards=1, threads=1), 1).run(tasks, end, Watching(interrupted))


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.setattr(tag_group, "_SECONDS", 3600.0)
    return Ground(tmp_path)


def test_garbage_collection_keeps_the_blobs_of_jobs_whose_tags_wait(ground: Ground) -> None:
    def tasks() -> Iterator[Task]:
        for name in ("a", "b", "c"):
            yield ground.task(name)
            assert (ground.store.tags(), ground.ended) == ([], [])
            assert collect(ground.store, grace=0).blobs == []

    ground.run(tasks())
    assert ground.ended == [("a", None), ("b", None), ("c", None)]
    assert ground.store.tags() == ["a", "b", "c"]
    assert Leases(ground.store.path).live(0) == []
    assert collect(ground.store, grace=0).blobs == []


def test_a_job_that_fails_does_not_keep_the_others_from_their_tags(ground: Ground) -> None:
    ground.run(iter([ground.task("a"), ground.task("b", "absent"), ground.task("c")]))
    assert sorted(ground.ended) == [("a", None), ("b", "TagNotFound"), ("c", None)]
    assert ground.store.tags() == ["a", "c"]


def test_an_interrupted_run_sets_the_tags_of_the_jobs_that_are_done(ground: Ground) -> None:
    with pytest.raises(KeyboardInterrupt):
        ground.run(iter([ground.task("a"), ground.task("b"), ground.task("c")]), "b")
    assert ground.ended == [("a", None)]
    assert ground.store.tags() == ["a"]
    assert Leases(ground.store.path).live(0) == []


def test_groups_follow_each_other_until_no_task_is_left(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_group, "_MOST", 2)

    def tasks() -> Iterator[Task]:
        for name in ("a", "b", "c"):
            yield ground.task(name)
        assert [name for name, _ in ground.ended] == ["a", "b"]

    ground.run(tasks())
    assert ground.store.tags() == ["a", "b", "c"]
