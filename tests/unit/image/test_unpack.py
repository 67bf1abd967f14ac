from __future__ import annotations

import gzip
import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import (
    BlobNotFound,
    BundleError,
    BundleExists,
    DigestMismatch,
    ImageConfigError,
    LayerfarmError,
    MalformedLayer,
    SizeMismatch,
    TruncatedStream,
    UnsupportedMediaType,
)
from layerfarm.jobs.image import Resolved, UnpackOptions, resolve, tree_digest, unpack_manifest, unpack_rootfs
from layerfarm.jobs.image.bundle import Bundle
from layerfarm.jobs.image.unpack import extracted
from layerfarm.jobs.layer import IdMap
from layerfarm.jobs.mtree import snapshot, walk_process
from layerfarm.jobs.store import Descriptor, Layout
from tests.trees import directory, file, read_tree, tree
from tests.unit.image.images import image, special, tar
from tests.unit.layer.archives import archive, entry

LOWER = tar(("etc", None), ("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), ("etc/gone", b"1"), ("etc/new", b"old"))
UPPER = tar(("etc/.wh.gone", b""), ("etc/new", b"new"), special("link", tarfile.SYMTYPE, "etc/new"))


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_bundle_holds_everything_umoci_wants(layout: Layout, tmp_path: Path) -> None:
    made = image(layout, [LOWER, UPPER], config={"Cmd": ["/bin/true"]})
    unpacked = unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    stem = made.descriptor.digest.replace(":", "_")
    assert names(tmp_path / "b") == sorted(
        ["config.json", "rootfs", f"{stem}.layerfarm", f"{stem}.mtree", f"{stem}.stat", "umoci.json"]
    )
    found = read_tree(tmp_path / "b/rootfs")
    assert sorted(found) == [b".", b"etc", b"etc/new", b"etc/passwd", b"link"]
    assert found[b"etc/new"].content == b"new"
    assert json.loads((tmp_path / "b/config.json").read_bytes())["process"]["args"] == ["/bin/true"]
    meta = json.loads((tmp_path / "b/umoci.json").read_bytes())
    assert meta["umoci_version"] == "2"
    assert meta["from_descriptor_path"]["descriptor_walk"][-1]["digest"] == made.descriptor.digest
    assert (unpacked.layers, unpacked.count, unpacked.warnings) == (2, 5, [])


def test_recorded_tree_is_the_one_on_disk(layout: Layout, tmp_path: Path) -> None:
    image(layout, [LOWER, UPPER])
    unpacked = unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    on_disk = list(snapshot(tmp_path / "b/rootfs"))
    assert list(unpacked.entries()) == on_disk
    assert unpacked.mtree == tree_digest(on_disk)


def test_the_stat_cache_is_the_same_in_either_process(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(layout, [LOWER, UPPER])
    bundles = []
    for name, worth_it in (("here", 1000), ("beside", 0)):
        monkeypatch.setattr(walk_process, "WORTH_IT", worth_it)
        bundle = unpack_manifest(layout, tmp_path / name, resolve(layout, "t")).bundle
        # The records hold inode numbers and times of change, the first line is about the files beside.
        bundles.append([line.split()[1:7] for line in bundle.stat_cache.read_bytes().splitlines()[1:]])
        assert not (bundle.path / ".walk").exists()
    assert bundles[0] == bundles[1]
    assert len(bundles[0]) == 5


def test_manifest_descriptor_is_enough(layout: Layout, tmp_path: Path) -> None:
    made = image(layout, [LOWER])
    unpack_manifest(layout, tmp_path / "b", made.descriptor)
    assert (tmp_path / "b/rootfs/etc/gone").exists()


def test_image_without_layers_is_an_empty_tree_of_fixed_time_and_mode(layout: Layout, tmp_path: Path) -> None:
    image(layout)
    old = os.umask(0o077)
    try:
        unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    finally:
        os.umask(old)
    root = (tmp_path / "b/rootfs").stat()
    assert (stat.S_IMODE(root.st_mode), root.st_mtime_ns, names(tmp_path / "b/rootfs")) == (0o755, 0, [])


def test_B2_9_bundle_is_closed_to_others(layout: Layout, tmp_path: Path) -> None:
    image(layout)
    unpack_manifest(layout, tmp_path / "new", resolve(layout, "t"))
    (tmp_path / "there").mkdir(mode=0o755)
    unpack_manifest(layout, tmp_path / "there", resolve(layout, "t"))
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "there")} == {0o700}


@pytest.mark.parametrize("name", ["rootfs", "config.json", "umoci.json"])
def test_bundle_that_is_there_is_refused_and_left_as_it_is(layout: Layout, tmp_path: Path, name: str) -> None:
    image(layout)
    (tmp_path / "b").mkdir(mode=0o751)
    (tmp_path / "b" / name).symlink_to("nowhere")
    with pytest.raises(BundleExists, match=name):
        unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    assert names(tmp_path / "b") == [name]
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o751


def test_bundle_in_a_place_that_cannot_be(layout: Layout, tmp_path: Path) -> None:
    image(layout)
    (tmp_path / "file").touch()
    with pytest.raises(BundleExists):
        unpack_manifest(layout, tmp_path / "file", resolve(layout, "t"))
    for place in ("file/b", "nothing/b"):
        with pytest.raises(BundleError, match="cannot be created"):
            unpack_manifest(layout, tmp_path / place, resolve(layout, "t"))


def _wrong_diff_id(ids: list[str]) -> list[str]:
    return [*ids[:-1], "sha256:" + "0" * 64]


def _cut(raw: bytes) -> bytes:
    return gzip.compress(raw)[:-8]


FAILURES: list[Any] = [
    pytest.param([LOWER, UPPER], {"diff_ids": _wrong_diff_id}, DigestMismatch, id="diff_id"),
    pytest.param([LOWER], {"compress": _cut}, TruncatedStream, id="gzip without its trailer"),
    pytest.param([LOWER, b"x" * 1024], {}, MalformedLayer, id="no tar"),
    pytest.param([LOWER], {"config": {"User": "nobody-knows"}}, ImageConfigError, id="user"),
    pytest.param([LOWER], {"os": "windows"}, ImageConfigError, id="windows"),
    pytest.param([LOWER], {"config": {"Env": ["x"]}}, ImageConfigError, id="env"),
]


@pytest.mark.parametrize(("layers", "more", "error"), FAILURES)
def test_B6_any_failure_leaves_nothing(
    layout: Layout, tmp_path: Path, layers: list[bytes], more: dict[str, Any], error: type[LayerfarmError]
) -> None:
    image(layout, layers, **more)
    with pytest.raises(error):
        unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    assert not (tmp_path / "b").exists()
    (tmp_path / "there").mkdir(mode=0o751)
    (tmp_path / "there/mine").touch()
    os.utime(tmp_path / "there", (5, 5))
    with pytest.raises(error):
        unpack_manifest(layout, tmp_path / "there", resolve(layout, "t"))
    assert names(tmp_path / "there") == ["mine"]
    found = (tmp_path / "there").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o751, 5)


