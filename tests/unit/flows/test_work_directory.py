"""The files of a job beside the store: no name leads elsewhere, and a file that was changed is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import RequestError, TreeChanged
from layerfarm.jobs.flows.base import WorkDirectory
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.document import Document


class Record(Document):
    name: str


@pytest.fixture
def work(tmp_path: Path) -> WorkDirectory:
    work = WorkDirectory(Layout.create(tmp_path / "store").path, "job-1")
    work.create()
    return work


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../index.json", "a.b", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="not the name of a work directory"):
        WorkDirectory(tmp_path, name)


def test_records_are_read_in_the_order_in_which_they_were_written(work: WorkDirectory) -> None:
    records = {key: Record(name=key * 2) for key in "zab"}
    kept = work.kept(work.keep("records", records, Record), Record)
    assert (kept, list(kept)) == (records, list("zab"))
    assert work.kept(None, Record) == {}


def test_a_file_that_was_changed_replaced_or_removed_is_not_read(work: WorkDirectory, tmp_path: Path) -> None:
    ref = work.keep("records", {"a": Record(name="a")}, Record)
    path = work.open(ref)
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(TreeChanged, match=f"has {ref.size + 1} bytes, not {ref.size}"):
        work.kept(ref, Record)
    (tmp_path / "other").write_bytes(content)
    path.unlink()
    path.symlink_to(tmp_path / "other")
    with pytest.raises(TreeChanged, match="no longer a regular file"):
        work.open(ref)
    path.unlink()
    with pytest.raises(TreeChanged, match="was removed"):
        work.open(ref)
    assert (tmp_path / "other").read_bytes() == content
