"""A real Debian, rechunked: read alike by umoci, GNU tar and the kernel's overlay; shared between images."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from tests.interop.conftest import Run
from tests.trees import in_seconds, read_tree

Program = Callable[[str], str]


@pytest.fixture
def layout(tmp_path: Path, debian: Path, run: Run) -> Layout:
    """A store with the image ``debian:v1``."""
    store = tmp_path / "store"
    run("layerfarm", "init", "--layout", store)
    run("layerfarm", "build", "--rootfs", debian, "--image", f"{store}:v1", "--compress", "none")
    return Layout.open(store)


def test_every_unpacker_sees_the_old_tree(
    layout: Layout, debian: Path, tmp_path: Path, run: Run, program: Program
) -> None:
    printed = run(
        "layerfarm", "rechunk", "--image", f"{layout.path}:v1", "--target", f"{layout.path}:v2", "--budget", "30"
    )
    assert "layers: 1 -> 30" in printed
    expected = in_seconds(read_tree(debian))
    run(program("umoci"), "unpack", "--image", f"{layout.path}:v2", tmp_path / "bundle")
    assert read_tree(tmp_path / "bundle/rootfs") == expected
    layers = [layout.blob_path(layer.digest) for layer in resolve(layout, "v2").manifest.layers]
    one_by_one = tmp_path / "tar"
    one_by_one.mkdir()
    for layer in layers:
        _extract(program("tar"), layer, one_by_one)
    assert read_tree(one_by_one) == expected
    apart = [tmp_path / f"layer{number}" for number in range(len(layers))]
    for place, layer in zip(apart, layers, strict=True):
        place.mkdir()
        _extract(program("tar"), layer, place)
    with _overlay(apart, tmp_path / "merged") as merged:
        found = read_tree(merged)
    # The kernel gives the merged tree's link counts and inodes; overlay itself has no name for a group across layers.
    assert {path: node for path, node in found.items() if path != b"."} == {
        path: node for path, node in expected.items() if path != b"."
    }


def _extract(tar: str, layer: Path, place: Path) -> None:
    command = [tar, "--extract", "--file", layer, "--directory", place, "--same-owner", "--same-permissions"]
    subprocess.run([*command, "--numeric-owner", "--xattrs", "--xattrs-include=*"], check=True)


@contextmanager
def _overlay(layers: list[Path], merged: Path) -> Iterator[Path]:
    merged.mkdir()
    # Relative, because all names have to fit into one page.
    lower = ":".join(layer.name for layer in reversed(layers))
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", str(merged)],
        cwd=merged.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"overlay cannot be mounted here: {done.stderr.strip()}")
    try:
        yield merged
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def test_a_rebuilt_image_with_one_package_updated_has_all_other_layers_unchanged(
    layout: Layout, debian_copy: Path, tmp_path: Path, run: Run
) -> None:
    """As a CI farm rebuilds: all that is generated is new, directories too, and one package has a new version."""
    for path in [debian_copy, *debian_copy.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            os.utime(path, (1_790_000_000, 1_790_000_000))
    updated = debian_copy / "bin/tar"
    updated.write_bytes(updated.read_bytes() + b"newer")
    os.utime(updated, (1_700_000_000, 1_700_000_000))
    run("layerfarm", "build", "--rootfs", debian_copy, "--image", f"{layout.path}:v2")
    run("layerfarm", "rechunk", "--image", f"{layout.path}:v1", "--compress", "zstd")
    run("layerfarm", "rechunk", "--image", f"{layout.path}:v2", "--compress", "zstd")
    old, new = (
        json.loads(run("layerfarm", "stat", "--image", f"{layout.path}:{tag}", "--json")) for tag in ("v1", "v2")
    )
    before = {layer["layer"]["digest"] for layer in old["history"] if layer["layer"]}
    changed = [
        layer["comment"] for layer in new["history"] if layer["layer"] and layer["layer"]["digest"] not in before
    ]
    assert len(before) > 30
    assert len(changed) == 2 and "dpkg:tar" in changed[0] and changed[1] == "directories"
