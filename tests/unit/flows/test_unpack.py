"""A job that did not succeed leaves no bundle, even where the bundle was in place already; of others it leaves all."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import BundleError, BundleExists, OutsideAllowedRoots
from layerfarm.jobs.flows import bundle_place, unpack
from layerfarm.jobs.flows.base import Context, Policy
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, UnpackRequest
from layerfarm.jobs.flows.unpack import UNPACK
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local


@pytest.fixture
def request_of(tmp_path: Path) -> UnpackRequest:
    """An image of one file, and the request to unpack it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    image = ImageRef(store=Layout.create(tmp_path / "store").path)
    local.run(BuildRequest(rootfs=tree, image=image))
    return UnpackRequest(image=image, bundle=tmp_path / "bundle")


def unpacked(request: UnpackRequest, job_id: str) -> Context:
    """The job ran up to the end of its only unit."""
    ctx = Context(job_id)
    (unit,) = UNPACK.stages[0].plan(ctx, UNPACK.begin(ctx, request))
    UNPACK.stages[0].run(ctx, unit)
    assert (request.bundle / "rootfs" / "file").read_text() == "content"
    return ctx


def test_job_that_did_not_succeed_takes_its_bundle_back(request_of: UnpackRequest) -> None:
    ctx = unpacked(request_of, "one")
    UNPACK.clean(ctx, request_of, False)
    assert not request_of.bundle.exists()
    # And again, should the first time have been interrupted at its end.
    UNPACK.clean(ctx, request_of, False)


def test_job_that_succeeded_leaves_it(request_of: UnpackRequest) -> None:
    UNPACK.clean(unpacked(request_of, "one"), request_of, True)
    assert (request_of.bundle / "config.json").is_file()
    assert not list(request_of.bundle.parent.glob(".layerfarm-*"))


def test_directory_that_was_there_keeps_what_it_held(request_of: UnpackRequest) -> None:
    request_of.bundle.mkdir()
    (request_of.bundle / "notes").write_text("mine")
    UNPACK.clean(unpacked(request_of, "one"), request_of, False)
    assert [path.name for path in request_of.bundle.iterdir()] == ["notes"]


def test_bundle_of_another_job_is_left_alone(request_of: UnpackRequest) -> None:
    unpacked(request_of, "one")
    UNPACK.clean(Context("two"), request_of, False)
    assert (request_of.bundle / "rootfs" / "file").is_file()


def test_directories_above_the_bundle_come_and_go_with_it(request_of: UnpackRequest, tmp_path: Path) -> None:
    request = request_of.model_copy(update={"bundle": tmp_path / "no/such/bundle"})
    ctx = unpacked(request, "one")
    assert stat.S_IMODE(request.bundle.stat().st_mode) == 0o700
    UNPACK.clean(ctx, request, False)
    assert not (tmp_path / "no").exists()


def test_empty_directory_is_restored_with_its_mode_and_times(request_of: UnpackRequest) -> None:
    bundle = request_of.bundle
    bundle.mkdir()
    bundle.chmod(0o751)
    os.utime(bundle, (5, 6))
    ctx = unpacked(request_of, "one")
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o700
    UNPACK.clean(ctx, request_of, False)
    found = bundle.stat()
    assert (os.listdir(bundle), stat.S_IMODE(found.st_mode), found.st_mtime) == ([], 0o751, 6)


