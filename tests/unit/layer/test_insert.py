"""Layers of ``umoci insert``: umoci.md B1.18."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerError, RequestError, RootfsNotFound
from layerfarm.jobs.layer import GenerateOptions, IdMap, insert_layer, whiteout_layer
from tests.trees import directory, file, hardlink, in_seconds, read_tree, symlink, tree
from tests.unit.layer.archives import apply, members, names


def insert(source: Path, target: bytes, **more: object) -> bytes:
    return b"".join(insert_layer(source, target, **more))  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    spec = {".": directory(mode=0o711), "b/x": file(b"x", mode=0o4755), "a": symlink("b"), "c": hardlink("b/x")}
    return tree(tmp_path / "source", spec)


def test_B1_18_a_directory_goes_to_its_target_with_its_own_entry(source: Path) -> None:
    raw = insert(source, b"/opt/./app/")
    assert names(raw) == ["opt/app/", "opt/app/a", "opt/app/b/", "opt/app/b/x", "opt/app/c"]
    assert members(raw)[0].mode == 0o711
    assert members(raw)[-1].linkname == "opt/app/b/x"
    assert members(raw)[-1].mode == 0o4755
    assert raw.endswith(bytes(1024))


def test_B1_18_opaque_hides_what_lower_layers_have_there(source: Path, tmp_path: Path) -> None:
    raw = insert(source, b"opt", opaque=True)
    assert names(raw)[:2] == ["opt/", "opt/.wh..wh..opq"]
    lower = tree(tmp_path / "lower", {"opt/old": file(), "keep": file()})
    apply(lower, raw)
    found = in_seconds(read_tree(lower))
    wanted = in_seconds(read_tree(source))
    assert {path[4:]: node.content for path, node in found.items() if path.startswith(b"opt/")} == {
        path: node.content for path, node in wanted.items() if path != b"."
    }
    assert b"keep" in found


def test_B1_18_opaque_at_the_root_is_a_plain_opaque_whiteout(source: Path) -> None:
    assert names(insert(source, b"/", opaque=True))[:3] == [".", ".wh..wh..opq", "a"]


def test_B1_18_a_single_file_or_link_goes_to_its_target(source: Path) -> None:
    assert [(m.name, m.type, m.size) for m in members(insert(source / "b/x", b"bin/tool"))] == [("bin/tool", b"0", 1)]
    assert [(m.name, m.linkname) for m in members(insert(source / "a", b"l", opaque=True))] == [("l", "b")]


def test_B1_18_whiteout_deletes_one_path() -> None:
    raw = b"".join(whiteout_layer(b"/etc//passwd"))
    assert names(raw) == ["etc/.wh.passwd"]
    assert raw.endswith(bytes(1024))


@pytest.mark.parametrize("target", [b"", b"/", b"..", b"."])
def test_B1_18_the_root_can_be_neither_deleted_nor_replaced_by_a_file(source: Path, target: bytes) -> None:
    with pytest.raises(RequestError):
        list(whiteout_layer(target))
    with pytest.raises(RequestError):
        insert(source / "a", target)


@pytest.mark.parametrize("target", [b".wh.x", b"a/.wh..wh..opq", b".wh.d/x"])
def test_B1_9_a_target_that_looks_like_a_whiteout_is_an_error(source: Path, target: bytes) -> None:
    with pytest.raises(LayerError):
        insert(source, target)
    with pytest.raises(LayerError):
        list(whiteout_layer(target))


def test_a_source_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none/x"):
        with pytest.raises(RootfsNotFound):
            insert(path, b"x")


def test_owners_are_mapped_and_the_bytes_repeat(source: Path) -> None:
    os.lchown(source / "a", 1005, 1000)
    with pytest.raises(LayerError, match="host id"):
        insert(source, b"x", options=GenerateOptions(uid_map=IdMap.of((0, 1000, 10))))
    assert insert(source, b"x") == insert(source, b"x")


@pytest.mark.parametrize("name", [".", "sub/.."])
def test_the_current_directory_can_be_inserted(source: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "sub").mkdir()
    monkeypatch.chdir(source)
    assert names(insert(Path(name), b"t"))[:2] == ["t/", "t/a"]
