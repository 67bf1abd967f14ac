from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from layerfarm.jobs.errors import RootfsError, RootfsNotFound, TreeChanged
from layerfarm.jobs.mtree import Walk, mtree_key, vis, walk, walk_tree
from tests.leaks import Held
from tests.ordinary_user import ordinary_user
from tests.unit.mtree.conftest import Build


def walked(root: Path) -> list[tuple[bytes, int, int]]:
    """Path, st_mode and link count of each entry."""
    out = io.BytesIO()
    walk_tree(root, out)
    lines = [line.split() for line in out.getvalue().splitlines()]
    return [(vis.decode(line[10]), int(line[1]), int(line[3])) for line in lines]


def test_every_entry_comes_once_and_in_mtree_order(odd_tree: Path) -> None:
    found = walked(odd_tree)
    keys = [mtree_key(path, mode >> 12 == 4) for path, mode, _ in found]
    assert keys == sorted(set(keys))
    expected = {b"."}
    for directory, directories, files in os.walk(os.fsencode(odd_tree)):
        for name in directories + files:
            expected.add(os.path.relpath(os.path.join(directory, name), os.fsencode(odd_tree)))
    assert {path for path, _, _ in found} == expected


def test_the_record_is_what_lstat_says(odd_tree: Path) -> None:
    out = io.BytesIO()
    walk_tree(odd_tree, out)
    for line in out.getvalue().splitlines():
        *numbers, path = line.split()
        found = os.lstat(os.path.join(os.fsencode(odd_tree), vis.decode(path)))
        assert [int(number) for number in numbers] == [
            0,  # no clock was read, so the ctime vouches for nothing
            found.st_mode,
            found.st_size,
            found.st_nlink,
            found.st_uid,
            found.st_gid,
            found.st_mtime_ns,
            found.st_ino,
            found.st_dev,
            found.st_rdev,
        ]


def test_a_record_takes_nothing_from_the_entry_before_it(build: Build) -> None:
    def device(path: bytes) -> None:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))

    root = build(
        {"a": b"1", "b": b"", "c/in": b"2", "d": b"3", "e": device, "f/in": b"4", "g": device, "h": b"5", "i/in": b"6"}
    )
    (root / "b").chmod(0o600)
    (root / "d").chmod(0o600)
    os.chown(root / "d", 5, 6)
    os.link(root / "h", root / "j")
    out = io.BytesIO()
    walk_tree(root, out)
    for line in out.getvalue().decode().splitlines():
        *numbers, path = line.split()
        found = os.lstat(root / path)
        links = f"{found.st_nlink:010d}" if path in ("h", "j") else found.st_nlink
        assert numbers[1:6] == [str(n) for n in (found.st_mode, found.st_size, links, found.st_uid, found.st_gid)]
        assert numbers[8:] == [str(found.st_dev), str(found.st_rdev)]


def test_summary_counts_entries_and_content(build: Build) -> None:
    root = build({"a": b"12345", "d/b": b"123", "l": lambda path: os.symlink("long target", path)})
    assert walk_tree(root, io.BytesIO()) == Walk(entries=5, racy=5)


def test_links_from_outside_the_tree_are_not_counted(build: Build, tmp_path: Path) -> None:
    root = build({"a": b"1", "b": b"2", "c": b"3", "d/e": b"4"})
    os.link(root / "a", tmp_path / "outside-1")
    os.link(root / "a", tmp_path / "outside-2")
    os.link(root / "a", root / "d/inside")
    os.link(root / "b", tmp_path / "outside-3")
    os.link(root / "c", root / "d/c")
    counts = {path: count for path, mode, count in walked(root) if mode >> 12 != 4}
    assert counts == {b"a": 2, b"d/inside": 2, b"b": 1, b"c": 2, b"d/c": 2, b"d/e": 1}


