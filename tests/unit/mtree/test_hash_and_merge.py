from __future__ import annotations

import hashlib
import io
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from layerfarm.jobs.errors import IncompleteTree, MtreeError, MtreeSyntaxError, RootfsError, RootfsNotFound, TreeChanged
from layerfarm.jobs.image.trees import portable, portable_entry
from layerfarm.jobs.mtree import (
    DeltaSummary,
    Entry,
    Output,
    Shard,
    compare,
    hash_shard,
    hashing,
    merge_fragments,
    merge_lines,
    mtree_key,
    plan_shards,
    read_manifest,
    snapshot,
    walk_tree,
    write_all_extra,
    write_deltas,
    write_extra,
    write_lines,
    write_tree,
)
from tests.leaks import Held
from tests.ordinary_user import ordinary_user
from tests.unit.mtree.conftest import Build


def silent(nbytes: int) -> None:
    pass


def walk_file(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "walk"
    with path.open("w+b") as out:
        walk_tree(root, out)
    return path


def fragments(
    root: Path, tmp_path: Path, count: int, advanced: Callable[[int], None] = silent
) -> tuple[list[Path], int]:
    """The fragments of a tree cut into ``count`` shards, and the number of its entries."""
    walk = walk_file(root, tmp_path)
    paths = []
    shards = plan_shards(walk, count)
    for shard in shards:
        paths.append(tmp_path / f"fragment-{count}-{shard.offset}")
        with paths[-1].open("wb") as out:
            hash_shard(root, walk, shard, out, advanced)
    return paths, sum(shard.entries for shard in shards)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50, 1000])
def test_shards_tile_the_walk_file_on_line_boundaries(odd_tree: Path, tmp_path: Path, count: int) -> None:
    walk = walk_file(odd_tree, tmp_path)
    text = walk.read_bytes()
    shards = plan_shards(walk, count)
    assert 1 <= len(shards) <= count
    assert b"".join(text[s.offset : s.offset + s.length] for s in shards) == text
    for shard in shards:
        lines = text[shard.offset : shard.offset + shard.length].splitlines(keepends=True)
        files = [line.split() for line in lines if int(line.split()[1]) >> 12 == 8]
        assert (shard.entries, shard.bytes) == (len(lines), sum(int(line[2]) for line in files))
        assert lines[-1].endswith(b"\n")


def test_shards_have_about_equal_cost(build: Build, tmp_path: Path) -> None:
    root = build({f"{n % 10}/{n}": b"x" * 1000 for n in range(1000)})
    entries = [shard.entries for shard in plan_shards(walk_file(root, tmp_path), 4)]
    assert max(entries) - min(entries) <= 0.05 * max(entries)


def test_one_large_file_is_a_shard_of_its_own_and_none_is_empty(build: Build, tmp_path: Path) -> None:
    root = build({"a": b"", "b": b"x" * 50_000_000, "c": b"", "d": b""})
    assert [shard.entries for shard in plan_shards(walk_file(root, tmp_path), 7)] == [3, 2]


def test_a_plan_from_a_file_that_is_no_walk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "walk").write_bytes(b"no walk file\n")
    with pytest.raises(MtreeSyntaxError, match="walk file"):
        plan_shards(tmp_path / "walk", 2)


def test_merged_manifest_is_byte_identical_for_every_number_of_shards(odd_tree: Path, tmp_path: Path) -> None:
    results = set()
    for count in (1, 2, 7, 50):
        paths, entries = fragments(odd_tree, tmp_path, count)
        manifest, extra = io.BytesIO(), io.BytesIO()
        assert write_tree(merge_fragments(paths[::-1], entries), Output(manifest)) == entries
        write_extra(merge_fragments(paths, entries), extra)
        results.add((manifest.getvalue(), extra.getvalue()))
    assert len(results) == 1