def test_corrupt_and_missing_blobs_leave_nothing(layout: Layout, tmp_path: Path) -> None:
    made = image(layout, [LOWER, UPPER])
    blob = layout.blob_path(made.manifest.layers[1].digest)
    content = blob.read_bytes()
    for damage, error in (
        (content[:-1], SizeMismatch),
        (content[:4] + b"\1" + content[5:], DigestMismatch),  # mtime of the gzip header: the tar stays the same
        (None, BlobNotFound),
    ):
        blob.unlink()
        if damage is not None:
            blob.write_bytes(damage)
        with pytest.raises(error):
            unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
        assert not (tmp_path / "b").exists()


def retyped(made: Resolved, media_type: str) -> Resolved:
    """The image with its lowest layer of another media type."""
    layer = made.manifest.layers[0].model_copy(update={"media_type": media_type})
    return Resolved(made.path, made.manifest.model_copy(update={"layers": [layer]}), made.config)


def test_B6_layer_of_an_unknown_media_type(layout: Layout, tmp_path: Path) -> None:
    broken = retyped(image(layout, [LOWER]), "application/vnd.oci.image.layer.v1.tar+xz")
    with pytest.raises(UnsupportedMediaType):
        unpack_manifest(layout, tmp_path / "b", broken)
    assert not (tmp_path / "b").exists()


