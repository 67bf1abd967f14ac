"""Files of an ordinary user that their mode makes unreadable are read, and the mode is restored."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from layerfarm.jobs.errors import RootfsError, TreeChanged
from layerfarm.jobs.fs import DirectoryCache, Rootfs, Widened, read_regular, unprivileged
from layerfarm.jobs.layer import generate_layer, insert_layer
from layerfarm.jobs.mtree import Delta, DeltaKind, compare, hash_shard, plan_shards, snapshot, walk_tree
from tests.ordinary_user import GID, UID, OrdinaryUser, ordinary_user
from tests.trees import Node, directory, fifo, file, hardlink, read_tree, symlink, tree

pytestmark = pytest.mark.usefixtures("as_root")
"""A tree as a user reads it, compared with the same as root reads it."""


@pytest.fixture
def user() -> Iterator[OrdinaryUser]:
    with ordinary_user() as found:
        yield found


def own(node: Node) -> Node:
    return replace(node, uid=UID, gid=GID)


LOCKED = {
    ".": own(directory(mode=0o100)),
    "none": own(file(b"mode 000", mode=0, xattrs={"user.a": b"x"})),
    "twice": hardlink("none"),
    "dir": own(directory(mode=0, xattrs={"user.d": b"y"})),
    "dir/none": own(file(b"deeper", mode=0)),
    "dir/link": own(symlink("none")),
    "dir/fifo": own(fifo(mode=0)),
    "dir/dir": own(directory(mode=0o400)),
    "dir/dir/f": own(file(b"not to be looked into", mode=0o200)),
    "dir/dir/d": own(directory(mode=0o200)),
    "dir/dir/d/f": own(file(b"f")),
    "free": own(directory()),
    "free/f": own(file(b"free")),
}


@pytest.fixture
def locked(user: OrdinaryUser) -> Path:
    return tree(user.home / "locked", LOCKED)


def test_the_user_reads_the_same_as_root_and_modes_stay(user: OrdinaryUser, locked: Path) -> None:
    before = read_tree(locked)
    expected = list(snapshot(locked))
    assert user.call(lambda: list(snapshot(locked))) == expected
    assert read_tree(locked) == before


def test_without_content_nothing_is_missing_either(user: OrdinaryUser, locked: Path) -> None:
    expected = list(snapshot(locked, hash_content=False))
    assert user.call(lambda: list(snapshot(locked, hash_content=False))) == expected


def test_the_layer_is_the_one_that_root_writes(user: OrdinaryUser, locked: Path) -> None:
    before = read_tree(locked)
    empty = tree(user.home / "empty", {})
    deltas = [Delta(d.kind, d.path) for d in compare(snapshot(empty), snapshot(locked))]
    expected = b"".join(generate_layer(locked, deltas))
    assert user.call(lambda: b"".join(generate_layer(locked, deltas))) == expected
    assert b"deeper" in expected and b"not to be looked into" in expected
    assert read_tree(locked) == before


def test_a_layer_of_one_deep_file_is_written(user: OrdinaryUser, locked: Path) -> None:
    deltas = [Delta(DeltaKind.EXTRA, b"dir/dir/d/f"), Delta(DeltaKind.MISSING, b"dir/dir/gone")]
    expected = b"".join(generate_layer(locked, deltas))
    assert user.call(lambda: b"".join(generate_layer(locked, deltas))) == expected


@pytest.mark.parametrize("what", ["", "dir", "none"])
def test_it_can_be_inserted(user: OrdinaryUser, locked: Path, what: str) -> None:
    before = read_tree(locked)
    expected = b"".join(insert_layer(locked / what, b"there"))
    os.chmod(locked, 0o700)
    os.utime(locked, ns=(before[b"."].mtime, before[b"."].mtime))
    found = user.call(lambda: b"".join(insert_layer(locked / what, b"there")))
    assert len(found) == len(expected)
    if what:
        assert found == expected


def test_modes_are_put_back_after_an_error(user: OrdinaryUser, locked: Path) -> None:
    tree(locked / "dir/dir/d/deep", {".": own(directory(mode=0)), "theirs": directory(mode=0)})
    before = read_tree(locked)
    with pytest.raises(RootfsError, match="Permission denied: dir/dir/d/deep/theirs"):
        user.call(lambda: walk_tree(locked, io.BytesIO()))
    everything = [Delta(DeltaKind.EXTRA, path) for path in before]
    with pytest.raises(RootfsError, match="deep/theirs"):
        user.call(lambda: list(generate_layer(locked, everything)))
    with pytest.raises(TreeChanged):
        user.call(lambda: list(generate_layer(locked, [*everything[:2], Delta(DeltaKind.EXTRA, b"dir/dir/d/no")])))
    assert read_tree(locked) == before


def test_modes_are_put_back_when_the_reader_stops_in_the_middle(user: OrdinaryUser, locked: Path) -> None:
    before = read_tree(locked)

    def half() -> int:
        deltas = [Delta(DeltaKind.EXTRA, path) for path in before]
        (locked / "dir").chmod(0o700)
        (locked / "dir/none").chmod(0o600)
        (locked / "dir/none").write_bytes(bytes(3 << 20))
        (locked / "dir/none").chmod(0)
        (locked / "dir").chmod(0)
        layer = generate_layer(locked, deltas)
        size = len(next(layer))
        layer.close()  # type: ignore[attr-defined]
        return size

    os.chmod(locked, 0o700)
    assert user.call(half) > 0
    assert stat.S_IMODE(os.stat(locked / "dir").st_mode) == stat.S_IMODE(os.stat(locked / "dir/none").st_mode) == 0


def test_processes_that_read_one_tree_do_not_lock_each_other_out(user: OrdinaryUser, tmp_path: Path) -> None:
    spec = {".": own(directory(mode=0)), "d": own(directory(mode=0)), "d/0": own(file(b"x" * 5000, mode=0))}
    for number in range(1, 400):
        spec[f"d/{number}"] = hardlink("d/0") if number % 2 else own(file(b"y", mode=0, xattrs={"user.x": b"z"}))
    root = tree(user.home / "shared", spec)
    before = read_tree(root)

    def hash_all() -> list[bytes]:
        walk = user.home / "walk"
        with walk.open("w+b") as out:
            walk_tree(root, out)
        shards = plan_shards(walk, 8)
        children = []
        for number, shard in enumerate(shards):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    with (user.home / f"fragment-{number}").open("wb") as out:
                        hash_shard(root, walk, shard, out, lambda done: None)
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(shards)
        return [(user.home / f"fragment-{number}").read_bytes() for number in range(len(shards))]

    fragments = user.call(hash_all)
    assert b"".join(fragments).count(b"sha256digest=") == 400
    assert read_tree(root) == before


def test_modes_restored_by_one_process_are_widened_and_restored_by_another(user: OrdinaryUser) -> None:
    root = tree(user.home / "shared", {".": own(directory()), "f": own(file(b"read", mode=0))})

    def both() -> tuple[bytes, int]:
        with Rootfs(root) as rootfs:
            one = Widened(rootfs.fd, b"f")
            with Widened(rootfs.fd, b"f") as other:
                put_back = iter([one.restore, lambda: None])

                def read() -> bytes:
                    next(put_back)()
                    return (root / "f").read_bytes()

                return other.open(read), stat.S_IMODE(other.found.st_mode)

    assert user.call(both) == (b"read", 0)
    assert read_tree(root)[b"f"].mode == 0


def test_a_mode_that_is_restored_again_and_again_is_given_up(
    user: OrdinaryUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "ATTEMPTS", 3)
    root = tree(user.home / "shared", {".": own(directory()), "f": own(file(b"read", mode=0))})
    tries = user.home / "tries"

    def read_locked() -> bytes:
        (root / "f").chmod(0)
        with tries.open("a") as out:
            out.write("x")
        return (root / "f").read_bytes()

    def read() -> bytes:
        with Rootfs(root) as rootfs, Widened(rootfs.fd, b"f") as widened:
            return widened.open(read_locked)

    with pytest.raises(PermissionError):
        user.call(read)
    assert tries.read_text() == "xxxx"
    assert read_tree(root)[b"f"].mode == 0


def test_a_mode_that_is_not_the_reason_is_left_as_it_is(user: OrdinaryUser) -> None:
    root = tree(user.home / "root", {".": own(directory()), "mine": own(file(mode=0o600)), "theirs": file(mode=0)})

    def read() -> bytes:
        with Rootfs(root) as rootfs, Widened(rootfs.fd, b"mine") as widened:
            return widened.open((root / "theirs").read_bytes)

    with pytest.raises(PermissionError):
        user.call(read)
    assert (read_tree(root)[b"mine"].mode, read_tree(root)[b"theirs"].mode) == (0o600, 0)


def test_a_root_that_need_not_be_read_is_not_widened(user: OrdinaryUser, locked: Path) -> None:
    with pytest.raises(RootfsError, match="root filesystem cannot be opened, Permission denied"):
        user.call(lambda: Rootfs(locked))
    assert read_tree(locked)[b"."].mode == 0o100


def test_a_root_that_another_process_locks_again_is_regained_and_put_back(user: OrdinaryUser) -> None:
    root = tree(user.home / "shared", {".": own(directory(mode=0)), "f": own(file(b"read"))})

    def regained() -> int:
        with Rootfs(root, to_be_read=True) as one, Rootfs(root, to_be_read=True) as other:
            one.close()
            with pytest.raises(PermissionError):
                os.stat("f", dir_fd=other.fd)
            other.regain()
            return os.stat("f", dir_fd=other.fd).st_size

    assert user.call(regained) == 4
    assert read_tree(root)[b"."].mode == 0


def test_only_the_owner_is_given_what_the_mode_forbids(user: OrdinaryUser) -> None:
    tree(user.home / "theirs", {"f": file(b"secret", mode=0), "d": directory(mode=0), "l": own(symlink("f"))})

    def widen(name: bytes) -> None:
        with Rootfs(user.home / "theirs") as rootfs, Widened(rootfs.fd, name):
            pass

    for name in (b"f", b"d", b"l"):
        with pytest.raises(PermissionError):
            user.call(lambda name=name: widen(name))
    assert read_tree(user.home / "theirs")[b"f"].mode == 0


def test_directories_of_others_are_used_by_the_rights_that_they_give(user: OrdinaryUser) -> None:
    # No right for the owner, all for others: nothing here is to be widened.
    root = tree(
        user.home / "root", {"d": directory(mode=0o007), "d/e": own(directory(mode=0)), "d/e/f": own(file(b"x"))}
    )
    expected = list(snapshot(root))
    assert user.call(lambda: list(snapshot(root))) == expected


def test_a_cache_that_is_full_puts_modes_back_when_it_lets_go(user: OrdinaryUser) -> None:
    spec = {f"d{n}": own(directory(mode=0)) for n in range(5)} | {f"d{n}/f": own(file()) for n in range(5)}
    root = tree(user.home / "root", {".": own(directory()), **spec})

    def modes() -> list[int]:
        with Rootfs(root) as rootfs, DirectoryCache(rootfs.fd, limit=2) as cache:
            for number in range(5):
                os.stat(b"f", dir_fd=cache.directory(b"d%d" % number))
            assert cache.directory(b"d4") == cache.directory(b"d4")
            return [stat.S_IMODE(os.stat(root / f"d{number}").st_mode) for number in range(5)]

    assert user.call(modes) == [0, 0, 0, 0o700, 0o700]
    assert {node.mode for path, node in read_tree(root).items() if node.type == "dir" and path != b"."} == {0}


def test_files_that_are_interpreted_are_read_too(user: OrdinaryUser) -> None:
    root = tree(user.home / "root", {".": own(directory()), "etc/passwd": own(file(b"root:x:0:0", mode=0))})
    tree(user.home / "theirs", {"etc/passwd": file(b"root:x:0:0", mode=0)})

    def read(where: Path) -> bytes | None:
        with Rootfs(where) as rootfs:
            return read_regular(rootfs.fd, b"etc/passwd", 100)

    assert user.call(lambda: read(root)) == b"root:x:0:0"
    assert read_tree(root)[b"etc/passwd"].mode == 0
    with pytest.raises(RootfsError, match="file cannot be read: etc/passwd"):
        user.call(lambda: read(user.home / "theirs"))
