"""Catalogs that are rechunked, of real images: planned together, proved, the same to umoci, and stable."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.catalog.databases import apk_files, apk_tree
from tests.catalog.images import catalog, images_of
from tests.catalog.registry import Registry
from tests.catalog.spec import SMALL
from tests.trees import read_tree

Layerfarm = Callable[..., tuple[int, str, str]]


# --- real images, from a registry ----------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(
    as_root: None, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    for name in ("debootstrap", "rpmbuild", "skopeo", "umoci"):
        program(name)
    images = catalog(SMALL)
    with Registry(tmp_path_factory.mktemp("registry"), program("docker-registry")) as running:
        for name in images_of(SMALL):
            running.put(images, name, name)
        yield running


@pytest.mark.timeout(3600)  # the images are built first, of packages that are downloaded
def test_debian_images_share_their_layers_and_are_the_same_to_umoci(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    repositories = sorted({name.rpartition(":")[0] for name in images_of(SMALL)})
    path = tmp_path / "small.yaml"
    path.write_text(
        f"store: store\nsources: [{{registry: 'docker://{registry.host}', repositories: {json.dumps(repositories)}}}]\n"
        "policies: [{match: '*', do: {transform: rechunk}}]\naccess: {tls-verify: false}\n"
    )
    code, out, err = layerfarm("catalog", "run", path, "--json", "--html", tmp_path / "report.html")
    assert code == 0, err
    report = json.loads(out)
    assert {row["state"] for row in report["images"]} == {"done"}
    assert all(row["proof"] for row in report["images"])
    assert report["after"]["pulled"] <= 0.4 * report["before"]["pulled"]
    assert report["after"]["stored"] <= 0.8 * report["before"]["stored"]  # of two tags each, so not much to share
    assert report["planned"]["stored"] == pytest.approx(report["after"]["stored"], rel=0.2)
    assert report["planned"]["pulled"] == pytest.approx(report["after"]["pulled"], rel=0.2)
    assert max(row["layers_after"] for row in report["images"]) <= 64
    assert report["duplicates"]
    assert all(row["after"] <= row["before"] for row in report["duplicates"])
    assert "dpkg:libc6" in (tmp_path / "report.html").read_text()

    for name in images_of(SMALL):
        trees = []
        for tag in (name, f"new/{name}"):
            bundle = tmp_path / "bundle"
            subprocess.run(
                ["umoci", "unpack", "--image", f"{tmp_path}/store:{tag}", bundle], check=True, capture_output=True
            )
            trees.append(read_tree(bundle / "rootfs"))
            shutil.rmtree(bundle)
        assert trees[0] == trees[1], name

    code, out, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert code == 0
    assert "transform: 0 images" in err
    assert layerfarm("catalog", "verify", path)[:2] == (0, f"{len(images_of(SMALL))} images, 0 faults\n")


# --- what moves when something changes -----------------------------------------------------------


def build(layout: Path, tree: Path, name: str) -> None:
    local.run(BuildRequest(rootfs=tree, image=ImageRef(store=layout, tag=name)))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of ten packages each, seven of which they share, in a layout."""
    layout = Layout.create(tmp_path / "images").path
    for name in ("one", "two"):
        apk_tree(tmp_path / name, 0, own=("web", "data", "tools"), owner=name)
        build(layout, tmp_path / name, f"{name}:1")
    return layout


def write(directory: Path, *tags: str) -> Path:
    sources = ", ".join(f"{{layout: images, tags: ['{pattern}']}}" for pattern in tags or ("*",))
    path = directory / "apk.yaml"
    path.write_text(
        f"store: store\nsources: [{sources}]\npolicies: [{{match: '*', do: {{transform: rechunk, budget: 40}}}}]\n"
    )
    return path


def layers(directory: Path, name: str) -> dict[str, str]:
    """Layers of a new image, by the names of their steps in the history."""
    image = resolve(Layout.open(directory / "store"), f"new/{name}")
    steps = [entry for entry in image.config.history or [] if not entry.empty_layer]
    return {str(step.comment): layer.digest for step, layer in zip(steps, image.manifest.layers, strict=True)}


def test_one_package_updated_changes_the_layers_that_hold_it_and_no_other(
    images: Path, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path)
    assert layerfarm("catalog", "run", path)[0] == 0
    before = {name: layers(tmp_path, f"{name}:1") for name in ("one", "two")}
    shared = set(before["one"].values()) & set(before["two"].values())
    assert len(shared) >= 7

    updated = apk_files("crypto", "9.9")
    for file, content in updated.items():
        (tmp_path / "one" / file).write_bytes(content)
    database = tmp_path / "one/lib/apk/db/installed"
    database.write_text(database.read_text().replace("P:crypto\nV:1.0", "P:crypto\nV:9.9"))
    build(images, tmp_path / "one", "one:2")
    code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert code == 0, err
    assert "transform: 1 image" in err

    assert {name: layers(tmp_path, f"{name}:1") for name in ("one", "two")} == before
    after = layers(tmp_path, "one:2")
    changed = {name for name in after if after[name] != before["one"].get(name)}
    assert changed <= {"apk:crypto", "directories", *(name for name in after if "database" in name or "db" in name)}
    assert "apk:crypto" in changed


def test_a_newcomer_moves_nothing_and_shares_what_is_there(images: Path, tmp_path: Path, layerfarm: Layerfarm) -> None:
    path = write(tmp_path)
    layerfarm("catalog", "run", path)
    before = {name: layers(tmp_path, f"{name}:1") for name in ("one", "two")}
    apk_tree(tmp_path / "three", 0, own=("zones",), owner="three")
    build(images, tmp_path / "three", "three:1")
    code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert code == 0
    assert "transform: 1 image" in err
    assert {name: layers(tmp_path, f"{name}:1") for name in ("one", "two")} == before
    assert len(set(layers(tmp_path, "three:1").values()) & set(before["one"].values())) >= 6


def test_the_plan_is_the_same_whatever_the_order_of_the_images(
    images: Path, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    found: list[dict[str, Any]] = []
    for number, tags in enumerate((("one:*", "two:*"), ("two:*", "one:*"))):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "images").symlink_to(images)
        layerfarm("catalog", "run", write(directory, *tags))
        found.append({name: layers(directory, f"{name}:1") for name in ("one", "two")})
    assert found[0] == found[1]


def test_a_plan_that_is_damaged_is_not_planned_over(images: Path, tmp_path: Path, layerfarm: Layerfarm) -> None:
    path = write(tmp_path)
    layerfarm("catalog", "run", path)
    (plan,) = (tmp_path / "store/.layerfarm/catalog/apk").glob("plan.json")
    plan.write_text("{}")
    code, _, err = layerfarm("catalog", "run", path)
    assert code == 1
    assert "--replan" in err
    assert layerfarm("catalog", "run", path, "--replan")[0] == 0


def test_plan_keeps_no_plan(images: Path, tmp_path: Path, layerfarm: Layerfarm) -> None:
    code, out, _ = layerfarm("catalog", "plan", write(tmp_path), "--json")
    report = json.loads(out)
    assert (code, report["after"], {row["state"] for row in report["images"]}) == (0, None, {"planned"})
    assert report["planned"]["stored"] < report["before"]["stored"]
    assert not list((tmp_path / "store/.layerfarm/catalog/apk").glob("plan.json"))
