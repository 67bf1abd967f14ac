from __future__ import annotations

import io
import os
import re
import time
from hashlib import file_digest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.errors import MtreeError, MtreeSyntaxError, StaleCache
from layerfarm.jobs.mtree import (
    NO_CLOCK,
    Clock,
    Digests,
    Dirty,
    Edit,
    Entry,
    ManifestPatch,
    Output,
    StatCache,
    Walk,
    find_dirty,
    mtree_key,
    next_tick,
    open_stat_cache,
    read_clock,
    read_edits,
    sha256_of,
    vis,
    walk_tree,
    write_extra,
    write_stat_cache,
)
from tests.unit.mtree.conftest import Build
from tests.unit.mtree.entries import entry, manifest, tree, trees

TREE = "sha256:" + "0" * 64


# --- the clock -------------------------------------------------------------------------------------


def test_files_written_before_the_tick_are_older_and_later_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    clock = next_tick(tmp_path)
    (tmp_path / "after").touch()
    assert (tmp_path / "before").stat().st_ctime_ns < clock.now <= (tmp_path / "after").stat().st_ctime_ns


def test_reading_the_clock_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(tmp_path, (1000, 1000))
    assert read_clock(tmp_path).devices == {tmp_path.stat().st_dev}
    assert os.listdir(tmp_path) == [] and tmp_path.stat().st_mtime == 1000
    # A file system without nameless files: the file has a name for a moment.
    monkeypatch.setattr("layerfarm.jobs.mtree.clock._UNNAMED", os.O_TMPFILE | os.O_RDONLY)
    assert read_clock(tmp_path).now <= next_tick(tmp_path).now
    assert os.listdir(tmp_path) == []


def test_where_no_file_can_be_made_there_is_no_clock(tmp_path: Path) -> None:
    assert read_clock(tmp_path / "gone") == next_tick(tmp_path / "gone") == NO_CLOCK


def test_a_clock_that_stands_still_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = Clock(5, frozenset((1,)))
    monkeypatch.setattr("layerfarm.jobs.mtree.clock.read_clock", lambda directory: still)
    began = time.monotonic()
    assert next_tick(tmp_path) == still
    assert time.monotonic() - began < 60


# --- what a walk records of ctimes -------------------------------------------------------------------


def walk_into(path: Path, root: Path, clock: Clock) -> Walk:
    with path.open("w+b") as out:
        return walk_tree(root, out, clock)


def ctimes(path: Path) -> dict[bytes, int]:
    return {vis.decode(line.split()[10]): int(line.split()[0]) for line in path.read_bytes().splitlines()}


def test_a_ctime_older_than_the_clock_is_recorded(build: Build, tmp_path: Path) -> None:
    root = build({"a": b"1", "d/b": b"2", "l": lambda path: os.symlink("a", path)})
    os.link(root / "a", root / "hard")
    walk = walk_into(tmp_path / "walk", root, next_tick(tmp_path))
    assert walk.racy == 0
    names = [b".", b"a", b"hard", b"l", b"d", b"d/b"]
    assert ctimes(tmp_path / "walk") == {
        name: os.lstat(os.path.join(os.fsencode(root), name)).st_ctime_ns for name in names
    }


def test_a_ctime_of_the_clocks_own_tick_or_of_the_future_is_not_recorded(build: Build, tmp_path: Path) -> None:
    root = build({"a": b"1", "b": b"2"})
    next_tick(tmp_path)
    (root / "b").chmod(0o600)
    stamp = (root / "b").stat().st_ctime_ns
    devices = frozenset((root.stat().st_dev,))
    for now, recorded in ((stamp, 0), (stamp - 1, 0), (stamp + 1, stamp)):
        walk = walk_into(tmp_path / "walk", root, Clock(now, devices))
        assert ctimes(tmp_path / "walk")[b"b"] == recorded
        assert ctimes(tmp_path / "walk")[b"a"] == (root / "a").stat().st_ctime_ns
        assert walk.racy == (recorded == 0)


def test_sockets_and_files_with_times_of_another_clock_are_not_recorded(odd_tree: Path, tmp_path: Path) -> None:
    clock = next_tick(tmp_path)
    assert walk_into(tmp_path / "walk", odd_tree, clock).racy == 0
    foreign = Clock(clock.now, frozenset((1 << 40,)))
    walk = walk_into(tmp_path / "walk", odd_tree, foreign)
    assert walk.racy == walk.entries and set(ctimes(tmp_path / "walk").values()) == {0}
    os.mknod(odd_tree / "socket", 0o140644)
    walk_into(tmp_path / "walk", odd_tree, next_tick(tmp_path))
    assert [path for path, ctime in ctimes(tmp_path / "walk").items() if ctime == 0] == [b"socket"]


# --- the cache file ----------------------------------------------------------------------------------


