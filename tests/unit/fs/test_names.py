"""A rename counts as done if the target shows it, and only then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.fs.names import ask_for_names, rename
from tests.leaks import Held

Answering = Callable[[Callable[..., None]], None]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Let a function stand for the system's rename."""

    def put(stands: Callable[..., None]) -> None:
        real = os.rename

        def called(source: Any, target: Any, **places: Any) -> None:
            monkeypatch.setattr(os, "rename", real)
            stands(Path(source), Path(target), **places)

        monkeypatch.setattr(os, "rename", called)

    return put


def twice(source: Path, target: Path, **places: Any) -> None:
    """The answer of the first request is lost, so the client repeats it."""
    os.rename(source, target, **places)
    os.rename(source, target, **places)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_repeated_request_counts_as_done(tmp_path: Path, answering: Answering, kind: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    match kind:
        case "file":
            source.write_bytes(b"mine")
            target.write_bytes(b"old")
        case "directory":
            source.mkdir()
        case "link":
            source.symlink_to("nowhere")
    before = source.lstat()
    answering(twice)
    rename(source, target)
    assert os.path.samestat(target.lstat(), before)
    assert not os.path.lexists(source)


def test_file_that_others_changed_since_counts_if_any_with_the_name_will_do(
    tmp_path: Path, answering: Answering
) -> None:
    """As a request for a tag, which is answered while its writer is cut off."""

    def answered(source: Path, target: Path, **places: Any) -> None:
        os.rename(source, target)
        target.write_bytes(b"granted")
        os.rename(source, target)

    (tmp_path / "source").write_bytes(b"mine")
    answering(answered)
    rename(tmp_path / "source", tmp_path / "target", unique=True)
    answering(lambda source, target, **places: os.rename(source, target))
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "source", tmp_path / "other", unique=True)


def test_names_in_open_directories(tmp_path: Path, answering: Answering) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/x").write_bytes(b"mine")
    answering(twice)
    a, b = (os.open(tmp_path / name, os.O_PATH | os.O_DIRECTORY) for name in "ab")
    held = Held()
    try:
        rename("x", "y", src_dir_fd=a, dst_dir_fd=b)
        assert held.new() == []
    finally:
        os.close(a)
        os.close(b)
    assert (tmp_path / "b/y").read_bytes() == b"mine"


def test_newer_file_with_the_same_inode_number_is_not_taken_for_the_renamed_one(
    tmp_path: Path, answering: Answering
) -> None:
    def newer(source: Path, target: Path, **places: Any) -> None:
        os.rename(source, target)
        os.utime(target, (1, 1))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    (tmp_path / "source").write_bytes(b"mine")
    answering(newer)
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize("target", ["missing", "present"])
def test_source_that_another_process_removed_is_an_error(tmp_path: Path, answering: Answering, target: str) -> None:
    def removed(source: Path, target: Path, **places: Any) -> None:
        os.unlink(source)
        os.rename(source, target)

    (tmp_path / "source").write_bytes(b"mine")
    if target == "present":
        (tmp_path / "target").write_bytes(b"old")
    answering(removed)
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").exists() == (target == "present")


@pytest.mark.parametrize("listed", [True, False])
def test_asking_for_names_lists_only_where_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    asked: list[str] = []
    monkeypatch.setattr(os, "listdir", lambda fd: asked.append(os.readlink(f"/proc/self/fd/{fd}")))
    ask_for_names(tmp_path, listed=listed)
    assert asked == [str(tmp_path)] * listed


def test_asking_for_names_that_cannot_be_listed_is_no_error(tmp_path: Path) -> None:
    held = Held()
    ask_for_names(tmp_path / "missing", listed=True)
    (tmp_path / "file").touch()
    ask_for_names(tmp_path / "file", listed=True)
    assert held.new() == []