@pytest.mark.parametrize("exists", [False, True])
def test_a_copy_of_the_unit_that_comes_second_has_the_result_of_the_first(
    request_of: UnpackRequest, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """Both unpacked before either moved its bundle."""
    if exists:
        request_of.bundle.mkdir()
    ctx = Context("one")
    (unit,) = UNPACK.stages[0].plan(ctx, UNPACK.begin(ctx, request_of))
    results: list[dict[str, Any]] = []
    publish = bundle_place.publish

    def after_another(*args: Any) -> None:
        monkeypatch.setattr(unpack, "publish", publish)
        results.append(UNPACK.stages[0].run(ctx, unit))
        publish(*args)

    monkeypatch.setattr(unpack, "publish", after_another)
    results.append(UNPACK.stages[0].run(ctx, unit))
    assert results[0] == results[1]
    UNPACK.clean(ctx, request_of, True)
    assert not list(request_of.bundle.parent.rglob(".layerfarm-*"))
    assert (request_of.bundle / "umoci.json").is_file()


def test_a_copy_killed_between_two_renames_is_continued(
    request_of: UnpackRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_of.bundle.mkdir()
    ctx = Context("one")
    (unit,) = UNPACK.stages[0].plan(ctx, UNPACK.begin(ctx, request_of))

    def killed(staged: Path, bundle: Path, names: list[str]) -> None:
        (staged / names[0]).rename(bundle / names[0])
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(bundle_place, "_move_parts", killed)
        patched.setattr(unpack, "discard", lambda staged: None)
        with pytest.raises(SystemExit):
            UNPACK.stages[0].run(ctx, unit)
    assert [path.name for path in request_of.bundle.iterdir() if not path.name.startswith(".")] == ["rootfs"]
    UNPACK.stages[0].run(ctx, unit)
    UNPACK.clean(ctx, request_of, True)
    names = {path.name for path in request_of.bundle.iterdir()}
    assert {"rootfs", "config.json", "umoci.json"} < names
    assert not any(name.startswith(".layerfarm-") for name in names)


@pytest.mark.parametrize("exists", [False, True], ids=["beside a new bundle", "in a directory that exists"])
def test_staging_of_a_killed_process_is_removed_by_the_next_unpack(request_of: UnpackRequest, exists: bool) -> None:
    """Three processes: one was killed long ago, one just now, and one is alive."""
    bundle = request_of.bundle
    if exists:
        bundle.mkdir()
    base = bundle if exists else bundle.parent
    for job in ("local-1-old", "local-2-new"):
        child = os.fork()
        if child == 0:
            UNPACK.begin(Context(job), request_of)
            (bundle_place.stage(bundle, job) / "file").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    UNPACK.begin(Context("local-3-alive"), request_of)
    for job in ("local-1-old", "local-3-alive"):
        os.utime(base / f".layerfarm-{job}/records/lock", (5, 5))
    local.run(request_of)
    assert sorted(base.glob(".layerfarm-*")) == [base / f".layerfarm-local-{job}" for job in ("2-new", "3-alive")]
    assert (bundle / "rootfs/file").is_file()


def test_directories_not_identified_as_staging_stay(request_of: UnpackRequest) -> None:
    base = request_of.bundle.parent
    (base / ".layerfarm-of-another-kind/records").mkdir(parents=True)
    (base / ".layerfarm-a-file").write_text("x")
    (base / ".layerfarm-a-link").symlink_to(base / ".layerfarm-of-another-kind")
    (base / ".layerfarm-of-another-kind/records/lock").mkdir()
    before = sorted(base.glob(".layerfarm-*"))
    local.run(request_of)
    assert sorted(base.glob(".layerfarm-*")) == before


def test_without_semaphores_the_units_run_in_this_process(
    request_of: UnpackRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in /dev/shm, which a chroot may not have."""
    request = BuildRequest(rootfs=tmp_path / "tree", image=ImageRef(store=request_of.image.store, tag="again"))
    expected = local.run(request, processes=2)

    def missing(*args: Any, **options: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(multiprocessing.get_context("fork"), "Value", missing)
    assert local.run(request, processes=2) == expected


@pytest.mark.parametrize("name", ["rootfs", "config.json", "umoci.json"])
def test_part_of_a_bundle_that_comes_meanwhile_is_refused_and_stays(
    request_of: UnpackRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    request_of.bundle.mkdir()
    publish = bundle_place.publish

    def too_late(*args: Any) -> None:
        (request_of.bundle / name).write_text("mine")
        publish(*args)

    monkeypatch.setattr(unpack, "publish", too_late)
    with pytest.raises(BundleExists, match=name):
        unpacked(request_of, "one")
    UNPACK.clean(Context("one"), request_of, False)
    assert [path.read_text() for path in request_of.bundle.iterdir()] == ["mine"]


def test_nothing_is_made_above_an_allowed_root_that_does_not_exist(request_of: UnpackRequest, tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    request = request_of.model_copy(update={"bundle": root / "bundle"})
    ctx = Context("one", Policy(roots=(root,)))
    with pytest.raises(OutsideAllowedRoots):
        UNPACK.begin(ctx, request)
    assert not root.exists()


@pytest.mark.usefixtures("as_root")
def test_staging_directories_of_other_users_are_neither_used_nor_removed(request_of: UnpackRequest) -> None:
    base = request_of.bundle.parent
    theirs = [base / bundle_place.staging_name(job) for job in ("one", "local-2")]
    for directory in theirs:
        (directory / "records").mkdir(parents=True, mode=0o700)
        (directory / "records/lock").touch()
        os.utime(directory / "records/lock", (1, 1))
        os.chown(directory, 54321, 54321)
    with pytest.raises(BundleError, match="staging directory of the bundle belongs to another user"):
        unpacked(request_of, "one")
    assert not request_of.bundle.exists() and all((path / "records/lock").exists() for path in theirs)


def test_parts_of_a_bundle_that_cannot_all_be_moved_stay_where_they_are(tmp_path: Path) -> None:
    staged, bundle = tmp_path / "staged", tmp_path / "bundle"
    for directory in (staged, bundle):
        directory.mkdir()
    for name in ("rootfs", "umoci.json"):
        (staged / name).touch()
    with pytest.raises(FileNotFoundError):
        bundle_place._move_parts(staged, bundle, ["rootfs", "umoci.json", "config.json"])
    assert (sorted(os.listdir(staged)), os.listdir(bundle)) == (["rootfs", "umoci.json"], [])
