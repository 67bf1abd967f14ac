"""squash: one layer worth all of them; the base's layers keep their digests; the history keeps its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import TransformError
from layerfarm.jobs.flows.transforms import SquashRequest
from layerfarm.jobs.image import resolve
from layerfarm.jobs.relayer.proof import proofs_of
from layerfarm.jobs.relayer.referrers import referrers
from layerfarm.jobs.store import Layout
from tests.unit.image.images import image
from tests.unit.layer.archives import archive
from tests.unit.layer.archives import entry as member
from tests.unit.relayer.images import attestation, enter, entry, index, manifest, ref, run, tree_of, two_platforms

BASE = archive(
    member("./", "dir", mode=0o700, mtime=77),
    member("etc/", "dir", mode=0o751),
    member("etc/passwd", content=b"root", mode=0o600, uid=3, xattrs={"user.k": b"\x00v"}),
    member("usr/lib/x", content=b"x" * 3000, pax={"mtime": "12.000000009"}),
    member("lib", "link", link="usr/lib"),
    member("bin/a", content=b"tool", mode=0o4755),
    member("bin/b", "hardlink", link="bin/a"),
)
MIDDLE = archive(
    member("etc/.wh.passwd"), member("lib/y", content=b"through the link"), member("bin/c", "hardlink", link="bin/b")
)
TOP = archive(member("etc/passwd", content=b"again"), member("var/cache/big", content=b"z" * 9000), member(".wh.lib"))
DOWN = archive(member("var/.wh.cache"), member("dev/null", "char", device=(1, 3)))
LAYERS = [BASE, MIDDLE, TOP, DOWN]
HISTORY = [
    {"created": "2020-01-01T00:00:00Z", "created_by": "base"},
    {"created_by": "env", "empty_layer": True},
    {"created": "2021-01-01T00:00:00Z", "created_by": "middle"},
    {"created": "2022-01-01T00:00:00Z", "created_by": "top", "new": 1},
    {"created": "2023-01-01T00:00:00Z", "created_by": "down"},
]


def request(layout: Layout, **fields: object) -> SquashRequest:
    return SquashRequest(image=ref(layout, "t"), target=ref(layout, "s"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("keep", "upto"), [(0, None), (1, None), (2, None), (1, 3), (0, 2)])
def test_the_tree_is_the_same_and_the_other_layers_stay(layout: Layout, keep: int, upto: int | None) -> None:
    old = image(layout, LAYERS, history=HISTORY, config={"Env": ["A=1"], "Odd": 1})
    result = run(request(layout, keep=keep, upto=upto))
    new = resolve(layout, "s")
    assert tree_of(layout, "s") == tree_of(layout, "t")
    top = upto or 4
    assert new.manifest.layers[:keep] == old.manifest.layers[:keep]
    assert new.manifest.layers[keep + 1 :] == old.manifest.layers[top:]
    assert new.config.rootfs.diff_ids[keep + 1 :] == old.config.rootfs.diff_ids[top:]
    assert len(new.manifest.layers) == keep + 1 + 4 - top
    assert new.config.config == old.config.config
    (change,) = result.images
    assert (change.layers_before, change.layers_after) == (4, len(new.manifest.layers))
    (proof,) = proofs_of(layout, result.new)
    assert proof.method == "tree" and proof.tree and proof.entries and proof.parameters == {"keep": keep, "upto": top}
    made = [entry.created_by for entry in new.config.history or [] if not entry.empty_layer]
    assert len(made) == len(new.manifest.layers) and made[keep] == "layerfarm squash"


def test_the_steps_stay_in_the_history_as_empty_ones(layout: Layout) -> None:
    old = image(layout, LAYERS, history=HISTORY, created="2023-01-01T00:00:00Z")
    run(request(layout, keep=1, upto=3))
    new = resolve(layout, "s").config
    history = [(e.created_by, bool(e.empty_layer)) for e in new.history or []]
    assert history == [
        ("base", False),
        ("env", True),
        ("middle", True),
        ("top", True),
        ("layerfarm squash", False),
        ("down", False),
    ]
    merged = (new.history or [])[4]
    assert merged.created == "2022-01-01T00:00:00Z"
    assert merged.comment == f"layers 2 to 3 of {old.descriptor.digest}"
    assert ((new.history or [])[3].model_extra, new.created) == ({"new": 1}, "2023-01-01T00:00:00Z")


def test_a_history_of_fewer_steps_than_layers_ends_with_the_merged_one(layout: Layout) -> None:
    image(layout, LAYERS, history=HISTORY[:2])
    run(request(layout))
    history = resolve(layout, "s").config.history or []
    assert [(step.created_by, bool(step.empty_layer)) for step in history] == [
        ("base", True),
        ("env", True),
        ("layerfarm squash", False),
    ]


def test_the_base_keeps_its_layers(layout: Layout, tmp_path: Path) -> None:
    old = image(layout, LAYERS)
    bases = Layout.create(tmp_path / "bases")
    image(bases, LAYERS[:2], tag="base")
    run(request(layout, base=ref(bases, "base")))
    assert resolve(layout, "s").manifest.layers[:2] == old.manifest.layers[:2]
    image(bases, [BASE, TOP], tag="other")
    with pytest.raises(TransformError, match="of its 2 layers only the lowest 1"):
        run(request(layout, base=ref(bases, "other")))


def test_an_epoch_clamps_times_and_dates_the_config(layout: Layout) -> None:
    image(layout, LAYERS, history=HISTORY)
    result = run(request(layout, keep=1, source_date_epoch=1000))
    new = resolve(layout, "s").config
    assert new.created == "1970-01-01T00:16:40Z" == (new.history or [])[-1].created
    old_tree, new_tree = tree_of(layout, "t"), tree_of(layout, "s")
    assert old_tree[b"etc/passwd"].mtime > new_tree[b"etc/passwd"].mtime == 1000 * 10**9
    assert new_tree[b"usr/lib/x"] == old_tree[b"usr/lib/x"]
    assert proofs_of(layout, result.new)[0].allowed.clamp == 1000


def test_one_layer_alone_is_no_work(layout: Layout) -> None:
    image(layout, LAYERS)
    assert run(request(layout, keep=3)).unchanged
    assert run(request(layout, keep=4)).unchanged
    assert run(request(layout, keep=1, upto=2)).unchanged


def test_more_layers_than_there_are_is_an_error(layout: Layout) -> None:
    image(layout, LAYERS)
    for fields in ({"keep": 5}, {"upto": 5}):
        with pytest.raises(TransformError, match="has 4 layers, not 5"):
            run(request(layout, **fields))


def test_layers_of_another_system_are_not_taken_apart(layout: Layout) -> None:
    image(layout, LAYERS, os="windows")
    with pytest.raises(TransformError, match="windows"):
        run(request(layout))


def test_every_platform_and_its_attestation(layout: Layout) -> None:
    amd = image(layout, LAYERS, tag="alone")
    two_platforms(layout, LAYERS, "t", attestation(layout, amd))
    result = run(request(layout))
    for name in ("linux/amd64", "linux/arm64"):
        assert len(resolve(layout, "s", name).manifest.layers) == 1
        assert tree_of(layout, "s", name) == tree_of(layout, "t", name)
    assert result.referrers == 1
    assert [change.layers_before for change in result.images] == [4, 3]


def test_squashing_again_gives_the_same_bytes(layout: Layout, tmp_path: Path) -> None:
    image(layout, LAYERS)
    other = Layout.create(tmp_path / "other")
    first = run(request(layout))
    second = run(SquashRequest(image=ref(layout, "t"), target=ref(other, "s")))
    assert first.new == second.new
    assert tree_of(other, "s") == tree_of(layout, "t")


def test_an_image_may_be_replaced_by_itself_squashed(layout: Layout) -> None:
    image(layout, LAYERS)
    before = tree_of(layout, "t")
    run(SquashRequest(image=ref(layout, "t"), target=ref(layout, "t")))
    assert tree_of(layout, "t") == before and len(resolve(layout, "t").manifest.layers) == 1


def test_referrers_of_the_index_itself_are_carried(layout: Layout) -> None:
    one = image(layout, LAYERS, tag="alone")
    top = index(layout, [entry(one)], "t")
    enter(layout, manifest(layout, "application/spdx+json", b"{}", top))
    result = run(request(layout, referrers="carry"))
    assert [found.artifact_type for found in referrers(layout, result.new)] == ["application/spdx+json"]
