"""Tags that one thread's work leaves to be set with one write: all of them, or none before it."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import BlobNotFound, InvalidReference, LayerfarmError, StoreError
from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.store import Descriptor, Layout, atomic_file
from layerfarm.jobs.store import index as index_module
from layerfarm.jobs.store.descriptor import SUBJECT, named
from layerfarm.jobs.store.tag_group import TagGroup, in_groups

A = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1})
B = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "b" * 64, "size": 2})
PROOF = A.model_copy(update={"annotations": {SUBJECT: B.digest}})


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of writes of each index.json."""
    calls: Counter[str] = Counter()
    real = index_module.rename_durably

    def count(source: Path, target: Path, layout: Path) -> None:
        calls[layout.name] += 1
        real(source, target, layout)

    monkeypatch.setattr(index_module, "rename_durably", count)
    return calls


def grouped(group: TagGroup, layout: Layout, tag: str, descriptor: Descriptor = A, **more: Any) -> None:
    with group.piece():
        layout.tag(tag, descriptor, **more)


def test_the_tags_of_all_pieces_are_set_with_one_write(layout: Layout, writes: Counter[str]) -> None:
    group = TagGroup(layout.path)
    for number in range(20):
        with group.piece():
            layout.tag(f"t{number}", A, referrers=[PROOF] if number == 3 else [])
            layout.attach(PROOF)
            assert layout.find(f"t{number}") == [named(A, f"t{number}")]
            assert layout.find("t0") == [named(A, "t0")]
    assert not writes
    assert layout.tags() == []
    assert group.write() == [None] * 20
    assert writes == {"store": 1}
    assert layout.tags() == [f"t{number}" for number in range(20)]
    assert layout.index().manifests.count(PROOF) == 1
    assert group.write() == []
    assert writes == {"store": 1}


