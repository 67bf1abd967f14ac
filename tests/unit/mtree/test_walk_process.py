"""A walk by a process of its own gives the same file, and its end is never taken for a success that it was not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from layerfarm.jobs.errors import RootfsError
from layerfarm.jobs.mtree import next_tick, walk_tree
from layerfarm.jobs.mtree import walk_process as room
from layerfarm.jobs.mtree.walk_process import WORTH_IT, walking
from tests.trees import directory, file, hardlink, symlink, tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    spec = {b"d": directory(), b"d/\xff\n": file(b"1"), b"l": symlink(b"d"), b"f": file(b"2"), b"g": hardlink(b"f")}
    return tree(tmp_path / "r\udcfft", spec)


def children() -> set[int]:
    listing = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return set(map(int, listing.split()))


@pytest.mark.parametrize("entries", [0, WORTH_IT])
def test_the_walk_is_that_of_this_process(root: Path, tmp_path: Path, entries: int) -> None:
    clock = next_tick(tmp_path)
    (root / "new").touch()
    with (tmp_path / "plain").open("x+b") as out:
        plain = walk_tree(root, out, clock)
    assert plain.racy
    with walking(root, tmp_path / "beside", clock, entries=entries) as walk:
        assert walk() == plain
    assert (tmp_path / "beside").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize("entries", [0, WORTH_IT])
def test_a_tree_that_cannot_be_walked_gives_none(tmp_path: Path, entries: int) -> None:
    with walking(tmp_path / "none", tmp_path / "w", next_tick(tmp_path), entries=entries) as walk:
        assert walk() is None


def test_a_walk_that_is_killed_is_an_error(root: Path, tmp_path: Path) -> None:
    before = children()
    with walking(root, tmp_path / "w", next_tick(tmp_path), entries=WORTH_IT) as walk:
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RootfsError, match="status -9"):
            walk()


def test_a_walk_onto_a_file_that_is_there_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "w").touch()
    with (
        walking(root, tmp_path / "w", next_tick(tmp_path), entries=WORTH_IT) as walk,
        pytest.raises(RootfsError, match="status 1"),
    ):
        walk()


def test_leaving_without_the_result_ends_the_process(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Something that would run for an hour, in place of a walk that is over in no time.
    (tmp_path / "sleep").write_text("#!/bin/sh\nexec sleep 3600\n")
    (tmp_path / "sleep").chmod(0o755)
    monkeypatch.setattr(room.sys, "executable", str(tmp_path / "sleep"))
    before = children()
    with (
        pytest.raises(KeyboardInterrupt),
        walking(root, tmp_path / "w", next_tick(tmp_path), entries=WORTH_IT),
    ):
        raise KeyboardInterrupt
    assert not children() - before
