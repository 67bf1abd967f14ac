"""flatten: the tree as a directory or a tar, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import DigestMismatch, LayerfarmError, RequestError, TagNotFound
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.transforms import FlattenRequest, FlattenResult
from layerfarm.jobs.image import resolve
from layerfarm.jobs.layer import unpack_layer
from layerfarm.jobs.relayer.flatten import _tar, flatten
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.trees import directory, read_tree, tree
from tests.unit.image.images import image
from tests.unit.relayer.images import ref, tree_of, two_platforms, without
from tests.unit.relayer.test_squash import LAYERS


def run(layout: Layout, output: Path, form: str = "directory", **fields: object) -> FlattenResult:
    request = FlattenRequest.model_validate({"image": ref(layout, "t"), "output": output, "form": form, **fields})
    return local.run(request, Policy(shards=1, threads=1), 1)  # type: ignore[return-value]


def test_a_directory_and_a_tar_are_the_tree_that_unpacking_gives(layout: Layout, tmp_path: Path) -> None:
    image(layout, LAYERS)
    wanted = tree_of(layout, "t")
    as_directory = run(layout, tmp_path / "flat")
    as_tar = run(layout, tmp_path / "flat.tar", "tar")
    assert read_tree(tmp_path / "flat") == wanted
    unpack_layer(tree(tmp_path / "other", {".": directory()}), io.BytesIO((tmp_path / "flat.tar").read_bytes()))
    assert read_tree(tmp_path / "other") == wanted
    assert as_directory.trees[0].mtree == as_tar.trees[0].mtree
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat", "flat.tar", "other", "store"]


def test_each_platform_gets_its_own(layout: Layout, tmp_path: Path) -> None:
    two_platforms(layout, LAYERS, "t")
    result = run(layout, tmp_path / "flat", "tar")
    assert [found.platform for found in result.trees] == ["linux/amd64", "linux/arm64/v8"]
    assert sorted(p.name for p in (tmp_path / "flat").iterdir()) == ["linux_amd64.tar", "linux_arm64_v8.tar"]
    run(layout, tmp_path / "one", platform="linux/arm64")
    assert read_tree(tmp_path / "one") == tree_of(layout, "t", "linux/arm64")
    with pytest.raises(TagNotFound):
        run(layout, tmp_path / "no", platform="linux/s390x")


@pytest.mark.parametrize("form", ["directory", "tar"])
def test_nothing_is_replaced_and_nothing_is_left_of_a_failure(layout: Layout, tmp_path: Path, form: str) -> None:
    made = image(layout, LAYERS)
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(RequestError, match="already"):
        run(layout, tmp_path / "there", form)
    assert (tmp_path / "there").read_bytes() == b"mine"
    with pytest.raises(RequestError, match="does not exist"):
        run(layout, tmp_path / "no/such", form)
    image(layout, LAYERS, diff_ids=lambda ids: [*ids[:-1], f"sha256:{'0' * 64}"])
    with pytest.raises(DigestMismatch):
        run(layout, tmp_path / "flat", form)
    two_platforms(layout, LAYERS, "t")
    without(layout.path, made.manifest.layers[-1].digest)
    with pytest.raises(Exception, match="does not hold the blob"):
        run(layout, tmp_path / "flat", form, platform="linux/amd64")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there"]


@pytest.mark.parametrize("platforms", [1, 2])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_an_empty_directory_as_it_was(
    layout: Layout, tmp_path: Path, platforms: int, exists: bool
) -> None:
    made = image(layout, LAYERS)
    if platforms > 1:
        two_platforms(layout, LAYERS, "t")
    without(layout.path, made.manifest.layers[-1].digest)
    if exists:
        (tmp_path / "flat").mkdir()
    with pytest.raises(LayerfarmError):
        run(layout, tmp_path / "flat")
    assert (tmp_path / "flat").exists() is exists


def test_a_unit_that_runs_twice_accepts_the_existing_result(layout: Layout, tmp_path: Path) -> None:
    image(layout, LAYERS)
    made = resolve(layout, "t")
    staging = tmp_path / ".staging"
    first = flatten(layout, made, tmp_path / "flat", staging, "tar")
    assert flatten(layout, made, tmp_path / "flat", staging, "tar") == first
    with pytest.raises(RequestError, match="already"):
        flatten(layout, made, tmp_path / "flat", tmp_path / ".another", "tar")


def test_a_path_that_comes_into_being_meanwhile_is_not_replaced(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(layout, LAYERS)

    def while_another_writes(*args: Any) -> str:
        (tmp_path / "flat").write_bytes(b"theirs")
        return _tar(*args)

    monkeypatch.setattr("layerfarm.jobs.relayer.flatten._tar", while_another_writes)
    with pytest.raises(RequestError, match="created meanwhile"):
        flatten(layout, resolve(layout, "t"), tmp_path / "flat", tmp_path / ".staging", "tar")
    assert (tmp_path / "flat").read_bytes() == b"theirs"
    assert [path.suffix for path in (tmp_path / ".staging").iterdir()] == [".json"]


def test_an_epoch_clamps_the_times_in_a_tar(layout: Layout, tmp_path: Path) -> None:
    image(layout, LAYERS)
    run(layout, tmp_path / "flat.tar", "tar", source_date_epoch=1000)
    unpack_layer(tree(tmp_path / "other", {".": directory()}), io.BytesIO((tmp_path / "flat.tar").read_bytes()))
    assert max(node.mtime for node in read_tree(tmp_path / "other").values()) == 1000 * 10**9


def test_an_output_may_have_a_name_of_255_bytes(layout: Layout, tmp_path: Path) -> None:
    image(layout, LAYERS)
    run(layout, tmp_path / ("f" * 255))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f" * 255, "store"]
