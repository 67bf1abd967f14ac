"""The layout and other tools: what layerfarm writes umoci and skopeo read, and the other way round."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from layerfarm.jobs.compress import Codec, Compression
from layerfarm.jobs.image import HistoryEntry, append_layer, pack_layer, resolve
from layerfarm.jobs.image.mutate import ConfigChanges, configure, new_image
from layerfarm.jobs.image.stat import human_size, stat_json, stat_text
from layerfarm.jobs.store import Layout
from tests.interop.conftest import Run
from tests.unit.image.images import NOT_RFC3339, RFC3339, image, tar

CREATED = "2020-01-02T03:04:05Z"


def ours(tmp_path: Path, compression: Compression = Compression.GZIP) -> Layout:
    layout = Layout.create(tmp_path / "store")
    base = new_image(layout, CREATED)
    layer = pack_layer(layout, [tar(("etc", None), ("etc/f", b"x" * 5000))], Codec(compression))
    made = append_layer(layout, base, layer, HistoryEntry(created=CREATED, created_by="test", author="me"), CREATED)
    layout.tag("ours", made.path[0])
    return layout


def test_umoci_reads_stats_tags_and_changes_our_layout(tmp_path: Path, run: Run) -> None:
    layout = ours(tmp_path)
    image = f"{layout.path}:ours"
    assert run("umoci", "ls", "--layout", layout.path).split() == ["ours"]
    layer = resolve(layout, "ours").manifest.layers[0]
    assert layer.digest in run("umoci", "stat", "--image", image)
    run("umoci", "tag", "--image", image, "theirs")
    run("umoci", "config", "--image", f"{layout.path}:theirs", "--config.user", "5:6", "--author", "umoci")
    assert layout.tags() == ["ours", "theirs"]
    found = resolve(layout, "theirs")
    assert found.config.config is not None
    assert (found.config.config.user, found.config.author) == ("5:6", "umoci")
    assert found.manifest.layers[0].digest == layer.digest
    run("umoci", "rm", "--image", image)
    run("umoci", "gc", "--layout", layout.path)
    assert layout.tags() == ["theirs"]
    assert layout.has(layer)
    layout.tag("again", resolve(layout, "theirs").path[0])
    assert sorted(run("umoci", "ls", "--layout", layout.path).split()) == ["again", "theirs"]


def test_go_reads_the_times_that_we_take_and_no_others(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "store")
    for text in (*RFC3339, *NOT_RFC3339):
        image(layout, tag="t", created=text)
        reading = subprocess.run(
            ["skopeo", "inspect", "--config", f"oci:{layout.path}:t"], capture_output=True, timeout=60, check=False
        )
        assert (reading.returncode == 0) == (text in RFC3339), (text, reading.stderr)


def test_our_history_is_what_umoci_stats(tmp_path: Path, run: Run) -> None:
    layout = ours(tmp_path)
    changed = configure(
        layout, resolve(layout, "ours"), ConfigChanges(user="1"), HistoryEntry(created=CREATED, created_by="c")
    )
    layout.tag("ours", changed.path[0])
    image = f"{layout.path}:ours"
    theirs = json.loads(run("umoci", "stat", "--json", "--image", image))["history"]
    mine = stat_json(layout, resolve(layout, "ours"))["history"]
    assert mine == theirs
    table = stat_text(resolve(layout, "ours")).partition("== HISTORY ==\n")[2]
    # umoci fills the last column up with blanks.
    wanted = [line.rstrip() for line in run("umoci", "stat", "--image", image).splitlines()]
    assert [line.rstrip() for line in table.splitlines()] == wanted


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1234, 99_999, 1_000_000, 123_456_789])
def test_sizes_are_written_as_umoci_writes_them(tmp_path: Path, run: Run, size: int) -> None:
    layout = ours(tmp_path)
    base = resolve(layout, "ours")
    manifest = base.manifest.model_copy(update={"layers": [base.manifest.layers[0].model_copy(update={"size": size})]})
    layout.tag("ours", layout.put_document(manifest, base.descriptor.media_type))
    assert f" {human_size(size)} " in run("umoci", "stat", "--image", f"{layout.path}:ours")


def test_umoci_layout_is_read_and_changed_by_us(tmp_path: Path, run: Run) -> None:
    store = tmp_path / "store"
    run("umoci", "init", "--layout", store)
    run("umoci", "new", "--image", f"{store}:t")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_text("x")
    run("umoci", "insert", "--image", f"{store}:t", "source", "/s")
    run("umoci", "config", "--image", f"{store}:t", "--config.env", "A=<b>&c", "--manifest.annotation", "k=v")
    layout = Layout.open(store)
    found = resolve(layout, "t")
    assert len(found.layers) == 1
    assert found.config.config is not None
    assert found.config.config.env == ["A=<b>&c"]
    assert found.manifest.annotations == {"k": "v"}
    made = configure(layout, found, ConfigChanges(env=["B=2"]), None)
    layout.tag("t", made.path[0])
    run("umoci", "unpack", "--image", f"{store}:t", "bundle")
    env = json.loads((tmp_path / "bundle/config.json").read_bytes())["process"]["env"]
    assert env[-3:-1] == ["A=<b>&c", "B=2"] or env[-2:] == ["A=<b>&c", "B=2"]


def test_B7_umoci_gc_and_ours_leave_each_other_alone(tmp_path: Path, run: Run) -> None:
    layout = ours(tmp_path)
    with layout.ingest() as blob:
        blob.write(b"being written")
        run("umoci", "gc", "--layout", layout.path)
        digest, size = blob.commit()
    assert layout.blob_path(digest).stat().st_size == size


@pytest.mark.parametrize("compression", list(Compression))
def test_skopeo_copies_our_image_and_we_read_its_copy(tmp_path: Path, run: Run, compression: Compression) -> None:
    layout = ours(tmp_path, compression)
    inspected = json.loads(run("skopeo", "inspect", f"oci:{layout.path}:ours"))
    made = resolve(layout, "ours")
    assert inspected["Digest"] == made.descriptor.digest
    assert inspected["Created"] == CREATED
    run("skopeo", "copy", f"oci:{layout.path}:ours", f"oci:{tmp_path}/copy:theirs")
    copied = resolve(Layout.open(tmp_path / "copy"), "theirs")
    assert copied.config == made.config
    if compression is Compression.NONE:
        return  # skopeo compresses such a layer, and so makes another manifest of it
    assert copied.manifest == made.manifest
    run("skopeo", "copy", f"oci:{tmp_path}/copy:theirs", f"oci:{layout.path}:back")
    assert sorted(layout.tags()) == ["back", "ours"]
    assert resolve(layout, "back").descriptor.digest == made.descriptor.digest


def test_layout_of_root_is_readable_for_everybody(tmp_path: Path, run: Run) -> None:
    layout = ours(tmp_path)
    for path in (layout.path, *layout.path.rglob("*")):
        assert path.stat().st_mode & (0o055 if path.is_dir() else 0o044), path
    assert os.listdir(layout.path / ".layerfarm/ingest") == []
