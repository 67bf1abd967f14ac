"""The arithmetic of layers, stored and pulled bytes: by platform, each blob once, as a host fetches them."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.relayer.configs import rechunked_config
from layerfarm.jobs.store import Layout, encode_document
from layerfarm.worker.catalog.costs import Holding, Pullable, layer_count, nbytes, pull, pulls, shared, totals
from layerfarm.worker.catalog.members import ConfigSize
from tests.unit.catalog.works import catalog_file, planned, ran, work_on
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import two_platforms


def one(layers: dict[str, int], config: str, size: int) -> Holding:
    return {"linux/amd64": Pullable(tuple(layers), layers | {config: size})}


IMAGES = {
    "a:1": one({"base": 100, "x": 10}, "config 1", 1),
    "a:2": one({"base": 100, "y": 20}, "config 2", 2),
    "b:1": one({"base": 100, "z": 5}, "config 1", 1),
}
SERIES = [["a:1", "a:2"], ["b:1"]]


def test_a_blob_is_counted_once_for_all_images() -> None:
    found = totals(IMAGES, pulls(IMAGES, SERIES))
    assert (found.stored, found.layers, found.images) == (138, 4, 3)


def test_a_pull_costs_what_the_tag_before_does_not_have() -> None:
    assert pulls(IMAGES, SERIES) == {"a:1": None, "a:2": 22, "b:1": None}
    assert (totals(IMAGES, pulls(IMAGES, SERIES)).pulled, totals(IMAGES, pulls(IMAGES, SERIES)).pulls) == (22, 1)


def test_a_tag_that_is_not_known_is_stepped_over() -> None:
    assert pulls(IMAGES, [["a:1", "gone", "a:2"]]) == {"a:1": None, "a:2": 22}


def test_shared_layers_are_listed_by_the_exact_set_of_images() -> None:
    assert [(row.images, row.bytes) for row in shared(IMAGES)] == [
        (("a:1", "a:2", "b:1"), 100),
        (("a:2",), 20),
        (("a:1",), 10),
        (("b:1",), 5),
    ]


def platforms(**each: dict[str, int]) -> Holding:
    return {name: Pullable(tuple(blobs), blobs) for name, blobs in each.items()}


def test_a_host_pulls_one_platform_of_an_index() -> None:
    before = platforms(amd={"a": 100}, arm={"b": 100})
    after = platforms(amd={"a": 100, "x": 10}, arm={"c": 30}, riscv={"r": 1000})
    assert pull(after, before) == 20
    assert pull(after, platforms(amd={"a": 100})) == 10
    assert pull(after, platforms(s390x={"a": 100})) is None
    assert (layer_count(after), nbytes(after)) == (2, 1140)


def test_a_layer_that_comes_twice_is_two_layers_and_once_its_bytes() -> None:
    twice = {"linux/amd64": Pullable(("a", "b", "a"), {"a": 100, "b": 5, "config": 1})}
    assert (layer_count(twice), nbytes(twice), pull(twice, {"linux/amd64": Pullable((), {})})) == (3, 106, 106)
    assert shared({"a:1": twice})[0].layers == 2


# --- counted from images ---------------------------------------------------------------------------

BASE = tar(("base", b"base\n" * 1000))


def files(count: int, content: bytes) -> bytes:
    return tar(*((f"opt/{number}/file", content + b"%d" % number) for number in range(count)))


@pytest.fixture
def images(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "images")


def test_the_budget_is_one_of_each_platform(images: Layout, tmp_path: Path) -> None:
    two_platforms(images, [BASE, files(40, b"x"), files(5, b"y")], "a:1")
    (row,) = planned(catalog_file(tmp_path, "{transform: rechunk, budget: 10}")).images
    assert row.layers_before == 3
    assert row.layers_planned is not None
    assert row.layers_planned <= 10


def test_of_two_platforms_a_pull_is_that_of_one_host(images: Layout, tmp_path: Path) -> None:
    for tag in ("a:1", "a:2"):
        two_platforms(images, [BASE, tag.encode().ljust(512, b"\0") + bytes(1024), BASE], tag)
    report = planned(catalog_file(tmp_path, "{transform: keep}"))
    changed = resolve(images, "a:2", "linux/amd64").manifest
    amd, arm = changed.layers[1].size + changed.config.size, resolve(images, "a:2", "linux/arm64/v8").manifest
    assert report.images[1].pull_before == round((amd + arm.layers[1].size + arm.config.size) / 2)
    assert report.before.pulled == report.images[1].pull_before


def test_a_prediction_has_the_size_of_the_new_configuration(images: Layout, tmp_path: Path) -> None:
    for number in (1, 2):
        image(
            images,
            [BASE, files(30, b"%d" % number)],
            tag=f"a:{number}",
            created=f"2024-01-0{number}T00:00:00Z",
            author="ä <a@b>",
            history=[{"created_by": "x"}] * 2,
        )
    path = catalog_file(tmp_path, "{transform: rechunk, budget: 12, source-date-epoch: 1700000000, only-if-saves: off}")
    guessed = {row.name: row.layers_planned for row in planned(path).images}
    report = ran(path)
    store = Layout.open(tmp_path / "store")
    work = work_on(path)
    work.plan_again()
    assert work.joint is not None
    for row in report.images:
        assert row.layers_after == guessed[row.name]
        (predicted,) = work.joint.holdings()[row.name].values()
        (size,) = (size for what, size in predicted.blobs.items() if what.startswith("config"))
        assert size == resolve(store, f"new/{row.name}").manifest.config.size


@pytest.mark.parametrize("history", [None, [], [{"created_by": "x"}] * 2])
@pytest.mark.parametrize("names", [[], ["one"], ["dpkg:a", "dpkg:b and 3 more", 'tree:ä/"x\\'], ["n"] * 120])
def test_the_size_of_a_configuration_follows_from_the_names_of_its_layers(
    images: Layout, history: list[dict[str, str]] | None, names: list[str]
) -> None:
    old = image(images, [BASE, BASE], author="ä", history=history)
    new = rechunked_config(old.config, 1, names, ["sha256:" + "f" * 64] * len(names), old.descriptor.digest, None)
    size = ConfigSize.of(old.config, 1, old.descriptor.digest, None)
    assert size.bytes(names) == len(encode_document(new))