@pytest.mark.parametrize("count", [1, 7])
def test_lines_become_the_deltas_of_their_entries(odd_tree: Path, tmp_path: Path, count: int) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(odd_tree / "so ck"))
    os.utime(odd_tree / "so ck", (2**33, 2**33))
    os.utime(odd_tree, ns=(-7, -7))
    paths, entries = fragments(odd_tree, tmp_path, count)
    parsed, unparsed = io.BytesIO(), io.BytesIO()
    summary = write_deltas(compare((), portable(merge_fragments(paths, entries))), parsed)
    assert write_all_extra(merge_lines(paths, entries), unparsed) == (summary, [b"so ck"])
    assert unparsed.getvalue() == parsed.getvalue()


@pytest.mark.parametrize("line", [b"\n", b"./a type=file mode=0644 uid=0 gid=0 size=x nlink=1 time=1.0\n", b"./a b\n"])
def test_a_damaged_line_becomes_no_delta(line: bytes) -> None:
    with pytest.raises(MtreeSyntaxError, match="malformed line"):
        write_all_extra([line], io.BytesIO())


def test_no_lines_become_no_deltas() -> None:
    assert write_all_extra([], io.BytesIO()) == (DeltaSummary(), [])


@pytest.mark.parametrize("count", [1, 7])
def test_lines_become_the_manifest_of_their_entries(odd_tree: Path, tmp_path: Path, count: int) -> None:
    os.chown(odd_tree / "dir/z", 5, 7)
    (odd_tree / "dir/last").write_bytes(b"")
    os.chmod(odd_tree / "dir/last", 0o664)
    paths, entries = fragments(odd_tree, tmp_path, count)

    def written(write: Callable[[Output, Output], int]) -> list[bytes]:
        outs = [io.BytesIO() for _ in range(4)]
        assert write(Output(*outs[:2]), Output(*outs[2:], portable_entry)) == entries
        return [out.getvalue() for out in outs]

    assert written(partial(write_lines, merge_lines(paths, entries))) == written(
        partial(write_tree, merge_fragments(paths, entries))
    )


_FILE = b"./a type=file mode=0644 uid=0 gid=0 size=1 nlink=1 time=1.000000000 sha256digest=00"


@pytest.mark.parametrize("line", [_FILE, _FILE.replace(b" time=", b" ") + b"\n", b"./a type=file\n"])
def test_a_damaged_line_becomes_no_line(line: bytes) -> None:
    root = b". type=dir mode=0755 uid=0 gid=0 size=1 nlink=1 time=1.000000000\n"
    with pytest.raises(MtreeSyntaxError, match="malformed line"):
        write_lines([root, line], Output(io.BytesIO()))


def test_a_file_does_not_come_before_its_directory() -> None:
    line = b"./d/a type=file mode=0644 uid=0 gid=0 size=1 nlink=1 time=1.000000000 sha256digest=00\n"
    with pytest.raises(MtreeError, match="does not follow its directory"):
        write_lines([line], Output(io.BytesIO()))


def test_entries_say_what_is_on_disk(odd_tree: Path) -> None:
    entries = list(snapshot(odd_tree))
    assert [mtree_key(e.path, e.type == "dir") for e in entries] == sorted(
        {mtree_key(e.path, e.type == "dir") for e in entries}
    )
    for entry in entries:
        path = os.path.join(os.fsencode(odd_tree), entry.path)
        found = os.lstat(path)
        assert (entry.mode, entry.uid, entry.gid, entry.size) == (
            found.st_mode & 0o7777,
            found.st_uid,
            found.st_gid,
            found.st_size,
        )
        assert (entry.nlink, entry.mtime) == (found.st_nlink, found.st_mtime_ns)
        assert entry.link == (os.readlink(path) if entry.type == "link" else None)
        if entry.type == "file":
            with open(path, "rb") as stream:
                assert entry.sha256 == hashlib.sha256(stream.read()).hexdigest()
        else:
            assert entry.sha256 is None
        names = sorted(map(os.fsencode, os.listxattr(path, follow_symlinks=False)))
        assert entry.xattrs == tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
        is_device = entry.type in ("char", "block")
        assert entry.device == ((os.major(found.st_rdev), os.minor(found.st_rdev)) if is_device else None)
    assert {entry.type for entry in entries} == {"file", "dir", "link", "fifo", "char", "block"}


def test_without_content_no_file_is_opened(odd_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: int, name: bytes | str) -> tuple[int, os.stat_result]:
        raise AssertionError(name)

    expected = [entry._replace(sha256=None) for entry in snapshot(odd_tree)]
    monkeypatch.setattr(hashing, "stat_regular", refuse)
    assert list(snapshot(odd_tree, hash_content=False)) == expected


def test_fragment_is_a_manifest_that_any_reader_of_full_paths_reads(odd_tree: Path, tmp_path: Path) -> None:
    (path,), entries = fragments(odd_tree, tmp_path, 1)
    with path.open("rb") as stream:
        read = [entry._replace(xattrs=entry.xattrs or ()) for entry in read_manifest(stream)]
    assert read == list(merge_fragments([path], entries))


def test_progress_adds_up_to_the_content_and_comes_within_a_large_file(build: Build, tmp_path: Path) -> None:
    root = build({"large": b"x" * 20_000_000, "small": b"12345", "empty": b""})
    told: list[int] = []
    fragments(root, tmp_path, 1, told.append)
    assert sum(told) == 20_000_005
    assert len([n for n in told if n >= 4_000_000]) >= 3


def test_raising_from_progress_stops_the_work(build: Build, tmp_path: Path) -> None:
    def cancel(nbytes: int) -> None:
        raise KeyboardInterrupt

    root = build({"large": b"x" * 20_000_000})
    held = Held()
    with pytest.raises(KeyboardInterrupt):
        fragments(root, tmp_path, 1, cancel)
    assert not held.new()


def _append(path: Path) -> None:
    with path.open("ab") as out:
        out.write(b"more")


def _rewrite(path: Path) -> None:
    path.write_bytes(b"C" * path.stat().st_size)


def _replace(path: Path) -> None:
    found = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.rename(path)


