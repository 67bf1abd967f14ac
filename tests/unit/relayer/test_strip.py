"""strip: what matches is in no layer any more, everything else is as it was."""

from __future__ import annotations

import io
import tarfile
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.transforms import RechunkRequest, RecompressRequest, SquashRequest, StripRequest
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.image.layers import open_layer, written_as
from layerfarm.jobs.image.validate import validate_image
from layerfarm.jobs.layer.names import clean
from layerfarm.jobs.layer.stack import read_members
from layerfarm.jobs.relayer.equivalence import matcher
from layerfarm.jobs.relayer.proof import proofs_of
from layerfarm.jobs.relayer.referrers import referrers
from layerfarm.jobs.store import Layout
from tests.examples import examples
from tests.trees import Node
from tests.unit.image.images import image
from tests.unit.layer.archives import archive
from tests.unit.layer.archives import entry as member
from tests.unit.layer.test_properties import CHECKS, workspace
from tests.unit.relayer.images import attestation, enter, manifest, ref, run, tree_of, two_platforms
from tests.unit.relayer.layers import Layer, stacks, tars

BASE = archive(
    member("usr/share/doc/", "dir"),
    member("usr/share/doc/a", content=b"words"),
    member("usr/bin/a", content=b"tool"),
    member("root/.ssh/key", content=b"SECRET"),
    member("lib", "link", link="usr/lib"),
)
MIDDLE = archive(member("usr/bin/b", content=b"more"), member("opt/", "dir"))
TOP = archive(
    member("root/.ssh/.wh.key"),
    member("usr/share/doc/a", content=b"other words"),
    member("usr/bin/c", "hardlink", link="usr/share/doc/a"),
    member("lib/so", content=b"so"),
)


def strip(layout: Layout, *paths: str, **fields: object) -> Resolved:
    run(StripRequest(image=ref(layout, "t"), target=ref(layout, "s"), paths=list(paths), **fields))  # type: ignore[arg-type]
    return resolve(layout, "s")


def without(tree: dict[bytes, Node], *patterns: str) -> dict[bytes, Node]:
    gone = matcher(patterns)
    left = {path: node for path, node in tree.items() if not gone(path)}
    for path, node in left.items():
        names = tuple(name for name in node.group if not gone(name))
        left[path] = Node(**{**vars(node), "group": names if len(names) > 1 else ()})
    return left


def names_in(layout: Layout, made: Resolved) -> set[bytes]:
    found = set()
    for layer, diff_id in made.layers:
        with open_layer(layout, layer, diff_id) as stream:
            found |= {read.member.name for read in read_members(stream)}
    return found


def test_a_path_is_in_no_layer_and_layers_without_it_stay(layout: Layout) -> None:
    old = image(layout, [BASE, MIDDLE, TOP])
    before = tree_of(layout, "t")
    new = strip(layout, "usr/share/doc", "root/.ssh/*")
    assert tree_of(layout, "s") == without(before, "usr/share/doc", "root/.ssh/*")
    assert new.manifest.layers[1] == old.manifest.layers[1]
    assert not any(b"doc" in name or b"key" in name for name in names_in(layout, new))
    raw = b"".join(layout.read(layer) for layer in new.manifest.layers)
    assert b"SECRET" not in raw
    assert new.config.history is None


def test_another_hard_link_of_a_removed_file_keeps_the_content(layout: Layout) -> None:
    image(layout, [BASE, MIDDLE, TOP])
    strip(layout, "usr/share")
    assert tree_of(layout, "s")[b"usr/bin/c"].content == b"other words"


def test_paths_are_those_that_links_lead_to_and_those_that_are_written(layout: Layout) -> None:
    image(layout, [BASE, MIDDLE, TOP])
    before = tree_of(layout, "t")
    strip(layout, "usr/lib/so")
    assert tree_of(layout, "s") == without(before, "usr/lib/so")
    strip(layout, "lib")
    assert tree_of(layout, "s") == without(before, "lib")


def test_the_history_and_the_proof_say_what_went(layout: Layout) -> None:
    image(layout, [BASE, MIDDLE, TOP], history=[{"created_by": "x"}] * 3, created="2020-01-01T00:00:00Z")
    new = strip(layout, "opt")
    assert [(e.created_by, e.empty_layer) for e in new.config.history or []][3:] == [("layerfarm strip opt", True)]
    (proof,) = proofs_of(layout, new.descriptor.digest)
    assert proof.allowed.removed == ["opt"] and not proof.same_tree


