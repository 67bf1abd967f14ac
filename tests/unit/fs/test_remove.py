"""Trees are removed whole; what cannot be removed, or moves meanwhile, is an error and nothing outside is touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfarm.jobs.errors import TreeChanged
from layerfarm.jobs.fs import remove as module
from layerfarm.jobs.fs.remove import remove, remove_tree
from tests.leaks import Held
from tests.ordinary_user import ordinary_user
from tests.trees import directory, file, read_tree, tree


def test_a_tree_goes_and_a_missing_one_is_none(tmp_path: Path) -> None:
    tree(tmp_path / "root", {"a/b": file(), "a/c/d": file()})
    (tmp_path / "link").symlink_to("root")
    remove_tree(tmp_path / "link")
    assert sorted(read_tree(tmp_path / "root")) == [b".", b"a", b"a/b", b"a/c", b"a/c/d"]
    remove_tree(tmp_path / "root")
    remove_tree(tmp_path / "root")
    assert os.listdir(tmp_path) == []


def test_a_directory_that_moves_while_it_is_removed_takes_nothing_elsewhere_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "root", {"a/b/c": file()})
    tree(tmp_path / "elsewhere", {"b": directory(), "b/kept": file()})
    empty = module._empty

    def move_then_empty(fd: int) -> list[bytes]:
        if os.path.samestat(os.fstat(fd), os.stat(tmp_path / "root/a/b")):
            (tmp_path / "root/a/b").rename(tmp_path / "elsewhere/moved")
            monkeypatch.setattr(module, "_empty", empty)
        return empty(fd)

    monkeypatch.setattr(module, "_empty", move_then_empty)
    held = Held()
    with pytest.raises(TreeChanged, match="a directory moved while it was being removed: b"):
        remove_tree(tmp_path / "root")
    assert sorted(read_tree(tmp_path / "elsewhere")) == [b".", b"b", b"b/kept", b"moved"]
    assert not held.new()


@pytest.mark.usefixtures("as_root")
def test_a_user_removes_their_own_locked_tree_and_no_file_of_another() -> None:
    with ordinary_user() as user:
        tree(user.home / "locked", {"a": directory(mode=0), "a/b": directory(mode=0o500), "a/b/c": file(mode=0)})
        user.own(user.home)
        shared = tree(user.home / "shared", {"theirs": file()})
        shared.chmod(0o1777)

        def remove_theirs() -> None:
            fd = os.open(shared, os.O_RDONLY)
            remove(fd, b"theirs")

        user.call(lambda: remove_tree(user.home / "locked"))
        with pytest.raises(PermissionError):
            user.call(remove_theirs)
        assert os.listdir(user.home) == ["shared"] and os.listdir(shared) == ["theirs"]


def test_a_repeated_request_ends_no_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NFS client repeats it if the answer was lost, and gets ENOENT."""

    def repeated(real: Callable[..., None]) -> Callable[..., None]:
        def call(name: bytes, *, dir_fd: int) -> None:
            real(name, dir_fd=dir_fd)
            if name != b"root":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

        return call

    tree(tmp_path / "root", {"a/b": file(), "a/c/d": file()})
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, repeated(getattr(os, name)))
    remove_tree(tmp_path / "root")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []
