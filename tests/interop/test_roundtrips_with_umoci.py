"""One rootfs through both tools: what layerfarm writes umoci reads, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.changes import COUNT, change
from tests.interop.conftest import Run
from tests.trees import in_seconds, read_tree


def test_built_image_is_the_same_tree_after_umoci_unpack(debian: Path, tmp_path: Path, run: Run) -> None:
    store = _build(debian, tmp_path, run)
    run("umoci", "unpack", "--image", f"{store}:deb", "bundle")
    assert in_seconds(read_tree(tmp_path / "bundle/rootfs")) == in_seconds(read_tree(debian))


def test_built_image_is_the_same_tree_after_umoci_raw_unpack(debian: Path, tmp_path: Path, run: Run) -> None:
    store = _build(debian, tmp_path, run)
    run("umoci", "raw", "unpack", "--image", f"{store}:deb", "raw")
    assert in_seconds(read_tree(tmp_path / "raw")) == in_seconds(read_tree(debian))


def test_built_image_is_the_same_tree_after_layerfarm_unpack(debian: Path, tmp_path: Path, run: Run) -> None:
    store = _build(debian, tmp_path, run)
    run("layerfarm", "unpack", "--image", f"{store}:deb", "bundle")
    assert in_seconds(read_tree(tmp_path / "bundle/rootfs")) == in_seconds(read_tree(debian))


def test_skopeo_copies_the_built_image(debian: Path, tmp_path: Path, run: Run) -> None:
    store = _build(debian, tmp_path, run)
    run("skopeo", "copy", f"oci:{store}:deb", f"dir:{tmp_path}/copied")
    manifest = json.loads((tmp_path / "copied/manifest.json").read_text())
    assert len(manifest["layers"]) == 1
    assert (tmp_path / "copied" / manifest["layers"][0]["digest"].partition(":")[2]).exists()


@pytest.mark.parametrize("compress", ["gzip", "none", "zstd"])
def test_tar_programs_list_the_layer(debian: Path, tmp_path: Path, run: Run, compress: str) -> None:
    store = _build(debian, tmp_path, run, compress)
    layer = _layers(store, "deb", run)[-1]
    option = {"gzip": "-z", "none": "--no-auto-compress", "zstd": "--zstd"}[compress]
    gnu = run("tar", option, "-tf", layer).splitlines()
    bsd = run("bsdtar", "-tf", layer).splitlines()
    on_disk = int(run("sh", "-c", f"find {debian} | wc -l"))
    assert len(gnu) == len(bsd) == on_disk


@pytest.mark.parametrize(
    ("unpacker", "repacker"),
    [
        pytest.param("umoci", "layerfarm", id="umoci-then-layerfarm"),
        pytest.param("layerfarm", "umoci", id="layerfarm-then-umoci"),
        pytest.param("layerfarm", "layerfarm", id="layerfarm-twice"),
    ],
)
def test_two_hundred_changes_survive_repack(
    debian: Path, tmp_path: Path, run: Run, unpacker: str, repacker: str
) -> None:
    store = _build(debian, tmp_path, run)
    run(unpacker, "unpack", "--image", f"{store}:deb", "bundle")
    assert len(change(tmp_path / "bundle/rootfs", seed=2026)) == COUNT
    run(repacker, "repack", "--image", f"{store}:changed", "bundle")
    changed = in_seconds(read_tree(tmp_path / "bundle/rootfs"))
    for reader in ("umoci", "layerfarm"):
        run(reader, "unpack", "--image", f"{store}:changed", f"by-{reader}")
        assert in_seconds(read_tree(tmp_path / f"by-{reader}/rootfs")) == changed, reader


def test_unpacked_by_layerfarm_umoci_sees_no_change(debian: Path, tmp_path: Path, run: Run) -> None:
    store = _build(debian, tmp_path, run)
    run("layerfarm", "unpack", "--image", f"{store}:deb", "bundle")
    run("umoci", "repack", "--image", f"{store}:same", "bundle")
    assert _layers(store, "same", run) == _layers(store, "deb", run)


def test_unpacked_by_umoci_layerfarm_sees_no_change(debian: Path, tmp_path: Path, run: Run) -> None:
    store = _build(debian, tmp_path, run)
    run("umoci", "unpack", "--image", f"{store}:deb", "bundle")
    run("layerfarm", "repack", "--image", f"{store}:same", "bundle")
    assert _layers(store, "same", run) == _layers(store, "deb", run)


def test_rebuild_on_a_base_packs_only_what_differs(debian_copy: Path, tmp_path: Path, run: Run) -> None:
    store = _build(debian_copy, tmp_path, run)
    change(debian_copy, seed=7)
    run("layerfarm", "build", "--rootfs", debian_copy, "--image", f"{store}:next", "--base", f"{store}:deb")
    first, second = _layers(store, "next", run)
    assert [first] == _layers(store, "deb", run)
    assert second.stat().st_size < first.stat().st_size / 4
    run("umoci", "unpack", "--image", f"{store}:next", "bundle")
    assert in_seconds(read_tree(tmp_path / "bundle/rootfs")) == in_seconds(read_tree(debian_copy))


def _build(rootfs: Path, tmp_path: Path, run: Run, compress: str = "gzip") -> Path:
    store = tmp_path / "store"
    run("layerfarm", "init", "--layout", store)
    run("layerfarm", "build", "--rootfs", rootfs, "--image", f"{store}:deb", "--compress", compress)
    return store


def _layers(store: Path, tag: str, run: Run) -> list[Path]:
    """The blobs of an image's layers, as skopeo sees them."""
    manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci:{store}:{tag}"))
    return [store / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]
