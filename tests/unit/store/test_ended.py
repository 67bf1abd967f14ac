"""Outcomes of jobs, written beside their store."""

from __future__ import annotations

import os

import pytest

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.index import IndexFile
from layerfarm.jobs.store.retention import read_ending, write_ending


def test_written_records_are_read(layout: Layout) -> None:
    assert read_ending(layout.path, "a") is None
    write_ending(layout.path, "a", "first")
    write_ending(layout.path, "b", "other")
    write_ending(layout.path, "a", "second")
    assert read_ending(layout.path, "a") == "second"
    assert read_ending(layout.path, "c") is None
    assert os.listdir(layout.path / ".layerfarm" / "ingest") == []


def test_it_is_kept_for_two_hours_and_removed_by_those_that_come_after(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000_000.0
    monkeypatch.setattr(IndexFile, "now", lambda self: now)
    write_ending(layout.path, "a", "text")
    now += 2 * 3600
    write_ending(layout.path, "b", "text")
    assert read_ending(layout.path, "a") == "text"
    now += 3600
    write_ending(layout.path, "c", "text")
    assert read_ending(layout.path, "a") is None
    assert read_ending(layout.path, "b") == "text"


def test_a_store_that_is_gone_is_an_error_and_is_not_made_again(layout: Layout) -> None:
    gone = layout.path.rename(layout.path.with_name("elsewhere"))
    with pytest.raises((LayerfarmError, OSError)):
        write_ending(layout.path, "a", "text")
    assert not layout.path.exists()
    assert read_ending(gone, "a") is None