def test_B6_layer_of_one_of_dockers_media_types(layout: Layout, tmp_path: Path) -> None:
    made = image(layout, [LOWER])
    docker = retyped(made, "application/vnd.docker.image.rootfs.diff.tar.gzip")
    assert unpack_manifest(layout, tmp_path / "b", docker).warnings == []
    unpack_manifest(layout, tmp_path / "wanted", made)
    assert read_tree(tmp_path / "b/rootfs") == read_tree(tmp_path / "wanted/rootfs")


def test_B6_layer_of_another_compression_than_its_media_type_says_is_unpacked_with_a_warning(
    layout: Layout, tmp_path: Path
) -> None:
    made = image(layout, [LOWER])
    wrong = retyped(made, "application/vnd.oci.image.layer.v1.tar+zstd")
    (warning,) = unpack_manifest(layout, tmp_path / "b", wrong).warnings
    assert made.manifest.layers[0].digest in warning and "are gzip" in warning
    unpack_manifest(layout, tmp_path / "wanted", made)
    assert read_tree(tmp_path / "b/rootfs") == read_tree(tmp_path / "wanted/rootfs")


def test_B6_diff_id_covers_bytes_after_the_tar(layout: Layout, tmp_path: Path) -> None:
    image(layout, [LOWER + bytes(10_240)])
    unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    image(layout, [LOWER + bytes(10_240)], diff_ids=lambda _: image(layout, [LOWER], tag="x").config.rootfs.diff_ids)
    with pytest.raises(DigestMismatch, match="diff_id"):
        unpack_manifest(layout, tmp_path / "c", resolve(layout, "t"))


def test_cancelling_leaves_nothing(layout: Layout, tmp_path: Path) -> None:
    image(layout, [LOWER])
    seen: list[int] = []

    def cancel(count: int) -> None:
        seen.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"), UnpackOptions(advanced=cancel))
    assert seen
    assert not (tmp_path / "b").exists()


def test_progress_counts_the_compressed_bytes(layout: Layout, tmp_path: Path) -> None:
    made = image(layout, [LOWER, UPPER])
    seen: list[int] = []
    unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"), UnpackOptions(advanced=seen.append))
    assert sum(seen) == sum(layer.size for layer in made.manifest.layers)


def test_failed_unpack_of_a_tree_a_thousand_deep_is_removed(layout: Layout, tmp_path: Path) -> None:
    deep = tar(("/".join(["d"] * 1500), None))
    image(layout, [deep], diff_ids=_wrong_diff_id)
    with pytest.raises(DigestMismatch):
        unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    assert not (tmp_path / "b").exists()


def test_id_maps_are_applied_and_recorded(layout: Layout, tmp_path: Path) -> None:
    image(layout, [LOWER])
    options = UnpackOptions(uid_map=IdMap.of((0, 1000, 10)), gid_map=IdMap.of((0, 2000, 10)))
    bundle = unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"), options).bundle
    assert {(node.uid, node.gid) for node in read_tree(bundle.rootfs).values()} == {(1000, 2000)}
    meta = json.loads((tmp_path / "b/umoci.json").read_bytes())["map_options"]
    assert meta["uid_mappings"] == [{"containerID": 0, "hostID": 1000, "size": 10}]
    assert meta["gid_mappings"] == [{"containerID": 0, "hostID": 2000, "size": 10}]
    assert Bundle.open(tmp_path / "b").meta == bundle.meta


def test_raw_unpack_makes_the_tree_only(layout: Layout, tmp_path: Path) -> None:
    image(layout, [LOWER], os="plan9", config={"User": "nobody-knows"})
    unpack_rootfs(layout, tmp_path / "r", resolve(layout, "t"))
    assert names(tmp_path / "r") == ["etc"]
    image(layout, [LOWER], diff_ids=_wrong_diff_id)
    with pytest.raises(DigestMismatch):
        unpack_rootfs(layout, tmp_path / "s", resolve(layout, "t"))
    assert not (tmp_path / "s").exists()
    (tmp_path / "file").touch()
    with pytest.raises(BundleExists):
        unpack_rootfs(layout, tmp_path / "file", resolve(layout, "t"))


