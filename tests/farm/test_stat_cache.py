"""A repack with the stat cache gives what a repack without it gives, whatever was done to the tree."""

from __future__ import annotations

import json
import logging
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from single_changes import CHANGES, SPEC, add_socket, keep_times

from layerfarm.jobs.errors import TreeChanged
from layerfarm.jobs.flows import layering, surveying
from layerfarm.jobs.flows.base import FORMAT, Context, Policy, WorkDirectory
from layerfarm.jobs.flows.repack import REPACK
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, ImageResult, RepackRequest, UnpackRequest
from layerfarm.jobs.image.bundle import Bundle
from layerfarm.jobs.mtree import Delta, next_tick, read_deltas
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.interop.changes import change
from tests.trees import Node, directory, file, in_seconds, read_tree, symlink, tree


class Ground:
    """A store with an image, and a bundle of it."""

    def __init__(self, path: Path, spec: dict[bytes, Node]) -> None:
        self.path = path
        self.store = Layout.create(path / "store").path
        source = tree(path / "source", spec)
        self.run(BuildRequest(rootfs=source, image=self.image("base")))
        self.bundle = path / "bundle"
        self.run(UnpackRequest(image=self.image("base"), bundle=self.bundle))
        self.rootfs = self.bundle / "rootfs"

    def image(self, tag: str) -> ImageRef:
        return ImageRef(store=self.store, tag=tag)

    def run(self, request: BuildRequest | RepackRequest | UnpackRequest, shards: int = 2) -> ImageResult:
        return local.run(request, Policy(shards=shards, threads=2), processes=1)  # type: ignore[return-value]

    def repack(self, *, cache: bool = True, refresh: bool = False, shards: int = 2, **more: object) -> ImageResult:
        return self.run(
            RepackRequest(
                bundle=self.bundle,
                image=self.image("new"),
                stat_cache=cache,
                refresh_bundle=refresh,
                **more,  # type: ignore[arg-type]
            ),
            shards,
        )

    def both(self, **more: object) -> ImageResult:
        """The result of a repack, the same with and without the cache and on any number of shards."""
        without = self.repack(cache=False, shards=1, **more)
        for shards in (1, 2, 7):
            assert self.repack(shards=shards, **more) == without
        return without

    @property
    def cache(self) -> Path:
        return Bundle.open(self.bundle).stat_cache


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path, SPEC)


@pytest.fixture
def umoci_ground(tmp_path: Path) -> Ground:
    """Without xattrs over 1 KiB, which umoci does not record."""
    return Ground(tmp_path, SPEC | {b"b": file(b"content of b")})


