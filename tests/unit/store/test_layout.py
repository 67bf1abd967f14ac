from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import (
    AmbiguousReference,
    LayoutExists,
    LimitExceeded,
    MalformedDocument,
    NotALayout,
    TagNotFound,
)
from layerfarm.jobs.store import REF_NAME, Index, Layout
from layerfarm.jobs.store.descriptor import named


def test_new_layout_holds_the_specified_files_and_nothing_else(tmp_path: Path) -> None:
    Layout.create(tmp_path / "s")
    assert sorted(os.listdir(tmp_path / "s")) == ["blobs", "index.json", "oci-layout"]
    index = json.loads((tmp_path / "s/index.json").read_bytes())
    assert index == {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}


def test_created_layout_has_the_files_of_the_spec(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "a" / "store")
    assert json.loads((layout.path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert (layout.path / "blobs" / "sha256").is_dir()
    assert Layout.open(layout.path).tags() == []


def _full(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


@pytest.mark.parametrize("make", [_full, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_create_refuses_whatever_is_there(tmp_path: Path, make: object) -> None:
    make(tmp_path / "store")  # type: ignore[operator]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(LayoutExists):
        Layout.create(tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == before


def test_empty_directory_becomes_a_layout(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    inode = (tmp_path / "store").stat().st_ino
    assert Layout.create(tmp_path / "store").tags() == []
    assert (tmp_path / "store").stat().st_ino == inode


def test_one_of_several_creators_makes_the_layout(tmp_path: Path) -> None:
    """A second creator must not replace the index of the first, which may have a tag by then."""
    (tmp_path / "store").mkdir()

    def create(_: int) -> bool:
        try:
            Layout.create(tmp_path / "store")
        except LayoutExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


@pytest.mark.parametrize("existed", [False, True])
def test_create_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool) -> None:
    if existed:
        (tmp_path / "store").mkdir()

    def full(*_: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("layerfarm.jobs.store.layout_directory.replace_file", full)
    with pytest.raises(Exception, match="No space left"):
        Layout.create(tmp_path / "store")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["store"] * existed


def test_open_says_what_is_missing(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(NotALayout, match="no OCI image layout here"):
        Layout.open(tmp_path / "nothing")
    with pytest.raises(NotALayout):
        Layout.open(layout.path / "index.json")
    for name in ("index.json", "oci-layout"):
        content = (layout.path / name).read_bytes()
        (layout.path / name).unlink()
        with pytest.raises(NotALayout, match=name):
            Layout.open(layout.path)
        (layout.path / name).write_bytes(content)
    (layout.path / "blobs").rename(layout.path / "other")
    with pytest.raises(NotALayout, match="blobs"):
        Layout.open(layout.path)


@pytest.mark.parametrize("content", [b'{"imageLayoutVersion":"2.0.0"}', b'{"imageLayoutVersion":"1.0"}'])
def test_open_refuses_another_version(layout: Layout, content: bytes) -> None:
    (layout.path / "oci-layout").write_bytes(content)
    with pytest.raises(NotALayout, match=r"layerfarm reads 1\.0\.0"):
        Layout.open(layout.path)


def test_open_takes_a_marker_in_any_form(layout: Layout) -> None:
    (layout.path / "oci-layout").write_text('{ "imageLayoutVersion": "1.0.0", "more": 1 }\n')
    assert Layout.open(layout.path).tags() == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"nonsense", b'{"imageLayoutVersion":1}'])
def test_open_refuses_a_malformed_marker(layout: Layout, content: bytes) -> None:
    (layout.path / "oci-layout").write_bytes(content)
    with pytest.raises(MalformedDocument):
        Layout.open(layout.path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"schemaVersion":1}',
        b'{"schemaVersion":2,"manifests":{}}',
        b'{"schemaVersion":2,"x":NaN}',
        b'{"schemaVersion":2,"x":"\\ud800"}',
        b'{"schemaVersion":2,"x":' + b"1" * 5000 + b"}",
        b'{"schemaVersion":2,"manifests":[],"x":"\xff"}',
    ],
)
def test_malformed_index_is_one_clear_error(layout: Layout, content: bytes) -> None:
    (layout.path / "index.json").write_bytes(content)
    with pytest.raises(MalformedDocument) as caught:
        layout.index()
    assert "index.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_B2_5_index_that_could_be_a_manifest_is_refused(layout: Layout) -> None:
    for extra in ({"config": {}}, {"layers": []}, {"mediaType": "application/vnd.oci.image.manifest.v1+json"}):
        (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []} | extra))
        with pytest.raises(MalformedDocument):
            layout.index()


def test_B7_null_manifests_are_an_empty_index(layout: Layout) -> None:
    (layout.path / "index.json").write_bytes(b'{"schemaVersion":2,"manifests":null}')
    assert layout.index() == Index()
    assert layout.tags() == []


ODD = [
    None,
    5,
    {},
    {"mediaType": "a/b", "digest": "sha256:short", "size": 1, "annotations": {REF_NAME: "odd"}},
    {"mediaType": "a/b", "digest": f"sha256:{'a' * 64}", "size": -1, "annotations": {REF_NAME: "odd", "n": 5}},
    {"mediaType": "a/b", "digest": f"sha256:{'a' * 64}", "size": 1, "platform": "x", "annotations": {REF_NAME: "odd"}},
]


def entries(layout: Layout) -> list[Any]:
    found: list[Any] = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    return found


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_entry_that_is_no_descriptor_shuts_its_own_tag_only(layout: Layout, odd: Any) -> None:
    one, two = layout.put(b"one", "a/b"), layout.put(b"two", "a/b")
    layout.tag("one", one)
    raw = json.loads((layout.path / "index.json").read_bytes())
    raw["manifests"] = [odd, *raw["manifests"], odd]
    (layout.path / "index.json").write_text(json.dumps(raw))
    layout = Layout.open(layout.path)
    named = ["odd"] if isinstance(odd, dict) and odd else []
    assert layout.find("one")[0].digest == one.digest
    assert layout.tags() == [*named, "one"]
    assert [found.digest for found in layout.index().manifests] == [one.digest]
    layout.tag("two", two)
    layout.copy_tag("two", "three")
    layout.update_index(lambda index: index.model_copy(update={"manifests": [*index.manifests, two]}))
    assert [entry for entry in entries(layout) if entry == odd] == [odd, odd]
    assert layout.tags() == [*named, "one", "two", "three"]
    if named:
        with pytest.raises(MalformedDocument, match="odd"):
            layout.find("odd")
        layout.tag("odd", one, once="job")
        assert layout.find("odd")[0].digest == one.digest
        assert odd not in entries(layout)


def test_a_tag_of_several_images_or_of_none_is_not_copied(layout: Layout) -> None:
    one, two = (named(layout.put(content, "a/b"), "t") for content in (b"one", b"two"))
    layout.update_index(lambda index: index.model_copy(update={"manifests": [one, two]}))
    before = (layout.path / "index.json").read_bytes()
    with pytest.raises(AmbiguousReference, match="names 2 images"):
        layout.copy_tag("t", "u")
    with pytest.raises(TagNotFound):
        layout.copy_tag("none", "u")
    assert (layout.path / "index.json").read_bytes() == before


def test_a_platform_and_annotations_that_say_nothing_are_read(layout: Layout) -> None:
    blob = layout.put(b"one", "a/b")
    entry = {"mediaType": "a/b", "digest": blob.digest, "size": blob.size}
    empty = entry | {"platform": {}, "annotations": {REF_NAME: "empty"}}
    (layout.path / "index.json").write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [
                    empty,
                    entry | {"platform": {"os": None}, "annotations": {REF_NAME: "null", "other": None}},
                    entry | {"platform": None, "annotations": None, "urls": None},
                ],
            }
        )
    )
    assert layout.tags() == ["empty", "null"]
    assert layout.faults() == []
    assert layout.find("null")[0].annotations == {REF_NAME: "null", "other": ""}  # as Go reads it
    layout.tag("new", blob)
    assert entries(layout)[0] == empty


def test_huge_index_is_refused_before_it_is_read(layout: Layout) -> None:
    with (layout.path / "index.json").open("wb") as out:
        out.truncate(1 << 33)
    with pytest.raises(LimitExceeded):
        layout.index()