class Disk:
    """Names of new files since the last sync of their directory: those that a power cut takes back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unsynced: set[Path] = set()
        self.syncs: Counter[str] = Counter()
        sync, rename = atomic_file._sync, Beneath.rename

        def synced(files: Beneath, path: Path) -> None:
            sync(files, path)
            self.syncs[path.name] += 1
            self.unsynced = {name for name in self.unsynced if name.parent != path}

        def renamed(files: Beneath, source: Path, target: Path, **how: bool) -> None:
            if target.name == "index.json":
                assert not self.unsynced, "the index names blobs that a power cut takes back"
            rename(files, source, target, **how)
            self.unsynced.add(target)

        monkeypatch.setattr(atomic_file, "_sync", synced)
        monkeypatch.setattr(Beneath, "rename", renamed)


def test_blobs_are_durable_before_the_index_that_names_them(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, disk = Layout.create(tmp_path / "other"), Disk(monkeypatch)
    group = TagGroup(layout.path)
    for number in range(3):
        with group.piece():
            layout.tag(f"t{number}", layout.put(b"%d" % number, "a/b"))
    assert len(disk.unsynced) == 3
    with group.piece():
        other.tag("t", other.put(b"other", "a/b"))
    assert not disk.unsynced
    assert group.write() == [None] * 4
    with group.recording():
        atomic_file.replace_file(layout.path / ".layerfarm/records/one", b"", layout.path)
        atomic_file.replace_file(layout.path / ".layerfarm/records/two", b"", layout.path)
        assert len(disk.unsynced) == 2
    assert not disk.unsynced
    assert disk.syncs["records"] == 1


def test_names_of_blobs_that_cannot_be_synced_fail_every_piece(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    group = TagGroup(layout.path)
    with group.piece():
        layout.tag("new", layout.put(b"new", "a/b"))
    with group.piece():
        layout.tag("other", A)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    assert [type(error) for error in group.write()] == [StoreError, StoreError]
    monkeypatch.undo()
    assert layout.tags() == []


def test_a_child_syncs_its_own_renames_at_once(layout: Layout) -> None:
    group = TagGroup(layout.path)
    with group.piece():
        child = os.fork()
        if child == 0:
            disk = Disk(pytest.MonkeyPatch())
            layout.put(b"child", "a/b")
            os._exit(len(disk.unsynced))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_of_tags_in_a_group_the_last_holds_as_if_each_were_written(layout: Layout) -> None:
    group = TagGroup(layout.path)
    for descriptor in (A, B, A, B):
        grouped(group, layout, "t", descriptor)
    with group.piece():
        assert layout.find("t") == [named(B, "t")]
    group.write()
    assert layout.find("t") == [named(B, "t")]


def test_a_piece_that_fails_sets_no_tag(layout: Layout) -> None:
    group = TagGroup(layout.path)
    grouped(group, layout, "one")
    with pytest.raises(ZeroDivisionError), group.piece():
        layout.tag("two", A)
        _ = 1 / 0
    with pytest.raises(InvalidReference), group.piece():
        layout.tag("not a tag", A)
    with group.piece():
        assert layout.find("two") == []
    assert group.write() == [None, None]
    assert layout.tags() == ["one"]


def test_only_the_piece_with_a_missing_blob_fails(layout: Layout) -> None:
    blob = layout.put(b"x", "a/b")
    gone = layout.put(b"y", "a/b")
    group = TagGroup(layout.path)
    for tag, needed in (("one", blob), ("two", gone), ("three", blob)):
        grouped(group, layout, tag, needs=[needed])
    layout.blob_path(gone.digest).unlink()  # by another tool's garbage collection, before the write
    one, two, three = group.write()
    assert (one, three) == (None, None)
    assert isinstance(two, BlobNotFound)
    assert layout.tags() == ["one", "three"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_on_a_full_disk_every_piece_fails_and_the_index_is_the_old_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    layout.tag("old", B)
    group = TagGroup(layout.path)
    grouped(group, layout, "one")
    with group.piece():
        layout.attach(PROOF)
    with group.piece():
        pass

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    one, two, three = group.write()
    monkeypatch.undo()
    assert isinstance(one, StoreError) and isinstance(two, StoreError) and three is None
    assert "No space left on device" in str(one)
    assert layout.tags() == ["old"]
    assert os.listdir(layout.path / ".layerfarm/ingest") == []


def test_other_layouts_and_threads_write_at_once(layout: Layout, tmp_path: Path) -> None:
    other = Layout.create(tmp_path / "other")
    group = TagGroup(layout.path)
    with group.piece():
        layout.tag("later", A)
        other.tag("now", A)
        thread = threading.Thread(target=layout.tag, args=("theirs", B))
        thread.start()
        thread.join()
        assert (other.tags(), layout.tags()) == (["now"], ["theirs"])
    group.write()
    assert layout.tags() == ["theirs", "later"]


def test_a_group_of_two_layouts_writes_each_once(layout: Layout, tmp_path: Path, writes: Counter[str]) -> None:
    other = Layout.create(tmp_path / "other")
    group = TagGroup(layout.path, other.path)
    for number in range(5):
        with group.piece():
            layout.tag(f"t{number}", A)
            other.tag(f"t{number}", B)
    assert group.write() == [None] * 5
    assert writes == {"store": 1, "other": 1}
    assert layout.tags() == other.tags()


def test_items_end_after_the_write_and_also_before_one_that_fails(layout: Layout) -> None:
    ended: list[tuple[int, bool]] = []

    def work(number: int) -> str:
        if number == 7:
            raise KeyboardInterrupt
        layout.tag(f"t{number}", A, needs=[A] if number == 4 else [])
        return f"t{number}"

    def end(number: int, tag: str, error: LayerfarmError | None) -> None:
        assert (tag in layout.tags()) == (error is None)
        ended.append((number, error is None))

    with pytest.raises(KeyboardInterrupt):
        in_groups(range(9), layout.path, work, end)
    assert ended == [(number, number != 4) for number in range(7)]


STEPS = ("before", "open", "write", "fsync", "rename", "after")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", range(3))
def test_killed_at_any_step_no_acknowledged_tag_is_lost(layout: Layout, step: str, nth: int) -> None:
    """Killed before the ``nth`` system call of each kind: the index is the old one or the new one, whole."""
    layout.tag("old", B)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _write_and_die(layout, step, nth, write)
    os.close(write)
    with os.fdopen(read, "rb") as acknowledged:
        tags = acknowledged.read().decode().split()
    os.waitpid(child, 0)
    assert layout.tags() in (["old"], ["old", *(f"t{number}" for number in range(10))])
    assert set(tags) <= set(layout.tags())
    # The dead process holds no lock.
    layout.tag("next", A)
    assert layout.tags()[-1] == "next"


def _write_and_die(layout: Layout, step: str, nth: int, acknowledged: int) -> None:
    """In a child: write a group, acknowledge its tags, and be killed at the step."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        group = TagGroup(layout.path)
        for number in range(10):
            grouped(group, layout, f"t{number}")
        if step == "before":
            die()
        if step in ("open", "write", "fsync", "rename"):
            real, calls = getattr(os, step), Counter[str]()

            def call(*args: Any, **more: Any) -> Any:
                calls[step] += 1
                if calls[step] > nth:
                    die()
                return real(*args, **more)

            setattr(os, step, call)
        errors = group.write()
        if step in ("open", "write", "fsync", "rename"):
            setattr(os, step, real)
        tags = [f"t{number}" for number, error in enumerate(errors) if error is None]
        os.write(acknowledged, " ".join(tags).encode())
        die()
    finally:
        os._exit(1)


def test_groups_tags_and_untagging_of_many_writers_are_all_kept(layout: Layout) -> None:
    layout.tag("gone", A)

    def groups(number: int) -> None:
        def work(at: int) -> str:
            layout.tag(f"g{number}-{at}", A)
            return ""

        failed: list[LayerfarmError] = []
        in_groups(range(40), layout.path, work, lambda _, __, error: failed.append(error) if error else None)
        assert not failed

    def single(number: int) -> None:
        for at in range(10):
            layout.tag(f"s{number}-{at}", B)

    def by_hand() -> None:
        # As another tool that takes the lock.
        for at in range(5):
            entry = named(A, f"h{at}")
            layout.update_index(
                lambda index, entry=entry: index.model_copy(update={"manifests": [*index.manifests, entry]})
            )

    threads = [threading.Thread(target=groups, args=(number,)) for number in range(4)]
    threads += [threading.Thread(target=single, args=(number,)) for number in range(3)]
    threads += [threading.Thread(target=by_hand), threading.Thread(target=layout.untag, args=("gone",))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"g{number}-{at}" for number in range(4) for at in range(40)}
    expected |= {f"s{number}-{at}" for number in range(3) for at in range(10)} | {f"h{at}" for at in range(5)}
    assert sorted(layout.tags()) == sorted(expected)