def test_raw_unpack_applies_the_layers_over_what_is_there(layout: Layout, tmp_path: Path) -> None:
    there = tree(tmp_path / "r", {"etc/gone": file(b"mine"), "etc/new": file(b"mine"), "mine": file(b"mine")})
    image(layout, [UPPER])
    unpack_rootfs(layout, there, resolve(layout, "t"))
    found = read_tree(there)
    assert sorted(found) == [b".", b"etc", b"etc/new", b"link", b"mine"]
    assert (found[b"etc/new"].content, found[b"mine"].content) == (b"new", b"mine")


def test_failed_raw_unpack_restores_an_empty_directory_and_empties_no_other(layout: Layout, tmp_path: Path) -> None:
    root = special(".", tarfile.DIRTYPE)
    image(layout, [LOWER, tar(root, ("new", b"x"))], diff_ids=_wrong_diff_id)
    empty = tree(tmp_path / "empty", {".": directory(mode=0o751, uid=5, gid=6, xattrs={"user.mine": b"kept"})})
    before = read_tree(empty)
    other = tree(tmp_path / "other", {"mine": file(b"mine")})
    for place in (empty, other):
        with pytest.raises(DigestMismatch):
            unpack_rootfs(layout, place, resolve(layout, "t"))
    assert read_tree(empty) == before
    assert (other / "mine").read_bytes() == b"mine"


def test_empty_directory_gets_back_what_an_entry_for_the_root_has_changed(layout: Layout, tmp_path: Path) -> None:
    image(layout, [archive(entry("./", "dir", mode=0o700, uid=7, xattrs={"user.theirs": b"1"}), entry("new"))])
    empty = tree(tmp_path / "empty", {".": directory(mode=0o751, uid=5, gid=6, xattrs={"user.mine": b"kept"})})
    before = read_tree(empty)
    with pytest.raises(KeyboardInterrupt), extracted(layout, resolve(layout, "t"), empty, may_exist=True):
        assert read_tree(empty)[b"."].xattrs == (("user.theirs", b"1"),)
        raise KeyboardInterrupt
    assert read_tree(empty) == before


def test_B2_6_user_is_looked_up_inside_the_unpacked_tree(layout: Layout, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.write_bytes(b"evil:x:4242:4242::/:\n")
    image(layout, [tar(("etc", None), special("etc/passwd", tarfile.SYMTYPE, str(host)))], config={"User": "evil"})
    with pytest.raises(ImageConfigError):
        unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))


@pytest.mark.timeout(20)
def test_B2_6_image_whose_passwd_is_a_fifo_unpacks(layout: Layout, tmp_path: Path) -> None:
    image(layout, [tar(("etc", None), special("etc/passwd", tarfile.FIFOTYPE))], config={"User": "5"})
    unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"))
    assert json.loads((tmp_path / "b/config.json").read_bytes())["process"]["user"] == {"uid": 5, "gid": 0}


def test_layer_with_embedded_data_needs_no_blob(layout: Layout, tmp_path: Path) -> None:
    import base64

    made = image(layout, [LOWER])
    old = made.manifest.layers[0]
    data = base64.b64encode(layout.read(old)).decode()
    layout.blob_path(old.digest).unlink()
    layer: Descriptor = old.model_copy(update={"data": data})
    whole = type(made)(made.path, made.manifest.model_copy(update={"layers": [layer]}), made.config)
    unpack_manifest(layout, tmp_path / "b", whole)
    assert (tmp_path / "b/rootfs/etc/gone").exists()


def test_error_for_an_ordinary_user_names_rootless(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(layout, [LOWER])

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refused)
    options = UnpackOptions(uid_map=IdMap.of((0, 1000, 10)))
    with pytest.raises(BundleError, match="--rootless"):
        unpack_manifest(layout, tmp_path / "b", resolve(layout, "t"), options)
    assert not (tmp_path / "b").exists()