def _to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _to_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _parent_to_link(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.symlink_to("moved")


@pytest.mark.parametrize(
    "change", [_append, _rewrite, _replace, _to_fifo, _to_link, _parent_to_link, Path.unlink], ids=lambda f: f.__name__
)
def test_file_changed_between_walk_and_hash_is_named(
    build: Build, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    root = build({"d/f\n": b"content"})
    walk = walk_file(root, tmp_path)
    change(root / "d/f\n")
    (shard,) = plan_shards(walk, 1)
    with pytest.raises(TreeChanged, match=r"d(/f\\n)?$"):
        hash_shard(root, walk, shard, io.BytesIO(), silent)


@pytest.mark.parametrize("size", [10, 1_000_000])
@pytest.mark.parametrize("change", [_append, _rewrite, lambda path: os.truncate(path, 5)])
def test_file_changed_while_it_is_read_is_named(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], size: int
) -> None:
    root = build({"f": b"x" * size})
    walk = walk_file(root, tmp_path)
    real = hashing.stat_regular

    def open_then_change(directory: int, name: bytes | str) -> tuple[int, os.stat_result]:
        opened = real(directory, name)
        change(root / "f")
        return opened

    monkeypatch.setattr(hashing, "stat_regular", open_then_change)
    (shard,) = plan_shards(walk, 1)
    with pytest.raises(TreeChanged, match="changed while it was read: f"):
        hash_shard(root, walk, shard, io.BytesIO(), silent)


def test_changed_link_is_named(build: Build, tmp_path: Path) -> None:
    root = build({"l": lambda path: os.symlink("target", path)})
    walk = walk_file(root, tmp_path)
    (root / "l").unlink()
    (root / "l").symlink_to("another target")
    with pytest.raises(TreeChanged, match=": l"):
        hash_shard(root, walk, plan_shards(walk, 1)[0], io.BytesIO(), silent)


def test_root_that_went_away_is_named(build: Build, tmp_path: Path) -> None:
    walk = walk_file(build({}), tmp_path)
    with pytest.raises(RootfsNotFound):
        hash_shard(tmp_path / "gone", walk, plan_shards(walk, 1)[0], io.BytesIO(), silent)


@pytest.mark.parametrize("text", [b"", b"garbage\n", b"1 2 3 4 5 6 7 8 9 x\n", b"33188 x 1 0 0 0 1 1 0 f\n"])
def test_damaged_walk_file_is_refused(build: Build, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "walk").write_bytes(text)
    with pytest.raises(MtreeSyntaxError):
        hash_shard(build({}), tmp_path / "walk", Shard(0, max(len(text), 1), 1, 0), io.BytesIO(), silent)


def test_missing_shard_is_reported(odd_tree: Path, tmp_path: Path) -> None:
    paths, entries = fragments(odd_tree, tmp_path, 7)
    with pytest.raises(IncompleteTree, match=f"of {entries} entries"):
        list(merge_fragments(paths[:2] + paths[3:], entries))


def test_shard_given_twice_is_reported(odd_tree: Path, tmp_path: Path) -> None:
    paths, entries = fragments(odd_tree, tmp_path, 7)
    with pytest.raises(IncompleteTree, match="two shards hold the same path"):
        list(merge_fragments([*paths, paths[1]], entries))


def test_overlapping_shards_are_told(odd_tree: Path, tmp_path: Path) -> None:
    halves, entries = fragments(odd_tree, tmp_path, 2)
    (whole,), _ = fragments(odd_tree, tmp_path, 1)
    with pytest.raises(IncompleteTree):
        list(merge_fragments([whole, halves[1]], entries))


def test_no_fragment_at_all_is_an_incomplete_tree() -> None:
    with pytest.raises(IncompleteTree):
        list(merge_fragments([], 1))


@pytest.mark.parametrize("at", [1, 40, -1, -30])
def test_fragment_cut_short_is_reported(odd_tree: Path, tmp_path: Path, at: int) -> None:
    (path,), entries = fragments(odd_tree, tmp_path, 1)
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises((MtreeSyntaxError, IncompleteTree)):
        list(merge_fragments([path], entries))


def test_fragment_without_entries_adds_none(odd_tree: Path, tmp_path: Path) -> None:
    (path,), entries = fragments(odd_tree, tmp_path, 1)
    (tmp_path / "empty").touch()
    assert list(merge_fragments([tmp_path / "empty", path], entries)) == list(merge_fragments([path], entries))


@pytest.mark.parametrize("keyword", [b"user.a=QQ==", b"uid=1", b"xattr"])
def test_fragment_with_a_malformed_xattr_is_refused(odd_tree: Path, tmp_path: Path, keyword: bytes) -> None:
    (path,), entries = fragments(odd_tree, tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1] + b" " + keyword + b"\n")
    with pytest.raises(MtreeSyntaxError, match="malformed line of a fragment"):
        list(merge_fragments([path], entries))


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["theirs", "closed"])
def test_entry_of_another_user_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It may be another process that restored its mode: reading is tried again, not without end."""
    monkeypatch.setattr(hashing, "ATTEMPTS", 3)
    with ordinary_user() as user:
        root = user.home / "root"
        root.mkdir()
        user.own(root)
        (root / "closed").mkdir(mode=0o700)
        (root / "theirs").touch(mode=0o600)
        walk = user.home / "walk"
        walk.write_bytes(walk_file(root, tmp_path).read_bytes())
        lines = walk.read_bytes().splitlines(keepends=True)
        (place,) = (n for n, line in enumerate(lines) if line.endswith(f" {name}\n".encode()))
        shard = Shard(len(b"".join(lines[:place])), len(lines[place]), 1, 0)
        with pytest.raises(RootfsError, match=f"entry cannot be read, Permission denied: {name} "):
            user.call(lambda: hash_shard(root, walk, shard, io.BytesIO(), silent))


def test_xattr_names_of_every_kind_survive_the_fragments(build: Build) -> None:
    root = build({"f": b""})
    names = [b"user.a=b", b"user.a=bbb", b"user. \n\xff#", b"user.plain"]
    for name in names:
        os.setxattr(root / "f", name, b"=\0\n" if b"=b" not in name else b"")
    entry: Entry = list(snapshot(root))[1]
    assert entry.xattrs is not None
    assert [name for name, _ in entry.xattrs] == sorted(names)
    assert [value for _, value in entry.xattrs] == [b"=\0\n", b"", b"", b"=\0\n"]