class Place:
    """A tree with its manifest, extra file and stat cache beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest, self.extra, self.cache, self.walk = (root.parent / name for name in "mecw")
        self.manifest.write_bytes(b"manifest")
        self.extra.write_bytes(b"extra")
        self.remember(next_tick(root.parent))

    def remember(self, clock: Clock) -> None:
        walk = walk_into(self.walk, self.root, clock)
        with self.cache.open("wb") as out:
            digests = Digests(*map(sha256_of, (self.walk, self.manifest, self.extra)), TREE)
            write_stat_cache(out, self.walk, walk, digests)

    def open(self) -> StatCache:
        return open_stat_cache(self.cache, self.manifest, self.extra)

    def look(self) -> tuple[set[bytes], list[Edit]]:
        """The paths of the suspects, and the script."""
        walk_into(self.walk, self.root, next_tick(self.root.parent))
        suspects, script = io.BytesIO(), io.BytesIO()
        found = find_dirty(self.open(), self.walk, suspects, script)
        lines = suspects.getvalue().splitlines()
        steps = list(read_edits(io.BytesIO(script.getvalue())))
        assert found == Dirty(sum(step.take for step in steps), sum(step.drop for step in steps))
        assert len(lines) == found.entries
        return {vis.decode(line.split()[10]) for line in lines}, steps


@pytest.fixture
def place(build: Build) -> Place:
    return Place(build({"a": b"1", "b": b"2", "d/c": b"3", "d/e/f": b"4", "z/y": b"5"}))


def test_an_untouched_tree_is_known_by_the_digest_of_its_walk(place: Place) -> None:
    cache = place.open()
    assert cache.walk == Walk(entries=9, racy=0) and cache.tree == TREE
    walk_into(place.walk, place.root, next_tick(place.root.parent))
    with place.walk.open("rb") as stream:
        assert cache.unchanged(file_digest(stream, "sha256").hexdigest())
    assert place.look() == (set(), [Edit(9, 0, 0)])
    assert not cache.unchanged("0" * 64)
    assert not cache._replace(walk=cache.walk._replace(racy=1)).unchanged(cache.digest)


def test_only_touched_files_are_suspected(place: Place) -> None:
    (place.root / "d/c").write_bytes(b"4")
    (place.root / "b").unlink()
    (place.root / "d/e/new").touch()
    (place.root / "z").chmod(0o700)
    suspects, steps = place.look()
    assert suspects == {b".", b"d/c", b"d/e", b"d/e/new", b"z"}
    # . a b | d d/c | d/e d/e/f d/e/new | z z/y
    assert steps == [Edit(0, 1, 1), Edit(1, 1, 0), Edit(1, 2, 2), Edit(1, 1, 2), Edit(1, 0, 0)]


def test_a_directory_that_became_a_file_drops_all_that_was_in_it(place: Place) -> None:
    os.rename(place.root / "d", place.root.parent / "away")
    (place.root / "d").touch()
    suspects, steps = place.look()
    assert suspects == {b".", b"d"}
    assert sum(step.drop for step in steps) == 5  # . d d/c d/e d/e/f


@pytest.mark.parametrize("clock", [NO_CLOCK, Clock(0, frozenset(range(1000)))])
def test_untrusted_entries_are_suspected_even_with_an_equal_record(place: Place, clock: Clock) -> None:
    place.remember(clock)
    suspects, steps = place.look()
    assert len(suspects) == 9 and steps == [Edit(0, 9, 9)]
    # Both walks without a clock: the records are equal, and vouch for nothing all the same.
    walk_into(place.walk, place.root, clock)
    assert find_dirty(place.open(), place.walk, io.BytesIO(), io.BytesIO()) == Dirty(9, 9)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda p: p.cache.unlink(), "cannot be read", id="absent"),
        pytest.param(lambda p: p.cache.write_bytes(b""), "not a stat cache", id="empty"),
        pytest.param(lambda p: p.cache.write_bytes(os.urandom(5000)), "not a stat cache", id="noise"),
        pytest.param(lambda p: replace(p.cache, rb"cache 1 ", b"cache 2 "), "this version", id="version"),
        pytest.param(lambda p: replace(p.cache, rb"entries=\d+", b"entries=-1"), "not a stat cache", id="number"),
        pytest.param(lambda p: p.manifest.write_bytes(b"other"), "another manifest", id="manifest"),
        pytest.param(lambda p: p.extra.write_bytes(b"other"), "another manifest", id="extra"),
        pytest.param(lambda p: p.extra.unlink(), "cannot be read", id="no-extra"),
    ],
)
def test_a_cache_that_does_not_fit_is_not_opened(place: Place, damage: object, reason: str) -> None:
    damage(place)  # type: ignore[operator]
    with pytest.raises(StaleCache, match=reason):
        place.open()


@pytest.mark.parametrize("pattern", [rb"(?s).{10}\Z", rb"d/c\n", rb" 33188 "])
def test_damaged_records_are_not_believed(place: Place, pattern: bytes) -> None:
    replace(place.cache, pattern, b"")
    with pytest.raises(StaleCache, match="damaged"):
        find_dirty(place.open(), place.walk, io.BytesIO(), io.BytesIO())


def replace(path: Path, pattern: bytes, by: bytes) -> None:
    text, count = re.subn(pattern, by, path.read_bytes(), count=1)
    assert count == 1
    path.write_bytes(text)


# --- the new tree out of the old one ------------------------------------------------------------------


def script(old: list[Entry], new: list[Entry]) -> list[Edit]:
    """Output of find_dirty if it knew all differences of two entries."""
    olds = {mtree_key(e.path, e.type == "dir"): e for e in old}
    news = {mtree_key(e.path, e.type == "dir"): e for e in new}
    steps = []
    for key in sorted(olds | news):
        before, after = olds.get(key), news.get(key)
        if before == after:
            steps.append(Edit(1, 0, 0))
        else:
            steps.append(Edit(0, before is not None, after is not None))
    return steps


def known(entries: list[Entry]) -> ManifestPatch:
    extra = io.BytesIO()
    write_extra(entries, extra)
    return ManifestPatch(io.BytesIO(manifest(entries)), io.BytesIO(extra.getvalue()))


def spliced(old: list[Entry], steps: list[Edit], fresh: list[Entry]) -> tuple[bytes, bytes, int]:
    out, extra = io.BytesIO(), io.BytesIO()
    count = known(old).apply(steps, iter(fresh), Output(out, extra))
    return out.getvalue(), extra.getvalue(), count


@pytest.mark.large
@given(trees(), trees(), st.booleans())
def test_splicing_gives_the_files_that_writing_the_new_tree_gives(
    old: list[Entry], other: list[Entry], mixed: bool
) -> None:
    # Two random trees have little in common: let the new one keep what it can of the old one.
    paths = {e.path for e in other}
    directories = {e.path for e in other if e.type == "dir"} | {b""}
    shared = [e for e in old if e.path not in paths and e.path.rpartition(b"/")[0] in directories and e.type != "dir"]
    new = tree_of(other + shared) if mixed else other
    steps = script(old, new)
    kept = {e.path: e for e in old}
    fresh = [e for e in new if kept.get(e.path) != e]
    extra = io.BytesIO()
    write_extra(new, extra)
    assert spliced(old, steps, fresh) == (manifest(new), extra.getvalue(), len(new))
    assert list(known(old).dropped(steps)) == [e for e in old if e not in new]


def tree_of(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda e: mtree_key(e.path, e.type == "dir"))


def test_lines_below_a_directory_with_a_new_owner_are_written_again() -> None:
    old = tree(entry(b"d", "dir", uid=5), entry(b"d/f", uid=5), entry(b"d/g"), entry(b"e", "dir"), entry(b"e/h"))
    new = tree(entry(b"d", "dir", uid=6), entry(b"d/f", uid=5), entry(b"d/g"), entry(b"e", "dir"), entry(b"e/h"))
    assert spliced(old, [Edit(1, 1, 1), Edit(4, 0, 0)], [new[1]])[0] == manifest(new)


def test_a_file_with_large_xattrs_keeps_them() -> None:
    large = entry(b"f", xattrs=((b"user.a", b"x" * 2000),))
    old = tree(large, entry(b"g"))
    new = tree(large, entry(b"g", mode=0o600))
    extra = io.BytesIO()
    write_extra(new, extra)
    assert spliced(old, [Edit(2, 1, 1)], [new[2]])[:2] == (manifest(new), extra.getvalue())


@pytest.mark.parametrize(
    ("steps", "fresh"),
    [
        ([Edit(2, 0, 0)], 0),
        ([Edit(4, 0, 0)], 0),
        ([Edit(2, 2, 0)], 0),
        ([Edit(3, 0, 0)], 1),
        ([Edit(3, 0, 2)], 1),
        ([Edit(0, 0, 1), Edit(3, 0, 0)], 0),
    ],
)
def test_a_script_of_other_trees_is_refused(steps: list[Edit], fresh: int) -> None:
    old = tree(entry(b"a"), entry(b"b"))
    with pytest.raises(MtreeError, match="than the script says"):
        spliced(old, steps, [entry(b"c")] * fresh)


@pytest.mark.parametrize("steps", [[Edit(2, 2, 0)], [Edit(2, 0, 0)], [Edit(4, 0, 0)]])
def test_entries_dropped_by_a_script_of_another_tree_are_refused(steps: list[Edit]) -> None:
    with pytest.raises(MtreeError, match="than the script says"):
        list(known(tree(entry(b"a"), entry(b"b"))).dropped(steps))


def test_damage_in_a_cache_that_seemed_valid_is_reported() -> None:
    with pytest.raises(MtreeSyntaxError, match="not a line of a layerfarm manifest"):
        list(ManifestPatch(io.BytesIO(manifest(tree()) + b"x y=\n"), io.BytesIO()).dropped([Edit(0, 2, 0)]))
    with pytest.raises(MtreeSyntaxError, match="script"):
        list(read_edits(io.BytesIO(b"1 2\n")))
