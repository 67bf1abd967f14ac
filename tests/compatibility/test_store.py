"""Stores, bundles, caches and catalogs of older versions are read, and give the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.image import resolve, tree_of, trees
from layerfarm.jobs.image.validate import validate_layout
from layerfarm.jobs.relayer.proof import verify_image
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.state import States
from tests.compatibility.write import layerfarm

pytestmark = pytest.mark.usefixtures("as_root")


def test_every_tag_leads_to_the_same_image_without_a_fault(disk: Path, expected: dict[str, Any]) -> None:
    store = Layout.open(disk / "store")
    assert {tag: resolve(store, tag).descriptor.digest for tag in store.tags()} == expected["manifests"]
    report = validate_layout(store.path)
    assert [finding for finding in report.findings if finding.severity == "error"] == []


def test_proofs_hold(disk: Path) -> None:
    for tag in ("zstd", "chunked", "squashed", "rechunked", "stripped"):
        report = verify_image(Layout.open(disk / "store"), tag)
        assert (report.reachable, report.findings) == (1, []), tag


def test_trees_give_the_same_tars(disk: Path, expected: dict[str, Any]) -> None:
    layerfarm(disk, "build", "--rootfs", "app", "--base", "store:base", "--image", "store:again")
    layerfarm(disk, "squash", "--image", "store:app", "--target", "store:squashed-again")
    store = Layout.open(disk / "store")
    for tag, same in (("again", "app"), ("squashed-again", "squashed")):
        assert resolve(store, tag).config.rootfs.diff_ids == expected["diff_ids"][same]


def test_bundle_is_compared_with_its_image_and_repacked(disk: Path) -> None:
    found = json.loads(layerfarm(disk, "diff", "store:app", "bundle", "--json", code=1))
    # The time of the root changed with its new entry.
    assert [(row["kind"], row["path"]) for row in found] == [("modified", "."), ("extra", "new")]
    assert layerfarm(disk, "validate", "--bundle", "bundle").startswith("errors: 0")
    layerfarm(disk, "repack", "--image", "store:repacked", "bundle")
    store = Layout.open(disk / "store")
    old, new = (resolve(store, tag).config.rootfs.diff_ids for tag in ("app", "repacked"))
    assert new[:-1] == old


def test_cached_trees_are_used(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk / "cache"))

    def read_again(*_: object) -> None:
        raise AssertionError("the layers are read again")

    monkeypatch.setattr(trees, "stack_of", read_again)
    store = Layout.open(disk / "store")
    assert [entry.path for entry in tree_of(store, resolve(store, "app"))] == [
        b".",
        b"own",
        b"etc",
        b"etc/debian_version",
    ]


def test_state_of_a_catalog_is_known_and_a_run_makes_the_same_images(disk: Path) -> None:
    before = {state.name: state for state in States(Layout.open(disk / "made"), disk / "catalog.yaml").all()}
    assert before.keys() >= {"base", "app", "zstd"} and all(state.is_ready for state in before.values())
    assert before["app"].is_changed and before["app"].result is not None
    layerfarm(disk, "catalog", "verify", "catalog.yaml")
    report = json.loads(layerfarm(disk, "catalog", "run", "catalog.yaml", "--json"))
    done = {row["name"]: row["new"] for row in report["images"] if row["state"] == "done"}
    # "done" is a tag that the store got after that run.
    assert done.keys() == before.keys() | {"done"}
    assert {name: state.new.digest for name, state in before.items() if state.new is not None}.items() <= done.items()


def test_garbage_collection_keeps_every_image(disk: Path) -> None:
    layerfarm(disk, "gc", "--layout", "store", "--grace", "0")
    report = validate_layout(disk / "store")
    assert (report.errors, report.unreachable) == (0, 0)