def test_link_counts_are_corrected_behind_what_the_file_held_before(build: Build, tmp_path: Path) -> None:
    root = build({"a": b"1"})
    os.link(root / "a", tmp_path / "outside")
    out = io.BytesIO()
    out.write(b"before\n")
    walk_tree(root, out)
    lines = out.getvalue().splitlines()
    assert lines[0] == b"before"
    assert [int(line.split()[3]) for line in lines[2:]] == [1]
    assert out.tell() == len(out.getvalue())


def test_links_are_not_followed(build: Build, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    root = build(
        {"dir-link": lambda path: os.symlink(tmp_path / "outside", path), "loop": lambda p: os.symlink(".", p)}
    )
    assert [path for path, _, _ in walked(root)] == [b".", b"dir-link", b"loop"]


def test_paths_longer_than_path_max_and_deeper_than_the_open_directories(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    name = "d" * 50
    depth = 150
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        os.mkdir("z", dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    held = Held()
    paths = [path for path, _, _ in walked(root)]
    assert not held.new()
    assert len(paths) == 1 + 2 * depth
    assert max(map(len, paths)) == depth * 51 - 1 > 4096
    assert paths[-1] == b"z"
    subprocess.run(["rm", "-rf", root], check=True)


def move_when_listed(monkeypatch: pytest.MonkeyPatch, root: Path, path: str, name: str) -> None:
    """Move a directory out of the tree when a list with ``name`` was read."""
    real = os.listdir

    def list_and_move(fd: int) -> list[str]:
        names = real(fd)
        if name in names:
            (root / path).rename(root.parent / "moved")
        return names

    monkeypatch.setattr(walk.os, "listdir", list_and_move)


def test_deep_directory_that_is_moved_during_the_walk_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parents are closed meanwhile, and the way back leads elsewhere."""
    root = build({"a/b/c/d/e/f": b"x"})
    monkeypatch.setattr(walk, "_OPEN_DIRECTORIES", 2)
    move_when_listed(monkeypatch, root, "a/b/c", "f")
    held = Held()
    with pytest.raises(TreeChanged, match=r"directory was moved during the walk: a/b$"):
        walk_tree(root, io.BytesIO())
    assert not held.new()


def test_no_file_is_opened_and_nothing_hangs_on_a_fifo_or_socket(build: Build) -> None:
    def bind(path: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)

    root = build({"fifo": os.mkfifo, "socket": bind, "file": b"x"})
    before = os.stat(root / "file").st_atime_ns
    assert [mode >> 12 for _, mode, _ in walked(root)] == [4, 1, 8, 12]
    assert os.stat(root / "file").st_atime_ns == before


def test_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(RootfsNotFound, match="no-such"):
        walk_tree(tmp_path / "no-such", io.BytesIO())


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RootfsNotFound, match="not a directory"):
        walk_tree(tmp_path / "file", io.BytesIO())


def test_directory_that_goes_away_during_the_walk_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build({"d/f": b"x"})
    move_when_listed(monkeypatch, root, "d", "d")
    with pytest.raises(TreeChanged, match="entry was removed during the walk: d"):
        walk_tree(root, io.BytesIO())


def test_directory_that_becomes_a_link_is_not_entered(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build({"d/f": b"x"})
    real = os.open

    def swap_then_open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "d":
            (root / "d").rename(root.parent / "moved")
            (root / "d").symlink_to(root.parent / "moved")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(walk.os, "open", swap_then_open)
    with pytest.raises(TreeChanged, match=": d"):
        walk_tree(root, io.BytesIO())


@pytest.mark.usefixtures("as_root")
def test_unreadable_directory_is_named() -> None:
    with ordinary_user() as user:
        (user.home / "a/secret").mkdir(parents=True)
        user.own(user.home)
        (user.home / "a/secret").chmod(0)
        os.chown(user.home / "a/secret", os.geteuid(), os.getegid())
        with pytest.raises(RootfsError) as refused:
            user.call(lambda: walk_tree(user.home, io.BytesIO()))
        (user.home / "a/secret").chmod(0o700)
    assert str(refused.value) == "entry cannot be read, Permission denied: a/secret (run as root, or make it readable)"
