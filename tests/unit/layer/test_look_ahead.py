"""Files that upper layers replace are left out, and the tree is that of applying every layer whole."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfarm.jobs.errors import LayerError, LayerfarmError, MalformedLayer
from layerfarm.jobs.layer import ExtractOptions, Extractor
from layerfarm.jobs.layer.look_ahead import LookAhead
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.mtree.model import Entry
from tests.examples import examples
from tests.trees import Node, read_tree
from tests.unit.layer.archives import archive, entry
from tests.unit.layer.test_properties import CHECKS, workspace

pytestmark = pytest.mark.usefixtures("as_root")
"""Unpacking sets owners, which needs root."""

Member = tuple[tarfile.TarInfo, bytes]
Skip = Callable[[bytes, int], bool]
Outcome = tuple[dict[bytes, Node], list[Entry], list[str]] | tuple[type[LayerfarmError], str, object]

# Few names, so that layers meet; s and d/s are often links, so that names lead elsewhere.
PATHS = ["a", "b", "s", "d", "e", "d/a", "d/b", "d/s", "d/e", "d/e/a", "d/e/b", "s/a", "s/e", "s/e/a", "e/a", "e/d/a"]
paths = st.sampled_from(PATHS)
contents = st.sampled_from([b"", b"1", b"other", b"x" * 3000])
members = st.one_of(
    st.builds(lambda path, content, mode: entry(path, content=content, mode=mode), paths, contents, st.just(0o640)),
    st.builds(lambda path, content: entry(path, content=content, mode=0o4755, uid=7), paths, contents),
    st.builds(lambda path, content: entry(path, content=content, xattrs={"user.x": b"1"}), paths, contents),
    st.builds(lambda path, mode: entry(path, "dir", mode=mode), paths, st.sampled_from([0o755, 0o2750])),
    st.builds(lambda path, to: entry(path, "link", link=to), paths, st.sampled_from(["d", "/d", "e", "..", "a", "s"])),
    st.builds(lambda path, to: entry(path, "hardlink", link=to), paths, paths),
    st.builds(lambda path: entry(path, "fifo"), paths),
    st.builds(lambda path: entry(whiteout(path)), paths),
    st.builds(lambda path: entry(f"{path}/.wh..wh..opq"), paths),
)
layers = st.lists(st.lists(members, max_size=8).map(lambda chosen: archive(*chosen)), min_size=2, max_size=4)


def whiteout(path: str) -> str:
    head, _, base = path.rpartition("/")
    return f"{head}/.wh.{base}" if head else f".wh.{base}"


def outcome(
    root: Path, stack: list[bytes], skip: Skip | None = None, *, keep_dirlinks: bool = False, writers: int = 0
) -> Outcome:
    """Result of applying the layers to a new directory: tree, entries and warnings, or the error."""
    root.mkdir()
    os.utime(root, ns=(0, 0))
    try:
        with Extractor(root, ExtractOptions(skip=skip, keep_dirlinks=keep_dirlinks, writers=writers)) as extractor:
            for layer in stack:
                extractor.apply(io.BytesIO(layer))
            for number in extractor.skipped():
                extractor.write_skipped(number, io.BytesIO(stack[number - 1]))
            extractor.finish()
            return read_tree(root), list(extractor.entries()), extractor.warnings
    except LayerfarmError as error:
        return type(error), error.what, error.where


def look_ahead_of(stack: list[bytes]) -> LookAhead:
    look_ahead = LookAhead(Limits())
    for number, layer in enumerate(stack, 1):
        look_ahead.add(number, io.BytesIO(layer))
    return look_ahead


@pytest.mark.large
@settings(CHECKS, max_examples=examples(150))
@given(layers, st.booleans())
def test_leaving_out_what_upper_layers_replace_gives_the_tree_of_applying_all(stack: list[bytes], keep: bool) -> None:
    with workspace() as place:
        plain = outcome(place / "plain", stack, keep_dirlinks=keep)
        assert outcome(place / "fast", stack, look_ahead_of(stack).replaces, keep_dirlinks=keep) == plain
        assert outcome(place / "threads", stack, keep_dirlinks=keep, writers=3) == plain
        skip = look_ahead_of(stack).replaces
        assert outcome(place / "both", stack, skip, keep_dirlinks=keep, writers=3) == plain


@pytest.mark.large
@settings(CHECKS, max_examples=examples(150))
@given(layers, st.sets(st.tuples(paths, st.integers(1, 4))))
def test_a_wrong_guess_changes_nothing(stack: list[bytes], guesses: set[tuple[str, int]]) -> None:
    with workspace() as place:
        plain = outcome(place / "plain", stack)
        assert outcome(place / "some", stack, lambda path, layer: (path.decode(), layer) in guesses) == plain
        assert outcome(place / "all", stack, lambda path, layer: True) == plain


LOWER = archive(
    entry("d", "dir"), entry("d/old", content=b"old"), entry("d/kept", content=b"kept"), entry("top", content=b"top")
)


@pytest.mark.parametrize(
    ("upper", "replaced"),
    [
        ([entry("d/old", content=b"new")], {b"d/old"}),
        ([entry("./d//old", content=b"new")], {b"d/old"}),
        ([entry("d/old", "hardlink", link="top")], set()),
        ([entry("d/old", "fifo")], {b"d/old"}),
        ([entry("d/.wh.old")], {b"d/old"}),
        ([entry(".wh.d")], {b"d/old", b"d/kept"}),
        ([entry("d/.wh..wh..opq")], {b"d/old", b"d/kept"}),
        ([entry(".wh..wh..opq")], {b"d/old", b"d/kept", b"top"}),
        ([entry("d", "link", link="e")], {b"d/old", b"d/kept"}),
        ([entry("d", "dir", mode=0o700)], set()),
    ],
)
def test_names_that_are_replaced(upper: list[Member], replaced: set[bytes]) -> None:
    look_ahead = look_ahead_of([LOWER, archive(*upper)])
    assert {path for path in (b"d/old", b"d/kept", b"top") if look_ahead.replaces(path, 1)} == replaced
    assert not any(look_ahead.replaces(path, 2) for path in (b"d/old", b"d/kept", b"top"))


def test_replaced_files_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = [LOWER, archive(entry("d/old", content=b"new"), entry(".wh.top"))]
    opened: list[object] = []
    real = os.open

    def watched(path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            opened.append(path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", watched)
    outcome(tmp_path / "root", stack, look_ahead_of(stack).replaces)
    assert opened == [b"kept", b"old"]


def test_a_file_that_is_left_out_and_linked_to_is_written_under_the_names_that_stay(tmp_path: Path) -> None:
    stack = [
        archive(entry("a", content=b"one", mode=0o4755), entry("b", "hardlink", link="a")),
        archive(entry("c", "hardlink", link="b"), entry("a", content=b"two")),
    ]
    assert look_ahead_of(stack).replaces(b"a", 1)
    tree, entries, _ = outcome(tmp_path / "fast", stack, look_ahead_of(stack).replaces)
    assert (tree, entries) == outcome(tmp_path / "plain", stack)[:2]
    b, c = ((tmp_path / "fast" / name).stat() for name in "bc")
    assert b.st_ino == c.st_ino and b.st_mode & 0o7777 == 0o4755
    assert (tmp_path / "fast/b").read_bytes() == b"one"


def test_a_link_in_place_of_the_directory_that_its_target_is_in_is_an_error_either_way(tmp_path: Path) -> None:
    stack = [archive(entry("d/a", content=b"one")), archive(entry("d", "hardlink", link="d/a"))]
    plain = outcome(tmp_path / "plain", stack)
    assert plain[0] is MalformedLayer
    assert outcome(tmp_path / "fast", stack, lambda path, layer: True) == plain


def test_a_tree_with_files_left_out_is_never_finished(tmp_path: Path) -> None:
    with Extractor(tmp_path, ExtractOptions(skip=lambda path, layer: True)) as extractor:
        extractor.apply(io.BytesIO(LOWER))
        assert extractor.skipped() == [1]
        with pytest.raises(LayerError, match="skipped"):
            extractor.finish()


def test_nothing_is_left_out_of_a_tree_that_was_not_empty(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(LayerError, match="empty at first"):
        Extractor(tmp_path, ExtractOptions(skip=lambda path, layer: True))


def test_a_layer_that_breaks_off_is_known_up_to_there() -> None:
    look_ahead = LookAhead(Limits())
    cut = archive(entry("a", content=b"1"), entry("b", content=bytes(4000)))[:3000]
    with pytest.raises(LayerError):
        look_ahead.add(2, io.BytesIO(cut))
    assert look_ahead.replaces(b"a", 1)


def test_a_stopped_look_ahead_reads_no_further() -> None:
    look_ahead = LookAhead(Limits())
    look_ahead.stop()
    look_ahead.add(2, io.BytesIO(LOWER))
    assert not look_ahead.replaces(b"top", 1)