def test_nothing_that_matches_is_no_work(layout: Layout) -> None:
    image(layout, [BASE])
    result = run(StripRequest(image=ref(layout, "t"), target=ref(layout, "s"), paths=["nowhere"]))
    assert result.unchanged and result.warnings == ["nothing in the image matches"]
    with pytest.raises(ValidationError):
        StripRequest(image=ref(layout, "t"), target=ref(layout, "s"), paths=[])


def test_annotations_of_the_old_content_are_left_behind_and_named(layout: Layout) -> None:
    amd = image(layout, [BASE, TOP], tag="alone")
    said = attestation(layout, amd)
    two_platforms(layout, [BASE, TOP], "t", said)
    sbom = manifest(layout, "application/spdx+json", b"{}", amd.descriptor)
    enter(layout, sbom)
    result = run(StripRequest(image=ref(layout, "t"), target=ref(layout, "s"), paths=["usr/share"]))
    assert result.referrers == 0
    assert sorted(text.rpartition(" ")[2] for text in result.warnings) == sorted([said.digest, sbom.digest])
    assert all("different content" in text for text in result.warnings)
    assert len(referrers(layout, result.images[0].new)) == 1


@pytest.mark.large
@pytest.mark.parametrize("transform", ["strip", "squash", "rechunk"])
@pytest.mark.parametrize("compress", ["zstd:chunked", "estargz"])
def test_layers_made_of_layers_with_a_table_of_contents_have_one(
    layout: Layout, transform: str, compress: Literal["zstd:chunked", "estargz"]
) -> None:
    image(layout, [BASE, MIDDLE])
    same = {"image": ref(layout, "t"), "target": ref(layout, "t")}
    run(RecompressRequest(**same, compress=compress))
    requests = {
        "strip": StripRequest(**same, paths=["/usr/bin/*"]),
        "squash": SquashRequest(**same),
        "rechunk": RechunkRequest(**same),
    }
    assert not run(requests[transform]).unchanged
    for layer in resolve(layout, "t").manifest.layers:
        assert written_as(layer) == compress
    assert validate_image(layout.path, "t").errors == 0


def test_transforms_that_write_layers_put_the_files_to_prefetch_first(layout: Layout) -> None:
    image(layout, [BASE, MIDDLE])
    for number, request in enumerate((SquashRequest, RechunkRequest)):
        target = f"new{number}"
        options = {"compress": "estargz", "prefetch": ["/usr/bin/b", "none"]}
        run(request(image=ref(layout, "t"), target=ref(layout, target), **options))  # type: ignore[arg-type]
        landmarks = []
        for layer in resolve(layout, target).manifest.layers:
            with tarfile.open(layout.blob_path(layer.digest)) as tar:
                names = [clean(name.encode()) for name in tar.getnames()]
            if [b".prefetch.landmark"] in names:
                landmarks.append(names)
                assert names.index([b"usr", b"bin", b"b"]) < names.index([b".prefetch.landmark"])
        assert len(landmarks) == 1
        assert tree_of(layout, target) == tree_of(layout, "t")


def test_compression_is_kept_and_the_root_cannot_go(layout: Layout) -> None:
    image(layout, [BASE], compress=lambda raw: raw)
    old = resolve(layout, "t")
    plain = old.manifest.layers[0].model_copy(update={"media_type": "application/vnd.oci.image.layer.v1.tar"})
    layout.tag(
        "t",
        layout.put_document(
            old.manifest.model_copy(update={"layers": [plain]}), "application/vnd.oci.image.manifest.v1+json"
        ),
    )
    assert len(tree_of(layout, "t")) > 5
    new = strip(layout, "*")
    assert new.manifest.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar"
    assert set(tree_of(layout, "s")) == {b"."}


@pytest.mark.large
@pytest.mark.usefixtures("as_root")
@settings(CHECKS, max_examples=examples(120))
@given(stacks, st.lists(st.sampled_from(["a", "a/b", "*/c", "d", "b/*", "c/a/?"]), min_size=1, max_size=2))
def test_any_image_loses_what_matches_and_nothing_else(layers: list[Layer], patterns: list[str]) -> None:
    with workspace() as place:
        layout = Layout.create(place / "store")
        image(layout, tars(layers))
        try:
            before = tree_of(layout, "t")
        except LayerfarmError:
            assume(False)
        new = strip(layout, *patterns)
        assert tree_of(layout, "s") == without(before, *patterns)
        gone = matcher(patterns)
        for layer, diff_id in new.layers:
            with open_layer(layout, layer, diff_id) as stream:
                raw = b"".join(iter(lambda: stream.read(1 << 16), b""))
            for read in read_members(io.BytesIO(raw)):
                assert not gone(b"/".join(clean(read.member.name))) or b".wh." in read.member.name
