"""A changed bundle goes back to what was unpacked, and only what differs is written."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfarm.jobs.errors import BlobNotFound, BundleError
from layerfarm.jobs.image import Resolved, tree_of, unpack_manifest
from layerfarm.jobs.image.bundle import Bundle
from layerfarm.jobs.image.restore import Restorer
from layerfarm.jobs.image.revert import Reverted, revert_bundle
from layerfarm.jobs.image.trees import portable
from layerfarm.jobs.image.unpack import UnpackOptions
from layerfarm.jobs.layer import IdMap, generate_layer
from layerfarm.jobs.mtree import Delta, DeltaKind, compare, snapshot
from layerfarm.jobs.store import Layout
from tests.ordinary_user import GID, UID, ordinary_user
from tests.trees import block, char, directory, fifo, file, hardlink, read_tree, symlink, tree
from tests.unit.image.images import image, special, tar

MTIME_NS = 1_400_000_000_123_456_789

SPEC = {
    ".": directory(mode=0o711),
    "etc": directory(mode=0o750, uid=3, gid=4, mtime=1_300_000_000 * 10**9),
    "etc/passwd": file(b"root:x:0:0::/root:/bin/sh\n"),
    "etc/shadow": file(b"secret", mode=0o000, uid=0, gid=42),
    "bin/su": file(b"su" * 1000, mode=0o4755, xattrs={"user.k": b"v", "trusted.t": b"x" * 3000}),
    "bin/a": file(b"links", mode=0o2755, uid=7),
    "bin/b": hardlink("bin/a"),
    "bin/deep/c": hardlink("bin/a"),
    "bin/twin1": file(b"links", mode=0o2755, uid=7),
    "bin/twin2": hardlink("bin/twin1"),
    "link": symlink("etc/passwd", uid=9, mtime=1_200_000_000 * 10**9),
    "dev/null": char(1, 3, mode=0o666),
    "dev/sda": block(8, 0, uid=1),
    "pipe": fifo(mode=0o622),
    "var/lib/x/one": file(b"1"),
    "var/lib/x/two": file(b"2" * 100_000),
    "var/empty": directory(mode=0o1777, xattrs={"user.d": b"1"}),
    os.fsdecode(b"odd\xff\n name"): file(b"odd"),
}


def layer_of(root: Path) -> bytes:
    extras = (Delta(DeltaKind.EXTRA, entry.path) for entry in snapshot(root, hash_content=False))
    return b"".join(generate_layer(root, extras))


@pytest.fixture
def made(layout: Layout, tmp_path: Path) -> Resolved:
    return image(layout, [layer_of(tree(tmp_path / "source", SPEC))])


@pytest.fixture
def bundle(layout: Layout, made: Resolved, tmp_path: Path) -> Bundle:
    return unpack_manifest(layout, tmp_path / "bundle", made).bundle


def revert(layout: Layout, bundle: Bundle) -> Reverted:
    return revert_bundle(layout, bundle, lambda: snapshot(bundle.rootfs))


def delete_many(root: Path) -> None:
    shutil.rmtree(root / "var/lib")
    (root / "etc/passwd").unlink()
    (root / "link").unlink()
    (root / "dev/null").unlink()
    (root / "pipe").unlink()


def add_many(root: Path) -> None:
    (root / "etc/new").write_text("new")
    shutil.copytree(root / "var", root / "copy")
    os.mkfifo(root / "etc/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))


def replace_types(root: Path) -> None:
    shutil.rmtree(root / "var")
    (root / "var").symlink_to("etc")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").mkdir()
    (root / "etc/passwd/inside").mkdir()
    (root / "etc/passwd/inside/file").touch()
    (root / "link").unlink()
    (root / "link").mkdir()
    shutil.rmtree(root / "dev")
    (root / "dev").write_text("file")


def change_content(root: Path) -> None:
    (root / "bin/su").write_bytes(b"us" * 1000)
    (root / "var/lib/x/two").write_bytes(b"short")
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    for name, numbers in (("null", (1, 5)), ("sda", (8, 1))):
        mode = (root / "dev" / name).stat().st_mode
        (root / "dev" / name).unlink()
        os.mknod(root / "dev" / name, mode, os.makedev(*numbers))


def change_metadata(root: Path) -> None:
    os.chmod(root / "etc/passwd", 0o777)
    os.chown(root / "bin/su", 5, 6)
    os.setxattr(root / "bin/su", "user.k", b"other")
    os.setxattr(root / "bin/su", "user.more", b"more")
    os.removexattr(root / "var/empty", "user.d")
    os.chown(root / "link", 1, 1, follow_symlinks=False)
    os.utime(root / "pipe", (1, 1))
    os.chmod(root / "dev/null", 0o600)
    os.chmod(root, 0o700)
    os.utime(root / "etc", (1, 1))
    os.chmod(root / "etc/shadow", 0o644)


def break_links(root: Path) -> None:
    for name in ("bin/b", "bin/twin2"):
        content = (root / name).read_bytes()
        (root / name).unlink()
        (root / name).write_bytes(content)


def lose_links(root: Path) -> None:
    (root / "bin/a").unlink()
    (root / "bin/twin1").unlink()
    (root / "bin/twin2").unlink()


def rewrite_linked(root: Path) -> None:
    (root / "bin/a").write_bytes(b"written through every name")


def join_twins(root: Path) -> None:
    """Two groups of equal content and metadata become one inode."""
    for name in ("bin/twin1", "bin/twin2"):
        (root / name).unlink()
        os.link(root / "bin/a", root / name)


def link_further(root: Path) -> None:
    os.link(root / "etc/passwd", root / "etc/passwd-")
    os.link(root / "var/lib/x/one", root / "var/lib/x/again")


def link_over_another(root: Path) -> None:
    (root / "var/lib/x/two").unlink()
    os.link(root / "var/lib/x/one", root / "var/lib/x/two")


CHANGES = [
    delete_many,
    add_many,
    replace_types,
    change_content,
    change_metadata,
    break_links,
    lose_links,
    rewrite_linked,
    join_twins,
    link_further,
    link_over_another,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_everything_is_put_back(layout: Layout, bundle: Bundle, change: Callable[[Path], None]) -> None:
    before = read_tree(bundle.rootfs)
    change(bundle.rootfs)
    assert read_tree(bundle.rootfs) != before
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before
    assert revert(layout, bundle) == Reverted(0, 0, 0)
    assert sorted(path.name for path in bundle.path.iterdir()) == sorted(
        ["rootfs", "config.json", "umoci.json", bundle.mtree.name, bundle.extra.name, bundle.stat_cache.name]
    )


def test_all_changes_together(layout: Layout, bundle: Bundle) -> None:
    before = read_tree(bundle.rootfs)
    for change in (add_many, change_metadata, change_content, break_links, link_further, delete_many):
        change(bundle.rootfs)
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before


def test_a_bundle_that_was_not_changed_is_not_touched(layout: Layout, bundle: Bundle) -> None:
    ctimes = {path: path.lstat().st_ctime_ns for path in bundle.rootfs.rglob("*")}
    assert revert(layout, bundle) == Reverted(0, 0, 0)
    assert {path: path.lstat().st_ctime_ns for path in bundle.rootfs.rglob("*")} == ctimes


def test_only_differences_are_written(layout: Layout, bundle: Bundle) -> None:
    changed = {"etc/passwd", "etc/shadow"}
    every = bundle.rootfs.rglob("*")
    kept = {path: path.lstat() for path in every if str(path.relative_to(bundle.rootfs)) not in changed}
    inode = (bundle.rootfs / "etc/shadow").stat().st_ino
    os.chmod(bundle.rootfs / "etc/shadow", 0o644)
    (bundle.rootfs / "etc/passwd").write_text("changed")
    assert revert(layout, bundle) == Reverted(0, 1, 2)
    assert (bundle.rootfs / "etc/shadow").stat().st_ino == inode
    for path, found in kept.items():
        now = path.lstat()
        assert now.st_ino == found.st_ino
        assert path.name == "etc" or now.st_ctime_ns == found.st_ctime_ns, path


def test_metadata_alone_needs_no_layer(layout: Layout, made: Resolved, bundle: Bundle) -> None:
    before = read_tree(bundle.rootfs)
    for layer in made.manifest.layers:
        layout.blob_path(layer.digest).unlink()
    change_metadata(bundle.rootfs)
    link_further(bundle.rootfs)
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before


def test_surviving_links_are_kept_and_no_content_is_written(layout: Layout, bundle: Bundle) -> None:
    inode = (bundle.rootfs / "bin/a").stat().st_ino
    (bundle.rootfs / "bin/deep/c").unlink()
    revert(layout, bundle)
    assert {(bundle.rootfs / name).stat().st_ino for name in ("bin/a", "bin/b", "bin/deep/c")} == {inode}


def test_times_within_a_second_come_back_where_the_layer_has_them(layout: Layout, tmp_path: Path) -> None:
    info = special("f", b"0")
    info.pax_headers = {"mtime": "1400000000.123456789"}
    made = image(layout, [tar(info)])
    bundle = unpack_manifest(layout, tmp_path / "bundle", made).bundle
    assert (bundle.rootfs / "f").stat().st_mtime_ns == MTIME_NS
    (bundle.rootfs / "f").unlink()
    revert(layout, bundle)
    assert (bundle.rootfs / "f").stat().st_mtime_ns == MTIME_NS


def test_whiteouts_and_links_through_layers(layout: Layout, tmp_path: Path) -> None:
    """The target of two links goes in the upper layer: their content has no name of its own any more."""
    lower = tar(("d", None), ("d/target", b"content"), special("x", b"1", "d/target"), special("y", b"1", "d/target"))
    upper = tar(("d/.wh.target", b""), ("d/new", b"n"))
    bundle = unpack_manifest(layout, tmp_path / "bundle", image(layout, [lower, upper])).bundle
    before = read_tree(bundle.rootfs)
    assert before[b"x"].group == (b"x", b"y")
    for name in ("x", "y", "d/new"):
        (bundle.rootfs / name).unlink()
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before


def test_bundles_unpacked_with_kept_dirlinks(layout: Layout, tmp_path: Path) -> None:
    lower = tar(("real", None), special("link", b"2", "real"))
    upper = tar(("link", None), ("link/file", b"through"))
    made = image(layout, [lower, upper])
    options = UnpackOptions(keep_dirlinks=True)
    bundle = unpack_manifest(layout, tmp_path / "bundle", made, options).bundle
    before = read_tree(bundle.rootfs)
    (bundle.rootfs / "real/file").unlink()
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before


def test_id_maps_of_the_bundle_are_used(layout: Layout, made: Resolved, tmp_path: Path) -> None:
    ids = IdMap.of((0, 100_000, 1000))
    bundle = unpack_manifest(layout, tmp_path / "b", made, UnpackOptions(uid_map=ids, gid_map=ids)).bundle
    before = read_tree(bundle.rootfs)
    delete_many(bundle.rootfs)
    os.chown(bundle.rootfs / "bin/su", 0, 0)
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before
    back = portable(bundle.meta.map_options.as_in_image(snapshot(bundle.rootfs)))
    assert list(compare(tree_of(layout, made), back)) == []


@pytest.mark.usefixtures("as_root")
def test_rootless_bundles_compare_equal_to_their_image(layout: Layout, tmp_path: Path) -> None:
    owned = special("f", b"0")
    owned.uid, owned.gid = 55, 66
    made = image(layout, [tar(("etc", None), owned)])
    options = UnpackOptions(rootless=True, uid_map=IdMap.of((0, 0, 1)), gid_map=IdMap.of((0, 0, 1)))
    bundle = unpack_manifest(layout, tmp_path / "b", made, options).bundle
    (bundle.rootfs / "f").unlink()
    revert(layout, bundle)
    assert (bundle.rootfs / "f").stat().st_uid == 0
    back = portable(bundle.meta.map_options.as_in_image(snapshot(bundle.rootfs)))
    assert list(compare(tree_of(layout, made), back)) == []


def test_attributes_that_umoci_does_not_record_come_from_the_image(layout: Layout, bundle: Bundle) -> None:
    before = read_tree(bundle.rootfs)
    bundle.extra.unlink()
    (bundle.rootfs / "dev/null").unlink()
    os.mknod(bundle.rootfs / "dev/null", 0o020666, os.makedev(1, 5))
    os.utime(bundle.rootfs / "dev/null", ns=(before[b"dev/null"].mtime,) * 2)
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before


def test_interrupted_it_can_be_run_again(layout: Layout, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_tree(bundle.rootfs)
    steps = stopped = 0
    for stop in range(1, 40, 3):
        for change in (change_metadata, change_content, break_links, delete_many):
            change(bundle.rootfs)
        steps = 0

        def interrupted(name: str, stop: int = stop) -> Callable[..., object]:
            step = getattr(Restorer, name)

            def run(self: Restorer, *args: object) -> object:
                nonlocal steps
                steps += 1
                if steps == stop:
                    raise KeyboardInterrupt
                return step(self, *args)

            return run

        with monkeypatch.context() as patched:
            for name in ("remove", "make_directory", "put_back", "link_again", "apply_metadata"):
                patched.setattr(Restorer, name, interrupted(name))
            try:
                revert(layout, bundle)
            except KeyboardInterrupt:
                stopped += 1
        assert not list(bundle.path.glob(".layerfarm*"))
        revert(layout, bundle)
        assert read_tree(bundle.rootfs) == before
    assert stopped > 5


def test_leftovers_of_a_killed_revert_are_removed(layout: Layout, bundle: Bundle) -> None:
    left = bundle.path / ".layerfarm-revert-0" / "rootfs"
    left.mkdir(parents=True)
    (left / "file").touch()
    revert(layout, bundle)
    assert not left.parent.exists()


def test_two_reverts_at_once_are_refused(layout: Layout, bundle: Bundle) -> None:
    fd = os.open(bundle.path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another revert"):
            revert(layout, bundle)
    finally:
        os.close(fd)


def test_a_store_without_the_image_is_an_error_before_anything_changes(bundle: Bundle, tmp_path: Path) -> None:
    other = Layout.create(tmp_path / "other")
    delete_many(bundle.rootfs)
    changed = read_tree(bundle.rootfs)
    with pytest.raises(BlobNotFound):
        revert(other, bundle)
    assert read_tree(bundle.rootfs) == changed


def test_an_image_that_is_not_the_bundles_is_refused_before_anything_changes(layout: Layout, bundle: Bundle) -> None:
    (bundle.rootfs / "etc/passwd").write_text("changed")
    text = bundle.mtree.read_bytes()
    digest = text.partition(b"passwd size=")[2].partition(b"sha256digest=")[2][:64]
    bundle.mtree.write_bytes(text.replace(digest, b"0" * 64))
    with pytest.raises(BundleError, match="does not match"):
        revert(layout, bundle)
    assert (bundle.rootfs / "etc/passwd").read_text() == "changed"
    assert not list(bundle.path.glob(".layerfarm*"))


def test_a_directory_that_is_a_link_now_is_not_followed_out(layout: Layout, bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("mine")
    before = read_tree(bundle.rootfs)
    shutil.rmtree(bundle.rootfs / "etc")
    (bundle.rootfs / "etc").symlink_to(outside)
    revert(layout, bundle)
    assert read_tree(bundle.rootfs) == before
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("passwd", "mine")]


LOCKED = {
    "open/f": file(b"f", mode=0o640),
    "locked": directory(mode=0o000),
    "locked/f": file(b"locked", mode=0o000),
    "locked/deep": directory(mode=0o111),
    "locked/deep/g": file(b"g" * 9000, mode=0o400),
    "locked/owned": file(b"of another", mode=0o400, uid=7, gid=8),
    "locked/link": symlink("f"),
}


def _damaged(rootfs: Path) -> None:
    os.chmod(rootfs / "locked", 0o700)
    os.chmod(rootfs / "locked/deep", 0o700)
    os.chmod(rootfs / "locked/f", 0o600)
    (rootfs / "locked/f").write_bytes(b"other")
    (rootfs / "locked/deep/g").unlink()
    (rootfs / "locked/owned").unlink()
    (rootfs / "locked/link").unlink()
    (rootfs / "locked/new").write_bytes(b"new")
    (rootfs / "open/f").chmod(0o600)
    os.chmod(rootfs / "locked/deep", 0o000)
    os.chmod(rootfs / "locked", 0o000)


def test_an_ordinary_user_reverts_files_in_directories_of_mode_000(tmp_path: Path) -> None:
    raw = layer_of(tree(tmp_path / "source", LOCKED))
    with ordinary_user() as user:
        layout = Layout.create(user.home / "store")
        made = image(layout, [raw])
        user.own(layout.path)
        options = UnpackOptions(uid_map=IdMap.of((0, UID, 1)), gid_map=IdMap.of((0, GID, 1)), rootless=True)
        user.call(lambda: unpack_manifest(layout, user.home / "bundle", made, options) and None)
        before = read_tree(user.home / "bundle/rootfs")

        def damage_and_revert() -> list[int]:
            bundle = Bundle.open(user.home / "bundle")
            _damaged(bundle.rootfs)
            both = [revert_bundle(layout, bundle, lambda: snapshot(bundle.rootfs)) for _ in range(2)]
            return [one.removed + one.restored + one.adjusted for one in both]

        first, second = user.call(damage_and_revert)
        assert first > 0 and second == 0
        assert read_tree(user.home / "bundle/rootfs") == before
