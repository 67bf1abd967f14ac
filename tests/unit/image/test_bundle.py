from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import BundleError
from layerfarm.jobs.image import resolve, unpack_manifest
from layerfarm.jobs.image.bundle import Bundle, extra_name, mtree_name
from layerfarm.jobs.image.documents import masked_paths
from layerfarm.jobs.mtree import Output, snapshot, write_extra, write_tree
from layerfarm.jobs.store import Layout
from tests.unit.image.images import image, tar


@pytest.fixture
def bundle(layout: Layout, tmp_path: Path) -> Bundle:
    image(layout, [tar(("a", b"x"))], config={"Volumes": {"/z": {}, "/v": {}}})
    return unpack_manifest(layout, tmp_path / "b", resolve(layout, "t")).bundle


def rewrite(bundle: Bundle, **changes: Any) -> None:
    path = bundle.path / "umoci.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_names_are_those_of_umoci() -> None:
    assert mtree_name("sha256:ab") == "sha256_ab.mtree"
    assert extra_name("sha256:ab") == "sha256_ab.layerfarm"


def test_bundle_of_umoci_opens(bundle: Bundle) -> None:
    rewrite(bundle, map_options={"uid_mappings": None, "gid_mappings": None, "rootless": True}, whiteout_mode=0)
    opened = Bundle.open(bundle.path)
    assert opened.meta.map_options.rootless
    assert opened.walk == bundle.walk
    bundle.extra.unlink()
    assert [entry.path for entry in opened.baseline()] == [b".", b"a"]


@pytest.mark.parametrize(
    "changes",
    [
        {"umoci_version": "1"},
        {"umoci_version": 2},
        {"whiteout_mode": 1},
        {"from_descriptor_path": {}},
        {"from_descriptor_path": {"descriptor_walk": []}},
        {"map_options": {"uid_mappings": [{"containerID": -1, "hostID": 0, "size": 1}]}},
    ],
)
def test_bundle_of_another_kind_is_refused(bundle: Bundle, changes: dict[str, Any]) -> None:
    rewrite(bundle, **changes)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(bundle.path) in str(caught.value)


def test_incomplete_bundles_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"umoci\.json"):
        Bundle.open(tmp_path / "nothing")
    bundle.mtree.rename(bundle.path / "moved")
    with pytest.raises(BundleError, match=r"has no sha256_\w+\.mtree"):
        Bundle.open(bundle.path)
    with pytest.raises(BundleError):
        bundle.baseline()
    (bundle.path / "moved").rename(bundle.mtree)
    bundle.rootfs.rename(bundle.path / "moved")
    with pytest.raises(BundleError, match="has no rootfs"):
        Bundle.open(bundle.path)
    (bundle.path / "umoci.json").write_bytes(b"{")
    with pytest.raises(BundleError, match="not a JSON document"):
        Bundle.open(bundle.path)


def test_volumes_are_masked_unless_switched_off(layout: Layout, bundle: Bundle) -> None:
    config = resolve(layout, "t").config
    assert masked_paths(config, ["/given"]) == ["/given", "/v", "/z"]
    assert masked_paths(config, ["/given"], mask_volumes=False) == ["/given"]
    assert masked_paths(config.model_copy(update={"config": None}), []) == []


@pytest.mark.parametrize("root", ["/", "", ".", "//", "/./", "v/..", "../"])
def test_a_volume_at_the_root_does_not_mask_every_change(layout: Layout, bundle: Bundle, root: str) -> None:
    config = resolve(layout, "t").config
    assert config.config is not None
    volumes = {"/v": {}, root: {}}
    changed = config.model_copy(update={"config": config.config.model_copy(update={"volumes": volumes})})
    assert masked_paths(changed, []) == ["/v"]


def test_refreshed_bundle_starts_from_the_new_image(layout: Layout, bundle: Bundle, tmp_path: Path) -> None:
    (bundle.rootfs / "b").write_bytes(b"new")
    entries = list(snapshot(bundle.rootfs))
    with (tmp_path / "m").open("wb") as manifest, (tmp_path / "e").open("wb") as extra:
        write_tree(entries, Output(manifest))
        write_extra(entries, extra)
    made = image(layout, [tar(("a", b"x")), tar(("b", b"new"))], tag="n")
    old = (bundle.mtree, bundle.extra)
    refreshed = bundle.refresh(made, tmp_path / "m", tmp_path / "e")
    opened = Bundle.open(bundle.path)
    assert opened.meta == refreshed.meta
    assert opened.walk[-1].digest == made.descriptor.digest
    assert opened.meta.map_options == bundle.meta.map_options
    assert [entry.path for entry in opened.baseline()] == [entry.path for entry in entries]
    assert not any(path.exists() for path in old)
    assert opened.refresh(made, tmp_path / "m", tmp_path / "e").mtree.exists()
    assert not [path for path in bundle.path.iterdir() if path.name.startswith(".")]
