"""A file server may end a host's leases: the holder of the index's lock overwrites no change of the next holder."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.store import Descriptor, Index, Layout, encode_document, index, locks
from layerfarm.jobs.store.atomic_file import rename_durably
from layerfarm.jobs.store.descriptor import named
from layerfarm.jobs.store.index import IndexFile
from layerfarm.jobs.store.tag_batch import TagRequest

A = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1})
B = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "b" * 64, "size": 2})


def lose_locks() -> None:
    """Release this process's locks behind its back."""
    for fd in locks._open:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, locks._UNLOCK)


@pytest.fixture
def at_rename(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen once, just before the next index is renamed."""

    def arrange(act: Callable[[], None]) -> None:
        def rename(source: Path, target: Path, layout: Path) -> None:
            monkeypatch.setattr(index, "rename_durably", rename_durably)
            act()
            rename_durably(source, target, layout)

        monkeypatch.setattr(index, "rename_durably", rename)

    return arrange


def lost_to_another(layout: Layout, tag: str = "other") -> None:
    lose_locks()
    Layout.open(layout.path).tag(tag, B)


def test_tag_that_another_host_set_meanwhile_is_kept(layout: Layout) -> None:
    seen = []

    def change(old: Index) -> Index:
        if not seen:
            lost_to_another(layout)
        seen.append(len(old.manifests))
        return old.model_copy(update={"manifests": [*old.manifests, named(A, "mine")]})

    layout.update_index(change)
    assert seen == [0, 1]
    assert layout.tags() == ["other", "mine"]


def test_index_is_not_written_while_another_host_holds_the_lock(layout: Layout) -> None:
    held = ExitStack()

    def change(old: Index) -> Index:
        if not old.manifests:
            lose_locks()
            held.enter_context(IndexFile(layout.path).locked())
            threading.Timer(0.2, release).start()
        return old.model_copy(update={"manifests": [*old.manifests, named(A, "mine")]})

    def release() -> None:
        (layout.path / "index.json").write_bytes(encode_document(Index(manifests=[named(B, "other")])))
        held.close()

    layout.update_index(change)
    assert layout.tags() == ["other", "mine"]


@pytest.mark.parametrize("once", ["", "job-1"])
def test_rename_under_way_when_the_lock_is_lost_has_no_effect(
    layout: Layout, at_rename: Callable[[Callable[[], None]], None], once: str
) -> None:
    at_rename(lambda: lost_to_another(layout))
    layout.tag("mine", A, once=once)
    assert layout.tags() == ["other", "mine"]
    assert os.listdir(layout.path / ".layerfarm/next-index") == []


def test_request_that_another_holder_granted_is_not_granted_again(
    layout: Layout, at_rename: Callable[[Callable[[], None]], None]
) -> None:
    directory = layout.path / ".layerfarm" / "tagging"
    directory.mkdir()
    (directory / "0").write_bytes(encode_document(TagRequest(tag="moved", descriptor=A)))
    at_rename(lambda: lost_to_another(layout, "moved"))
    layout.tag("mine", A)
    assert layout.find("moved") == [named(B, "moved")]


@pytest.mark.parametrize("left", ["file", "directory"])
def test_next_index_of_a_holder_that_died_is_removed(layout: Layout, left: str) -> None:
    path = layout.path / ".layerfarm/next-index/x"
    if left == "directory":
        (path / "y").mkdir(parents=True)
    else:
        path.write_bytes(b"{}")
    layout.tag("mine", A)
    assert not path.exists()


def test_tool_that_ignores_the_lock_all_the_time_ends_the_attempts(layout: Layout) -> None:
    number = iter(range(100))

    def change(old: Index) -> Index:
        written = Index(manifests=[named(B, f"other-{next(number)}")])
        (layout.path / "index.json").write_bytes(encode_document(written))
        return old.model_copy(update={"manifests": [named(A, "mine")]})

    with pytest.raises(StoreError, match="10 times"):
        layout.update_index(change)
    assert layout.tags() == ["other-9"]
