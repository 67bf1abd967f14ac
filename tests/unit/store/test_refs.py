from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from layerfarm.jobs.errors import InvalidReference
from layerfarm.jobs.store import REF_NAME, Descriptor, Index, Layout, check_refname

A = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1})
B = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "b" * 64, "size": 2})


def named(descriptor: Descriptor, tag: str) -> Descriptor:
    return descriptor.model_copy(update={"annotations": {REF_NAME: tag}})


def test_tag_find_replace_and_untag(layout: Layout) -> None:
    layout.tag("one", A)
    layout.tag("two", A)
    layout.tag("one", B)
    assert layout.tags() == ["two", "one"]
    assert layout.find("one") == [named(B, "one")]
    assert layout.find("two") == [named(A, "two")]
    assert layout.untag("one")
    assert not layout.untag("one")
    assert layout.tags() == ["two"]


def test_a_moved_tag_goes_to_the_end_as_in_umoci(layout: Layout) -> None:
    def order() -> list[str]:
        index = json.loads((layout.path / "index.json").read_bytes())
        return [entry["annotations"][REF_NAME] for entry in index["manifests"]]

    for tag, descriptor in (("one", A), ("two", A), ("one", B)):
        layout.tag(tag, descriptor)
    assert order() == ["two", "one"]
    layout.tag("two", A)  # not moved: it names A already
    assert order() == ["two", "one"]


def test_tag_of_a_tagged_descriptor_keeps_its_other_annotations(layout: Layout) -> None:
    layout.tag("new", A.model_copy(update={"annotations": {REF_NAME: "old", "x": "y"}}))
    assert layout.find("new")[0].annotations == {REF_NAME: "new", "x": "y"}


def test_replacing_an_ambiguous_tag_leaves_one(layout: Layout) -> None:
    layout.update_index(lambda index: index.model_copy(update={"manifests": [named(A, "t"), named(B, "t")]}))
    assert layout.find("t") == [named(A, "t"), named(B, "t")]
    assert layout.tags() == ["t"]
    layout.tag("t", A)
    assert layout.find("t") == [named(A, "t")]


def test_untagged_manifests_stay(layout: Layout) -> None:
    layout.update_index(lambda index: index.model_copy(update={"manifests": [A]}))
    layout.tag("t", B)
    layout.untag("t")
    assert layout.index().manifests == [A]


def test_B7_unknown_fields_and_the_order_of_keys_survive_an_update(layout: Layout) -> None:
    text = (
        '{"future":{"z":1,"a":[null]},"manifests":[{"size":1,"digest":"sha256:%s","mediaType":"a/b","later":true,'
        '"annotations":{"k":"v"}}],"schemaVersion":2}' % ("a" * 64)
    )
    (layout.path / "index.json").write_text(text)
    layout.tag("t", B)
    layout.untag("t")
    assert (layout.path / "index.json").read_text() == text


def test_failed_update_changes_nothing(layout: Layout) -> None:
    before = (layout.path / "index.json").read_bytes()

    def change(index: Index) -> Index:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        layout.update_index(change)
    with pytest.raises(InvalidReference):
        layout.tag("not valid", A)
    assert (layout.path / "index.json").read_bytes() == before
    assert os.listdir(layout.path / ".layerfarm" / "ingest") == []
    layout.tag("t", A)  # the lock is free


DOCKER = ["v1_", "main__2024", "1.0-", "_edge", "1..0", "my__app:1", "team/my---app:v1_", "a/b:_", "new/a:" + "x" * 128]


@pytest.mark.parametrize("text", ["a", "latest", "1.2.3", "a/b/c", "a--b", "v1.0+x@y:z_w", "A-b", *DOCKER])
def test_refname_grammar_accepts(text: str) -> None:
    assert check_refname(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "-a", ".a", "..", "a/..", "a//b", "/a", "a/", "a..b/c", "a---/b", "_a/b", "a:", "a:-b"),
        *("a+:b-", "a\n", "ä", "a\0", "a" * 10 + "!", "a:" + "x" * 129 + "-"),
    ],
)
def test_refname_grammar_refuses(text: str) -> None:
    with pytest.raises(InvalidReference):
        check_refname(text)


def test_refname_of_a_million_characters_is_checked_at_once() -> None:
    with pytest.raises(InvalidReference) as caught:
        check_refname("a-" * 500_000)
    assert len(str(caught.value)) < 500


def _tag_many(path: Path, writer: int, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    layout = Layout.open(path)
    for number in range(5):
        layout.tag(f"w{writer}-{number}", A)
        layout.tag(f"shared{number}", A)


@pytest.mark.large
def test_B7_no_tag_is_lost_between_32_processes(layout: Layout) -> None:
    """umoci keeps 10 of 32 (umoci #146)."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(32)
    writers = [context.Process(target=_tag_many, args=(layout.path, writer, start)) for writer in range(32)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 32
    wanted = {f"w{writer}-{number}" for writer in range(32) for number in range(5)}
    tags = layout.tags()
    assert set(tags) == wanted | {f"shared{number}" for number in range(5)}
    assert len(tags) == 165
    assert len(json.loads((layout.path / "index.json").read_bytes())["manifests"]) == 165


def test_B7_no_tag_is_lost_between_threads(layout: Layout) -> None:
    """An fcntl lock does not keep threads of one process apart."""
    start = threading.Barrier(8)
    writers = [threading.Thread(target=_tag_many, args=(layout.path, writer, start)) for writer in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(layout.tags()) == 45
