"""Notes beside the store: kept in one step, dropped when unread, never an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.gc import collect
from layerfarm.jobs.store.result_cache import UNREAD, read_result, user_cache, write_result


def note(layout: Layout) -> Path:
    return layout.path / ".layerfarm" / "notes" / "kind" / "name"


def leftovers(layout: Layout, *, dry_run: bool = False) -> list[Path]:
    return [path for path, _ in collect(layout, grace=0, dry_run=dry_run).leftovers]


def test_a_note_is_read_back_and_replaced(layout: Layout) -> None:
    assert read_result(layout, "kind", "name") is None
    assert write_result(layout, "kind", "name", b"one")
    assert write_result(layout, "kind", "name", b"two")
    assert read_result(layout, "kind", "name") == b"two"
    assert read_result(layout, "other", "name") is None
    assert os.listdir(note(layout).parent) == ["name"]


def test_where_nothing_can_be_written_nothing_is_kept(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("layerfarm.jobs.store.result_cache.replace_file", full)
    assert not write_result(layout, "kind", "name", b"one")
    assert read_result(layout, "kind", "name") is None


def test_a_collection_drops_results_not_read_for_a_month(layout: Layout) -> None:
    write_result(layout, "kind", "name", b"one")
    old = note(layout).stat().st_mtime - UNREAD - 60
    os.utime(note(layout), (old, old))
    assert leftovers(layout, dry_run=True) == [note(layout)]
    assert note(layout).exists()
    assert read_result(layout, "kind", "name") == b"one"  # counts as used
    assert leftovers(layout) == []
    os.utime(note(layout), (old, old))
    assert leftovers(layout) == [note(layout)]
    assert read_result(layout, "kind", "name") is None


def test_opening_the_cache_of_a_user_removes_results_not_read_for_a_month() -> None:
    cache = user_cache()
    for name in ("old", "new"):
        write_result(cache, "kind", name, b"one")
    os.utime(cache.path / ".layerfarm/notes/kind/old", (1, 1))
    assert os.listdir(user_cache().path / ".layerfarm/notes/kind") == ["new"]