class Seen:
    """Counters of the stages of a job."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashed: list[str] = []
        self.deltas: list[list[Delta]] = []
        hash_shard, read_keys = surveying.hash_shard, layering.read_keys

        def hashing(rootfs: Path, walk: Path, shard: object, *rest: object) -> None:
            with walk.open("rb") as stream:
                stream.seek(shard.offset)  # type: ignore[attr-defined]
                text = stream.read(shard.length)  # type: ignore[attr-defined]
            self.hashed += [line.split()[10].decode() for line in text.splitlines()]
            hash_shard(rootfs, walk, shard, *rest)  # type: ignore[arg-type]

        def reading(stream: BinaryIO) -> set[bytes]:
            self.deltas.append(list(read_deltas(stream)))
            stream.seek(0)
            return read_keys(stream)

        monkeypatch.setattr(surveying, "hash_shard", hashing)
        monkeypatch.setattr(layering, "read_keys", reading)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    # One shard runs in this very process.
    return Seen(monkeypatch)


# --- what is read -----------------------------------------------------------------------------------


def test_nothing_is_read_of_an_untouched_bundle(ground: Ground, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ground.repack(cache=False, shards=1)
    assert len(seen.hashed) == len(SPEC)
    seen.hashed.clear()
    # Not even the old manifest.
    monkeypatch.setattr("layerfarm.jobs.flows.repack.open_baseline", lambda *paths: pytest.fail("manifest was read"))
    monkeypatch.setattr("layerfarm.jobs.flows.new_tree.ManifestPatch", lambda *paths: pytest.fail("manifest was read"))
    monkeypatch.setattr(WorkDirectory, "publish_all", lambda *args: pytest.fail("a work file was written"))
    known = ground.cache.read_bytes()
    for refresh in (False, True):
        after = ground.repack(shards=1, refresh=refresh)
        assert after == before and after.deltas == 0 and after.layer is None
    assert seen.hashed == []
    assert ground.cache.read_bytes() == known


def test_a_job_of_the_format_before_leaves_its_walk_to_older_workers(ground: Ground) -> None:
    request = RepackRequest(bundle=ground.bundle, image=ground.image("new"))
    survey = REPACK.stages[0]
    for number, left in ((FORMAT - 1, True), (FORMAT, False)):
        ctx = Context(f"job-{number}", format=number)
        state = REPACK.begin(ctx, request)
        (unit,) = survey.plan(ctx, state)
        state = survey.join(ctx, state, [survey.run(ctx, unit)])
        assert (state.surveyed.walk is not None) == left
        REPACK.clean(ctx, request, False)


def test_a_walk_that_does_not_fit_into_memory_is_the_same(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    os.link(ground.rootfs / "d/f", ground.path / "outside")
    monkeypatch.setattr(surveying, "_IN_MEMORY", 1)
    ground.both()


def test_only_touched_files_are_read(ground: Ground, seen: Seen) -> None:
    (ground.rootfs / "d/f").write_bytes(b"F")
    (ground.rootfs / "e/new").touch()
    found = ground.repack(shards=1)
    assert seen.hashed == ["d/f", "e", "e/new"]
    assert found.deltas == 3


# --- one change of each kind ------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "paths"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_result_is_that_of_reading_everything(
    ground: Ground, seen: Seen, change: Callable[[Path], None], paths: set[bytes] | None
) -> None:
    change(ground.rootfs)
    found = ground.both()
    assert found.deltas or paths == set()
    assert all(deltas == seen.deltas[0] for deltas in seen.deltas)
    if paths:
        assert {delta.path for delta in seen.deltas[0]} == paths
    # And so is what a refreshed bundle says of itself, and what is then made of the next change.
    copy = ground.path / "copy"
    subprocess.run(["cp", "-a", ground.bundle, copy], check=True)
    known = _files_after_refresh(ground, cache=True)
    ground.bundle = copy
    assert _files_after_refresh(ground, cache=False) == known
    assert ground.repack().deltas == ground.repack(cache=False).deltas == 0


def _files_after_refresh(ground: Ground, *, cache: bool) -> dict[str, bytes]:
    """The manifest and the extra file of the bundle after a repack with a refresh."""
    ground.repack(cache=cache, refresh=True)
    bundle = Bundle.open(ground.bundle)
    return {path.name: path.read_bytes() for path in (bundle.mtree, bundle.extra)}


@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_random_changes_give_the_same_with_and_without(tmp_path: Path, seed: int, seen: Seen) -> None:
    rng = random.Random(seed)
    spec = SPEC | {
        b"many%02d%s" % (n // 20, b"" if n % 20 == 0 else b"/f%03d" % n): (
            directory(mtime=n * 10**9)
            if n % 20 == 0
            else symlink(b"x%d" % n)
            if n % 13 == 0
            else file(rng.randbytes(rng.randrange(2000)), uid=n % 3)
        )
        for n in range(600)
    }
    ground = Ground(tmp_path, spec)
    seen.deltas.clear()
    for more in range(2):
        change(ground.rootfs, seed=seed * 10 + more)
        found = ground.both()
        assert found.deltas >= 50
        assert all(deltas == seen.deltas[0] for deltas in seen.deltas)
        seen.deltas.clear()
        ground.repack(refresh=True)
        seen.deltas.clear()
        assert ground.both().deltas == 0
        ground.run(UnpackRequest(image=ground.image("new"), bundle=tmp_path / f"again-{more}"))
        assert _in_seconds(tmp_path / f"again-{more}/rootfs") == _in_seconds(ground.rootfs)


def _in_seconds(root: Path) -> dict[bytes, Node]:
    return {path: node for path, node in in_seconds(read_tree(root)).items() if node.type != "socket"}


# --- the clock ---------------------------------------------------------------------------------------


def test_an_edit_within_the_tick_of_the_snapshot_is_seen(ground: Ground) -> None:
    """Many times over: some of them fall into one tick of the clock, before the walk and after."""
    path = ground.rootfs / "same-size"
    ticks = set()
    for number in range(30):
        path.write_bytes(b"%04d" % number)
        keep_times(path)()
        before = path.stat().st_ctime_ns
        first = ground.repack(refresh=True)
        restore = keep_times(path)
        path.write_bytes(b"x%03d" % number)
        restore()
        ticks.add(path.stat().st_ctime_ns == before)
        second = ground.repack()
        assert second.mtree != first.mtree and second.deltas == 1, number


def test_an_edit_with_the_very_ctime_of_the_snapshot_is_seen(
    ground: Ground, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The racily clean entry, without luck: the clock stands still from before the edit to after the walk."""
    next_tick(ground.bundle)
    (ground.rootfs / "same-size").write_bytes(b"BBBB")
    now = (ground.rootfs / "same-size").stat().st_ctime_ns
    clock = next_tick(ground.bundle)._replace(now=now)
    with monkeypatch.context() as frozen:
        frozen.setattr("layerfarm.jobs.flows.surveying.read_clock", lambda directory: clock)
        ground.repack(refresh=True)
    seen.hashed.clear()
    ground.repack(shards=1)
    assert seen.hashed == ["same-size"]


