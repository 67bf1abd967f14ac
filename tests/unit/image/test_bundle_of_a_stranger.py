"""A bundle of another user: its links lead nowhere else, and its fifos stop no command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.errors import BundleError, LayerfarmError, UnsafePath
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import ImageRef, RepackRequest
from layerfarm.jobs.fs import own_directory
from layerfarm.jobs.image import Resolved, unpack_manifest
from layerfarm.jobs.image.bundle import Bundle
from layerfarm.jobs.image.revert import revert_bundle
from layerfarm.jobs.image.validate_bundle import validate_bundle
from layerfarm.jobs.mtree import snapshot
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.alarm import no_hanging
from tests.ordinary_user import GID, UID
from tests.unit.image.images import image, tar

SECRET = b"root:$6$secret:1:0:9:7:::\n"
PARTS = ("rootfs", "umoci.json", ".mtree", ".layerfarm", ".stat")


@pytest.fixture
def made(layout: Layout) -> Resolved:
    return image(layout, [tar(("a", b"x"))], tag="t")


@pytest.fixture
def bundle(layout: Layout, made: Resolved, tmp_path: Path) -> Bundle:
    return unpack_manifest(layout, tmp_path / "b", made).bundle


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    with no_hanging(60):
        yield


def part(bundle: Bundle, name: str) -> Path:
    return bundle.path / name if not name.startswith(".") else bundle.mtree.with_suffix(name)


def acts(layout: Layout, bundle: Bundle) -> dict[str, Callable[[], object]]:
    def opened() -> Bundle:
        return Bundle.open(bundle.path)

    return {
        "repack": lambda: local.run(
            RepackRequest(image=ImageRef(store=layout.path, tag="new"), bundle=bundle.path, refresh_bundle=True),
            Policy(shards=1, threads=1),
            1,
        ),
        "revert": lambda: revert_bundle(layout, opened(), lambda: snapshot(opened().rootfs)),
        "list": lambda: list(opened().baseline()),
    }


@pytest.mark.parametrize("name", PARTS)
def test_targets_of_links_are_not_read_packed_quoted_or_changed(
    layout: Layout, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    if name == "rootfs":
        victim.mkdir()
        (victim / "shadow").write_bytes(SECRET)
    else:
        victim.write_bytes(SECRET)
    place = part(bundle, name)
    place.rename(tmp_path / "before")
    place.symlink_to(victim)
    for what, act in acts(layout, bundle).items():
        if name == ".stat":  # only a cache: what it says is not believed, and the tree is read again
            act()
            continue
        with pytest.raises(LayerfarmError) as caught:
            act()
        assert place.name in str(caught.value) and "secret" not in str(caught.value), what
    assert "secret" not in str(validate_bundle(bundle.path).findings)
    assert (victim / "shadow" if name == "rootfs" else victim).read_bytes() == SECRET
    assert layout.tags() == (["t", "new"] if name == ".stat" else ["t"])


@pytest.mark.parametrize("name", PARTS)
def test_a_fifo_in_it_is_not_waited_for(layout: Layout, bundle: Bundle, tmp_path: Path, name: str) -> None:
    place = part(bundle, name)
    place.rename(tmp_path / "before")
    os.mkfifo(place)
    for act in acts(layout, bundle).values():
        if name == ".stat":
            act()
            continue
        with pytest.raises(LayerfarmError):
            act()
    validate_bundle(bundle.path)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rootfs", "rootfs"),
        ("umoci.json", "document"),
        (".mtree", "mtree"),
        (".layerfarm", "mtree"),
        (".stat", "stat-cache"),
        ("config.json", "document"),
    ],
)
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_validate_reports_each_part_that_is_a_link_or_a_fifo(
    bundle: Bundle, tmp_path: Path, name: str, code: str, kind: str
) -> None:
    place = part(bundle, name)
    if not place.exists():
        place.touch()
    place.rename(tmp_path / "before")
    if kind == "link":
        place.symlink_to(tmp_path / "before")
    else:
        os.mkfifo(place)
    assert [finding.code for finding in validate_bundle(bundle.path).findings] == [code]


def test_a_refresh_writes_through_no_name_that_can_be_foreseen(
    layout: Layout, bundle: Bundle, made: Resolved, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in (bundle.mtree.name, bundle.extra.name, bundle.stat_cache.name, f"umoci.json.{os.getpid()}"):
        (bundle.path / f".{name}").symlink_to(victim)
    content = bundle.mtree.read_bytes()
    (tmp_path / "new").write_bytes(content)
    bundle.refresh(made, tmp_path / "new", tmp_path / "new", tmp_path / "new")
    assert victim.read_bytes() == b"precious"
    assert bundle.mtree.read_bytes() == bundle.stat_cache.read_bytes() == content


def test_a_rootfs_that_becomes_a_link_is_not_followed(layout: Layout, bundle: Bundle, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    policy, rootfs = Policy(), Policy().check_root(bundle.rootfs)
    assert policy.check_resolved(rootfs) == rootfs
    (rootfs / "a").unlink()

    def swapped() -> object:
        listed = list(snapshot(bundle.rootfs))
        bundle.rootfs.rename(tmp_path / "before")
        bundle.rootfs.symlink_to(victim)
        return listed

    with pytest.raises(LayerfarmError):
        revert_bundle(layout, bundle, swapped)  # type: ignore[arg-type]
    with pytest.raises(UnsafePath, match="since the job began"):
        policy.check_resolved(rootfs)
    assert os.listdir(victim) == []


def test_a_bundle_itself_may_be_reached_through_a_link(layout: Layout, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.path)
    opened = Bundle.open(tmp_path / "link")
    (opened.rootfs / "a").write_bytes(b"changed")
    revert_bundle(layout, opened, lambda: snapshot(opened.rootfs))
    assert (bundle.rootfs / "a").read_bytes() == b"x"


def test_a_link_in_a_bundle_is_a_bundle_error_that_names_it(bundle: Bundle, tmp_path: Path) -> None:
    bundle.rootfs.rename(tmp_path / "before")
    bundle.rootfs.symlink_to(tmp_path / "before")
    with pytest.raises(BundleError, match=r"symbolic link: .*/rootfs"):
        Bundle.open(bundle.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes what belongs to others")
def test_staging_of_another_user_in_a_public_directory_is_refused(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    for parent in (shared, own):
        (parent / "staging").mkdir(parents=True)
        os.chown(parent / "staging", UID, GID)
    shared.chmod(0o1777)
    with pytest.raises(UnsafePath, match="belongs to another user"):
        own_directory(shared / "staging")
    own_directory(own / "staging")
    own_directory(shared / "new")
    own_directory(shared / "new")
    (shared / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="not a directory"):
        own_directory(shared / "link")
