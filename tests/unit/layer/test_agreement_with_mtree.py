"""The two rooms agree: what an extraction says it wrote is what a walk of the tree finds."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from layerfarm.jobs.image.trees import portable
from layerfarm.jobs.layer import Extractor, generate_layer, unpack_layer
from layerfarm.jobs.mtree import compare, simplify, snapshot
from tests.examples import examples
from tests.trees import Node, directory, file, hardlink, in_seconds, read_tree, tree
from tests.unit.layer.test_properties import CHECKS, specs, workspace

pytestmark = pytest.mark.usefixtures("as_root")
"""Unpacking sets owners, which needs root."""


@pytest.mark.large
@settings(CHECKS, max_examples=examples(60))
@given(specs(), specs())
def test_compared_generated_and_unpacked_any_tree_becomes_any_other(
    old: dict[bytes, Node], new: dict[bytes, Node]
) -> None:
    with workspace() as place:
        lower, upper = tree(place / "lower", old), tree(place / "upper", new)
        deltas = list(simplify(compare(snapshot(lower), snapshot(upper))))
        unpack_layer(lower, io.BytesIO(b"".join(generate_layer(upper, deltas))))
        written = {delta.path for delta in deltas}
        assert _linked_within(written, read_tree(lower)) == _linked_within(written, read_tree(upper))
        assert [delta for delta in compare(snapshot(lower), snapshot(upper)) if delta.keys != ("nlink",)] == []


def _linked_within(written: set[bytes], found: dict[bytes, Node]) -> dict[bytes, Node]:
    """Hard links as one layer can tell them: a new name of a file that it does not hold is a copy (B1.8)."""
    linked = {path: tuple(sorted(written.intersection(node.group))) for path, node in found.items() if path in written}
    return {
        # Alone in its layer it has no other name that this layer could tell of.
        path: replace(node, group=linked[path] if len(linked.get(path, ())) > 1 else ())
        for path, node in in_seconds(found).items()
    }


def test_the_portable_form_of_a_tree_is_that_of_what_its_layer_makes(tmp_path: Path) -> None:
    """``build`` publishes it as the image's tree without unpacking the layer that it packed."""
    capability = bytes.fromhex("00040000000000000000000000000000")
    odd = {
        "user.a=b": b"1",
        "user.empty": b"",
        "user.kept": b"=",
        "security.selinux": b"label",
        "security.capability": b"\1\0\0\3" + capability + (100_000).to_bytes(4, "little"),
    }
    source = tree(
        tmp_path / "source",
        {
            "f": file(xattrs=odd),
            "g": hardlink("f"),
            "d": directory(xattrs={"user.a=b": b"1", "security.selinux": b"l"}),
        },
    )
    os.setxattr(source / "d", "user.kept", b"2")
    copy = tree(tmp_path / "copy", {})
    deltas = compare((), snapshot(source))
    with Extractor(copy) as extractor:
        extractor.apply(io.BytesIO(b"".join(generate_layer(source, deltas))))
        extractor.finish()
        written = list(extractor.entries())
    assert written == list(snapshot(copy))
    assert list(portable(snapshot(source))) == list(portable(written))
    kept = ((b"security.capability", b"\1\0\0\2" + capability), (b"user.kept", b"="))
    assert [entry.xattrs for entry in written] == [(), kept, kept, ((b"user.kept", b"2"),)]


@pytest.mark.large
@settings(CHECKS, max_examples=examples(60))
@given(specs(), specs())
def test_entries_of_an_extraction_are_those_of_a_walk(one: dict[bytes, Node], two: dict[bytes, Node]) -> None:
    with workspace() as place:
        first, second = tree(place / "first", one), tree(place / "second", two)
        empty = tree(place / "empty", {})
        base = list(compare(snapshot(empty), snapshot(first)))
        upper = list(simplify(compare(snapshot(first), snapshot(second))))
        root = tree(place / "root", {})
        with Extractor(root) as extractor:
            for source, deltas in ((first, base), (second, upper)):
                extractor.apply(io.BytesIO(b"".join(generate_layer(source, deltas))))
            extractor.finish()
            assert list(extractor.entries()) == list(snapshot(root))
