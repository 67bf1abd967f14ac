"""recompress, squash, strip, rebase, flatten and verify, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from tests.trees import read_tree
from tests.unit.cli.conftest import Run
from tests.unit.image.images import image, tar

BASE, OWN = tar(("base", b"b" * 4000)), tar(("d", None), ("d/own", b"own"))


@pytest.fixture
def layout(store: Path) -> Layout:
    layout = Layout(store)
    image(layout, [BASE], tag="base")
    image(layout, [BASE, OWN], tag="app", history=[{"created_by": "a"}, {"created_by": "b"}])
    return layout


def test_recompress_says_what_became_of_each_image(layerfarm: Run, layout: Layout) -> None:
    done = layerfarm(
        "recompress",
        "--image",
        "store:app",
        "--compress",
        "zstd",
        "--keep",
        "1",
        "--target",
        "store:z",
        "--progress=none",
    )
    old, new = resolve(layout, "app"), resolve(layout, "z")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0] == f"linux/amd64: {old.descriptor.digest} -> {new.descriptor.digest}"
    assert lines[1] == "  layers: 2 -> 2" and lines[3].startswith("  proof: sha256:")
    assert lines[4] == f"image: {layout.path}:z {new.descriptor.digest}"
    assert [layer.media_type.rpartition("+")[2] for layer in new.manifest.layers] == ["gzip", "zstd"]
    again = layerfarm("recompress", "--image=store:z", "--compress=zstd", "--keep=1", "--target", "store:zz")
    assert again.out.splitlines()[0] == "linux/amd64: unchanged"


def test_without_a_target_the_tag_is_replaced(layerfarm: Run, layout: Layout) -> None:
    assert layerfarm("squash", "--image", "store:app", "--compress-level", "9").code == 0
    assert len(resolve(layout, "app").manifest.layers) == 1
    assert layerfarm("verify", "--image", "store:app").out.splitlines()[-1].startswith("proofs: 1, errors: 0")


def test_squash_leaves_a_base_and_honours_the_epoch(
    layerfarm: Run, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    image(layout, [BASE, OWN, tar(("e", b"e"))], tag="app", history=[{"created_by": "x"}] * 3)
    done = layerfarm("squash", "--image", "store:app", "--base", "store:base", "--target", "store:s", "--json")
    result = json.loads(done.out)
    assert [(i["layers_before"], i["layers_after"]) for i in result["images"]] == [(3, 2)]
    assert resolve(layout, "s").config.created == "1970-01-01T00:16:40Z"
    assert resolve(layout, "s").manifest.layers[0] == resolve(layout, "base").manifest.layers[0]
    wrong = layerfarm("squash", "--image", "store:app", "--keep", "7")
    assert (wrong.code, wrong.out) == (1, "") and "has 3 layers, not 7" in wrong.err


def test_strip_takes_patterns_and_says_what_it_left_behind(layerfarm: Run, layout: Layout) -> None:
    layout.tag(resolve(layout, "app").descriptor.digest.replace(":", "-") + ".sig", resolve(layout, "base").path[0])
    done = layerfarm("strip", "--image", "store:app", "--target", "store:s", "d/*", "nowhere")
    assert done.code == 0 and "not copied" in done.err
    assert layerfarm("flatten", "--image", "store:s", "out").code == 0
    assert set(read_tree(Path("out"))) == {b".", b"base", b"d"}
    assert layerfarm("strip", "--image", "store:app").code == 2


def test_rebase_checks_and_refuses_by_its_exit_code(layerfarm: Run, layout: Layout) -> None:
    bases = ("--image", "store:app", "--old-base", "store:base", "--new-base", "store:new")
    image(layout, [tar(("base", b"b" * 4000), ("d", b"a file now"))], tag="new")
    looked = layerfarm("rebase", *bases, "--check")
    assert (looked.code, looked.out.splitlines()[0]) == (0, "linux/amd64: safe")
    image(layout, [tar(("other", b"x"))], tag="new")
    looked = layerfarm("rebase", *bases, "--check")
    assert looked.code == 3 and "  refuse: .: the new base shares no file with the old one" in looked.out
    assert layerfarm("rebase", *bases, "--check", "--accept=refuse").code == 0
    refused = layerfarm("rebase", *bases, "--target", "store:r")
    assert refused.code == 1 and "rebase is rated 'refuse'" in refused.err and "r" not in layout.tags()
    done = layerfarm("rebase", *bases, "--target", "store:r", "--accept", "refuse")
    assert done.code == 0 and done.out.splitlines()[-1] == "verdict: refuse" and "warning: refuse: ." in done.err


def test_verify_reports_proofs_that_do_not_hold(layerfarm: Run, layout: Layout) -> None:
    assert "no-proof" in layerfarm("verify", "--image", "store:app", "--json").out
    layerfarm("recompress", "--image", "store:app", "--compress", "none", "--target", "store:plain")
    layout.blob_path(resolve(layout, "plain").manifest.layers[0].digest).write_bytes(BASE[:-1] + b"x")
    found = layerfarm("verify", "--image", "store:plain")
    assert found.code == 1 and found.out.startswith("error: ")


def test_flatten_makes_a_tar_and_replaces_nothing(layerfarm: Run, layout: Layout) -> None:
    done = layerfarm("flatten", "--image", "store:app", "--tar", "app.tar")
    assert done.code == 0 and done.out.startswith("linux/amd64: ") and "app.tar sha256:" in done.out
    assert layerfarm("flatten", "--image", "store:app", "--tar", "app.tar").code == 1