def test_a_ctime_of_the_future_is_not_believed(ground: Ground, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was put back: what lies after it may come again."""
    long_ago = next_tick(ground.bundle)._replace(now=10**9)
    monkeypatch.setattr("layerfarm.jobs.flows.surveying.read_clock", lambda directory: long_ago)
    assert ground.repack(shards=1).deltas == 0
    assert len(seen.hashed) == len(SPEC)


def test_a_file_that_changes_while_it_is_read_ends_the_job(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    (ground.rootfs / "same-size").write_bytes(b"BBBB")
    hash_shard = surveying.hash_shard

    def meanwhile(*arguments: object) -> None:
        (ground.rootfs / "same-size").write_bytes(b"longer than it was")
        hash_shard(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(surveying, "hash_shard", meanwhile)
    with pytest.raises(TreeChanged, match="same-size"):
        ground.repack(shards=1)
    monkeypatch.undo()
    assert ground.both().deltas == 1


def test_a_file_that_changes_after_it_was_read_is_suspected_the_next_time(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ground.rootfs / "a").write_bytes(b"one")
    hash_shard = surveying.hash_shard

    def meanwhile(*arguments: object) -> None:
        hash_shard(*arguments)  # type: ignore[arg-type]
        (ground.rootfs / "d/f").write_bytes(b"F")  # believed to be clean when the walk passed it

    monkeypatch.setattr(surveying, "hash_shard", meanwhile)
    assert ground.repack(shards=1, refresh=True).deltas == 1
    monkeypatch.undo()
    assert ground.both().deltas == 1


# --- when there is no cache to use --------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda g: g.cache.unlink(), id="absent"),
        pytest.param(lambda g: g.cache.write_bytes(b"nonsense"), id="nonsense"),
        pytest.param(lambda g: g.cache.write_bytes(g.cache.read_bytes()[:-40]), id="truncated"),
        pytest.param(lambda g: g.cache.write_bytes(g.cache.read_bytes().replace(b"cache 1", b"cache 9")), id="version"),
        pytest.param(lambda g: Bundle.open(g.bundle).extra.open("ab").write(b"# more\n"), id="another-extra"),
        pytest.param(lambda g: Bundle.open(g.bundle).mtree.open("ab").write(b"# more\n"), id="another-manifest"),
    ],
)
def test_everything_is_read_where_the_cache_is_of_no_use(
    ground: Ground, seen: Seen, caplog: pytest.LogCaptureFixture, damage: Callable[[Ground], object]
) -> None:
    (ground.rootfs / "d/f").write_bytes(b"F")
    expected = ground.repack(cache=False)
    damage(ground)
    seen.hashed.clear()
    with caplog.at_level(logging.INFO):
        assert ground.repack(shards=1) == expected
    assert len(seen.hashed) == len(SPEC)
    assert [record.message for record in caplog.records if "reading every file" in record.message]
    # The next refresh heals it.
    ground.repack(refresh=True)
    seen.hashed.clear()
    ground.repack(shards=1)
    assert set(seen.hashed) <= {"d/f"}


def test_an_untouched_tree_with_damaged_records_needs_none_of_them(ground: Ground, seen: Seen) -> None:
    ground.cache.write_bytes(ground.cache.read_bytes()[:-40])
    assert ground.repack(shards=1).deltas == 0 and seen.hashed == []


def test_a_copied_bundle_is_read_again_with_the_same_result(ground: Ground, seen: Seen) -> None:
    (ground.rootfs / "d/f").write_bytes(b"F")
    expected = ground.repack(cache=False)
    copy = ground.path / "copy"
    subprocess.run(["cp", "-a", ground.bundle, copy], check=True)
    ground.bundle = copy
    seen.hashed.clear()
    assert ground.repack(shards=1) == expected
    assert len(seen.hashed) == len(SPEC)


def test_a_moved_bundle_is_still_known(ground: Ground, seen: Seen) -> None:
    ground.bundle = ground.bundle.rename(ground.path / "moved")
    assert ground.repack(shards=1).deltas == 0 and seen.hashed == []


def test_a_bundle_in_an_existing_directory_is_cached_except_its_root(ground: Ground, seen: Seen) -> None:
    ground.bundle = ground.path / "mine"
    ground.bundle.mkdir()
    (ground.bundle / "notes").touch()
    ground.run(UnpackRequest(image=ground.image("base"), bundle=ground.bundle))
    seen.hashed.clear()
    assert ground.repack(shards=1).deltas == 0
    assert set(seen.hashed) <= {"."}


def test_where_no_clock_can_be_read_everything_is_read(
    ground: Ground, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerfarm.jobs.mtree import NO_CLOCK

    monkeypatch.setattr("layerfarm.jobs.flows.surveying.read_clock", lambda directory: NO_CLOCK)
    assert ground.repack(shards=1).deltas == 0
    assert len(seen.hashed) == len(SPEC)


# --- warnings and results -----------------------------------------------------------------------------


def test_a_socket_is_reported_each_time(ground: Ground) -> None:
    add_socket(ground.rootfs)
    for _ in range(2):
        assert ground.both().warnings == ["socket left out, a layer cannot hold it: s"]
        found = ground.repack(refresh=True)
        assert len(found.warnings) == 1 and found.entries == len(SPEC)
    assert ground.both().deltas == 0


def test_masks_and_clamps_apply_to_what_was_read(ground: Ground) -> None:
    (ground.rootfs / "d/f").write_bytes(b"F")
    (ground.rootfs / "e/h").write_bytes(b"H")
    assert ground.both(mask_paths=["/d"]).deltas == 1
    assert ground.both(mask_paths=["/d", "/e"]).deltas == 0


def test_the_digest_of_the_tree_is_that_of_a_fresh_copy(ground: Ground) -> None:
    (ground.rootfs / "d/f").write_bytes(b"F")
    found = ground.repack()
    unpacked = ground.run(UnpackRequest(image=ground.image("new"), bundle=ground.path / "fresh"))
    assert unpacked.mtree == found.mtree and unpacked.entries == found.entries


def test_the_cache_holds_the_files_of_the_bundle_and_leaves_nothing_else(ground: Ground) -> None:
    for _ in range(3):
        (ground.rootfs / "d/f").write_bytes(os.urandom(8))
        ground.repack(refresh=True)
        bundle = Bundle.open(ground.bundle)
        names = {"rootfs", "config.json", "umoci.json", bundle.mtree.name, bundle.extra.name, bundle.stat_cache.name}
        assert set(os.listdir(ground.bundle)) == names
        assert stat.S_ISREG(bundle.stat_cache.stat().st_mode)
    assert os.listdir(ground.store / ".layerfarm/work") == []


def test_umoci_continues_with_the_bundle(umoci_ground: Ground) -> None:
    """It sees no change in it, takes no notice of the cache, and what it leaves is not taken for ours."""
    ground = umoci_ground
    subprocess.run(["umoci", "repack", "--image", str(ground.image("u")), ground.bundle], check=True)
    assert _layers(ground, "u") == _layers(ground, "base")
    (ground.rootfs / "d/f").write_bytes(b"F")
    umoci = ["umoci", "repack", "--refresh-bundle", "--image", str(ground.image("u")), str(ground.bundle)]
    subprocess.run(umoci, check=True)
    assert not ground.cache.exists()
    assert ground.both().deltas == 0
    (ground.rootfs / "d/f").write_bytes(b"G")
    assert ground.both().deltas == 1


def test_a_bundle_of_umocis_is_repacked_and_known_after_a_refresh(umoci_ground: Ground, seen: Seen) -> None:
    ground = umoci_ground
    ground.bundle = ground.path / "theirs"
    subprocess.run(["umoci", "unpack", "--image", str(ground.image("base")), ground.bundle], check=True)
    assert ground.both().deltas == 0
    ground.repack(refresh=True)
    seen.hashed.clear()
    next_tick(ground.bundle)
    assert ground.repack(shards=1).deltas == 0
    assert seen.hashed == []


def _layers(ground: Ground, tag: str) -> list[str]:
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{ground.image(tag)}"], check=True, capture_output=True
    ).stdout
    return [layer["digest"] for layer in json.loads(raw)["layers"]]
