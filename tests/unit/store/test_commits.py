"""A tag is given once by each attempt at a job, although processes wake late or died in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout, retention
from layerfarm.jobs.store.atomic_file import replace_file
from layerfarm.jobs.store.descriptor import SUBJECT, Descriptor
from layerfarm.jobs.store.retention import Commit, Commits


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def image(layout: Layout, text: str) -> Descriptor:
    return layout.put(text.encode(), "application/octet-stream")


def names(layout: Layout, tag: str = "t") -> str:
    (found,) = layout.find(tag)
    return found.digest


def test_second_time_of_the_same_attempt_changes_nothing(layout: Layout) -> None:
    old, new = image(layout, "old"), image(layout, "new")
    layout.tag("t", old, once="job")
    layout.tag("t", new, once="later-job")
    layout.tag("t", old, once="job")
    assert names(layout) == new.digest


def test_another_attempt_gives_the_tag(layout: Layout) -> None:
    old, new = image(layout, "old"), image(layout, "new")
    layout.tag("t", old, once="job")
    layout.tag("t", new)
    layout.tag("t", old, once="job_2")
    assert names(layout) == old.digest


def test_holder_that_died_before_the_index_was_written_is_made_good(layout: Layout) -> None:
    old, new = image(layout, "old"), image(layout, "new")
    layout.tag("t", old)
    _begun(layout, Commit(tag="t", before=[old.digest], after=new.digest))
    layout.tag("t", new, once="job")
    assert names(layout) == new.digest


def test_holder_that_died_after_the_index_was_written_has_given_the_tag(layout: Layout) -> None:
    old, new, newest = (image(layout, text) for text in ("old", "new", "newest"))
    layout.tag("t", new)
    _begun(layout, Commit(tag="t", before=[old.digest], after=new.digest))
    layout.tag("t", newest)  # by another job, before the first one is done again
    layout.tag("t", new, once="job")
    assert names(layout) == newest.digest


def test_tag_that_names_the_image_already_is_recorded_as_given_at_once(layout: Layout) -> None:
    old, new = image(layout, "old"), image(layout, "new")
    layout.tag("t", old)
    written = []

    def write(path: Path, content: bytes, *args: Path) -> None:
        written.append(path.name)
        replace_file(path, content, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "replace_file", write)
        layout.tag("t", old, once="job")
        assert written == ["job"]
        layout.tag("t", new, once="other-job")
        assert written == ["job", "other-job", "other-job"]
    layout.tag("t", old, once="job")
    assert names(layout) == new.digest


def test_tag_that_names_the_image_already_is_given_again_with_its_referrers(layout: Layout) -> None:
    old = image(layout, "old")
    referrer = image(layout, "about it").model_copy(update={"annotations": {SUBJECT: old.digest}})
    layout.tag("t", old)
    layout.tag("t", old, once="job", referrers=[referrer])
    assert referrer in layout.index().manifests


def test_without_a_name_a_tag_is_given_as_often_as_asked(layout: Layout) -> None:
    old, new = image(layout, "old"), image(layout, "new")
    for one in (old, new, old):
        layout.tag("t", one)
    assert names(layout) == old.digest
    assert not (layout.path / ".layerfarm/committed").exists()


def _begun(layout: Layout, commit: Commit) -> None:
    with layout._index.locked():
        Commits(layout.path).begin("job", commit, layout.now())
