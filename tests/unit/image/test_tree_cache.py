from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import NoReturn

import pytest

from layerfarm.jobs.errors import DigestMismatch
from layerfarm.jobs.image import Resolved, tree_digest, tree_of, trees, unpack_rootfs
from layerfarm.jobs.image.trees import portable
from layerfarm.jobs.mtree import Output, snapshot, write_tree
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import cache_path, user_cache
from tests.trees import char, directory, file, hardlink, socket, symlink, tree
from tests.unit.image.images import image, special, tar


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return tree(
        tmp_path / "rootfs",
        {
            "d": directory(mode=0o1777, mtime=1_500_000_000_987_654_321, xattrs={"user.d": b"1"}),
            "d/f": file(b"x", mtime=-1_500_000_000, xattrs={"user.big": b"v" * 2000, "user.small": b"1"}),
            "d/same": hardlink("d/f"),
            "link": symlink("d", xattrs={"trusted.l": b"2"}),
            "null": char(1, 3, xattrs={"trusted.n": b"3"}),
        },
    )


def test_portable_form_leaves_out_what_no_layer_carries(tmp_path: Path) -> None:
    rootfs = tree(tmp_path / "r", {"s": socket(), "f": file(b"x", mtime=1_999_999_999, xattrs={"user.empty": b""})})
    entries = {entry.path: entry for entry in portable(snapshot(rootfs))}
    assert sorted(entries) == [b".", b"f"]
    assert (entries[b"f"].mtime, entries[b"f"].xattrs) == (1_000_000_000, ())
    assert (entries[b"."].size, entries[b"."].nlink) == (0, 1)


def test_digest_is_that_of_the_tree_not_of_the_filesystem(rootfs: Path, tmp_path: Path) -> None:
    for number in range(300):  # ext4 directories grow and never shrink
        (rootfs / "d" / f"{'long' * 20}{number}").touch()
        (rootfs / "d" / f"{'long' * 20}{number}").unlink()
    os.utime(rootfs / "d", ns=(0, 1_500_000_000_000_000_001))
    first = tree_digest(snapshot(rootfs))
    os.utime(rootfs / "d", ns=(0, 1_500_000_000_000_000_002))
    assert tree_digest(snapshot(rootfs)) == first
    os.chmod(rootfs / "d", 0o755)
    assert tree_digest(snapshot(rootfs)) != first


LAYERS = [
    tar(("a", b"x"), ("d/implied/file", b"1"), ("usr/lib/foo", b"foo"), special("lib", tarfile.SYMTYPE, "usr/lib")),
    tar(special("null", tarfile.CHRTYPE), special("d/b", tarfile.LNKTYPE, "a"), ("lib", None), ("lib/bar", b"bar")),
]


def kept() -> Path:
    """The directory of the trees."""
    return cache_path() / ".layerfarm/notes/trees"


@pytest.fixture
def made(layout: Layout) -> Resolved:
    return image(layout, LAYERS)


def no_reading(*_: object) -> NoReturn:
    raise AssertionError("the layers are read")


def test_tree_of_an_image_is_that_of_a_plain_unpack(
    layout: Layout, made: Resolved, tmp_path: Path, as_root: None
) -> None:
    unpack_rootfs(layout, tmp_path / "plain", made)
    assert list(tree_of(layout, made)) == list(portable(snapshot(tmp_path / "plain")))


def test_tree_is_derived_once_and_then_kept(layout: Layout, made: Resolved, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(tree_of(layout, made))
    monkeypatch.setattr(trees, "stack_of", no_reading)
    assert list(tree_of(layout, made)) == first
    name = f"plain-1-{made.descriptor.digest.replace(':', '-')}"
    assert sorted(os.listdir(kept())) == [name, f"{name}.layerfarm", f"{name}.mtree"]


def test_tree_kept_by_other_rules_is_not_found(layout: Layout, made: Resolved, monkeypatch: pytest.MonkeyPatch) -> None:
    tree_of(layout, made)
    monkeypatch.setattr(trees, "RULES", trees.RULES + 1)
    monkeypatch.setattr(trees, "stack_of", no_reading)
    with pytest.raises(AssertionError, match="are read"):
        tree_of(layout, made)


@pytest.mark.parametrize("suffix", ["", ".mtree", ".layerfarm"])
@pytest.mark.parametrize("harm", ["changed", "shortened", "gone"])
def test_harmed_tree_is_derived_again(layout: Layout, made: Resolved, suffix: str, harm: str) -> None:
    first = list(tree_of(layout, made))
    path = kept() / f"plain-1-{made.descriptor.digest.replace(':', '-')}{suffix}"
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if harm == "shortened" else content.replace(b"0", b"1"))
    assert list(tree_of(layout, made)) == first
    assert path.read_bytes() == content


def test_layout_tells_nothing_of_a_tree_and_is_not_written_to(layout: Layout, made: Resolved, tmp_path: Path) -> None:
    """Its author may be any user: the forged files are consistent, and beside that user's image."""
    wanted = list(tree_of(layout, made))
    private = layout.path / ".layerfarm"
    for place in (private / "trees", private / "notes/trees"):
        place.mkdir(parents=True)
        stem = place / made.descriptor.digest.replace(":", "_")
        with stem.with_suffix(".mtree").open("wb") as out, stem.with_suffix(".layerfarm").open("wb") as extra:
            write_tree(wanted[:1], Output(out, extra))
    for path in cache_path().rglob("*.mtree"):
        shutil.copy(path, private / "notes/trees")
    shutil.rmtree(cache_path())
    before = sorted(layout.path.rglob("*"))
    assert list(tree_of(layout, made)) == wanted
    assert sorted(layout.path.rglob("*")) == before


def test_cache_of_another_user_is_neither_read_nor_written(layout: Layout, made: Resolved, as_root: None) -> None:
    """As with sudo -E, where root's cache is in the home directory of who calls it."""
    wanted = list(tree_of(layout, made))
    forged = kept() / f"plain-1-{made.descriptor.digest.replace(':', '-')}.mtree"
    forged.write_bytes(b"")
    forged.with_suffix(".layerfarm").write_bytes(b"")
    files = (forged, forged.with_suffix(".layerfarm"))
    (kept() / forged.stem).write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files))
    assert list(tree_of(layout, made)) == []  # it is believed, were it not for its owner
    os.chown(cache_path(), 4242, 4242)
    assert list(tree_of(layout, made)) == wanted
    assert forged.read_bytes() == b""


def test_cache_is_closed_to_others(layout: Layout, made: Resolved) -> None:
    user_cache().path.chmod(0o777)
    tree_of(layout, made)
    assert stat.S_IMODE(cache_path().stat().st_mode) == 0o700


def test_tree_is_derived_where_there_is_no_place_for_a_cache(
    layout: Layout, made: Resolved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = list(tree_of(layout, made))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert list(tree_of(layout, made)) == wanted
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert list(tree_of(layout, made)) == wanted


def no_home() -> NoReturn:
    raise RuntimeError("Could not determine home directory.")


def test_tree_of_a_broken_image_keeps_nothing(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"x"))], diff_ids=lambda _: ["sha256:" + "0" * 64])
    with pytest.raises(DigestMismatch):
        tree_of(layout, made)
    assert not kept().exists()
