"""Referrers of a transformed image: copied where they stay true, else left and named; never silently lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import MalformedDocument
from layerfarm.jobs.flows.transforms import RecompressRequest, StripRequest, TransformResult
from layerfarm.jobs.image import Resolved
from layerfarm.jobs.relayer.referrers import attach, fallback_tag, referrers, speaks_of_another, spoken, tags_beside
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Layout
from layerfarm.worker.catalog.pull import copy_in
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import attestation, enter, entry, index, manifest, ref, run, two_platforms

LOW = tar(("a", b"low" * 5000), ("d", None), ("d/f", b"x"))
PROOF = "application/vnd.layerfarm.proof.v1+json"
SPDX = "application/spdx+json"
NOTARY = "application/vnd.cncf.notary.signature"


def made_over(layout: Layout, target: Layout | None = None, **fields: Any) -> TransformResult:
    fields = {"compress": "zstd", **fields}
    return run(RecompressRequest(image=ref(layout, "t"), target=ref(target or layout, "z"), **fields))


def said(layout: Layout, of: Descriptor | str) -> dict[str | None, Descriptor]:
    """Referrers of a manifest, by kind."""
    return {each.artifact_type: each for each in referrers(layout, of if isinstance(of, str) else of.digest)}


@pytest.fixture
def old(layout: Layout) -> Resolved:
    """An image with an SBOM that is signed, a signature, and an SBOM and a signature of cosign's."""
    old = image(layout, [LOW], tag="t")
    sbom = manifest(layout, SPDX, b'{"sbom":1}', old.descriptor, annotations={"by": "us"})
    enter(layout, sbom)
    enter(layout, manifest(layout, NOTARY, b"on the sbom", sbom))
    enter(layout, manifest(layout, NOTARY, b"on the image", old.descriptor))
    for ending in ("sig", "sbom", "notes"):
        layout.tag(f"{fallback_tag(old.descriptor.digest)}.{ending}", manifest(layout, "x/y", ending.encode()))
    return old


def test_referrers_of_the_old_image_are_left_and_named_by_default(layout: Layout, old: Resolved) -> None:
    result = made_over(layout)
    assert set(said(layout, result.new)) == {PROOF}
    assert result.referrers == 0
    assert len(result.warnings) == 5 and all("not copied" in text for text in result.warnings)
    assert sum("referrers: carry" in text for text in result.warnings) == 2
    for left in said(layout, old.descriptor).values():
        assert any(left.digest in text for text in result.warnings)
    assert len(said(layout, old.descriptor)) == 2


def test_referrers_that_stay_true_are_carried_when_asked_and_signatures_are_not(layout: Layout, old: Resolved) -> None:
    result = made_over(layout, referrers="carry")
    found = said(layout, result.new)
    assert set(found) == {PROOF, SPDX}
    assert (found[SPDX].annotations or {})["by"] == "us"
    after = fallback_tag(result.new)
    assert tags_beside(sorted(layout.tags()), result.new) == [f"{after}.sbom"]
    assert result.referrers == 2
    # On the image, on its SBOM (which is another manifest now), cosign's, and an unknown one.
    assert sum("a signature" in text for text in result.warnings) == 2
    assert sum("….sig" in text or "….notes" in text for text in result.warnings) == 2
    assert len(result.warnings) == 4
    assert said(layout, found[SPDX]) == {}


@pytest.mark.parametrize("damaged", [False, True])
def test_an_unreadable_untagged_manifest_is_left_with_a_warning(layout: Layout, damaged: bool) -> None:
    old = image(layout, [LOW], tag="t")
    stray = manifest(layout, SPDX, b"{}", old.descriptor) if damaged else layout.put(b"{}", MEDIA_TYPE_MANIFEST)
    enter(layout, stray)
    if damaged:
        layout.blob_path(stray.digest).write_bytes(b"{}")
    result = made_over(layout)
    assert [text for text in result.warnings if stray.digest in text and "cannot be read" in text]
    assert spoken(layout).keys() == {fallback_tag(result.new)}


def test_an_unreadable_manifest_that_is_entered_as_a_referrer_stops_the_transform(layout: Layout) -> None:
    old = image(layout, [LOW], tag="t")
    attach(layout, layout.put(b"{}", MEDIA_TYPE_MANIFEST), old.descriptor.digest)
    with pytest.raises(MalformedDocument):
        made_over(layout)
    assert layout.tags() == ["t"]


def test_asked_or_not_nothing_is_carried_to_another_content(layout: Layout, old: Resolved) -> None:
    request = StripRequest(image=ref(layout, "t"), target=ref(layout, "z"), paths=["d"], referrers="carry")
    result = run(request)
    assert set(said(layout, result.new)) == {PROOF}
    assert len(result.warnings) == 5
    assert sum("different content" in text for text in result.warnings) == 2


def test_twice_gives_the_same(layout: Layout, old: Resolved) -> None:
    first = made_over(layout, referrers="carry")
    before = layout.index()
    assert made_over(layout, referrers="carry") == first
    assert layout.index() == before


def test_an_image_that_stays_the_same_takes_all_of_it_to_another_layout(
    layout: Layout, old: Resolved, tmp_path: Path
) -> None:
    one, two = Layout.create(tmp_path / "one"), Layout.create(tmp_path / "two")
    assert made_over(layout, one, compress="gzip").unchanged
    copy_in(layout, "t", two, "z")
    for other in (one, two):
        found = said(other, old.descriptor)
        assert set(found) == {SPDX, NOTARY}
        assert set(said(other, found[SPDX])) == {NOTARY}
        there, here = spoken(other), spoken(layout)
        assert {of: sorted(what) for of, what in there.items()} == {of: sorted(what) for of, what in here.items()}


def test_referrers_under_the_fallback_tag_are_found(layout: Layout) -> None:
    old = image(layout, [LOW], tag="t")
    sbom = manifest(layout, SPDX, b"{}", old.descriptor)
    index(layout, [sbom], fallback_tag(old.descriptor.digest))
    assert made_over(layout, referrers="carry").referrers == 1


def test_a_referrer_of_an_unknown_format_is_named(layout: Layout) -> None:
    old = image(layout, [LOW], tag="t")
    odd = layout.put(b"{}", "application/vnd.oci.artifact.manifest.v1+json")
    index(layout, [odd], fallback_tag(old.descriptor.digest))
    (warning,) = made_over(layout, referrers="carry").warnings
    assert odd.digest in warning and "does not read" in warning


def test_indexes_and_their_entries_have_referrers_too(layout: Layout, tmp_path: Path) -> None:
    attested = attestation(layout, image(layout, [LOW], tag="alone"))
    two_platforms(layout, [LOW], "inner", attested)
    (inner,) = layout.find("inner")
    outer = index(layout, [inner.model_copy(update={"annotations": None})], "t")
    layout.untag("inner")
    for subject in (inner, outer, attested):
        enter(layout, manifest(layout, SPDX, subject.digest.encode(), subject))
    other = Layout.create(tmp_path / "other")
    result = made_over(layout, other, referrers="carry")
    assert result.warnings == []
    (middle,) = [one for one in other.index().manifests if one.media_type == MEDIA_TYPE_INDEX]
    assert middle.digest == result.new
    assert result.referrers == 4  # the attestation itself, and an SBOM of each of the three
    assert set(said(other, result.new)) == set(said(other, attested)) == {SPDX}


def test_the_tag_of_the_fallback_is_that_of_the_spec() -> None:
    assert fallback_tag("sha256:" + "a" * 64) == "sha256-" + "a" * 64
    assert fallback_tag("sha512:" + "b" * 128) == "sha512-" + "b" * 64
    assert fallback_tag("multihash+base58:" + "Qm" * 3) == "multihash-base58-QmQmQm"
    assert speaks_of_another("sha512-" + "b" * 64) and speaks_of_another(f"sha256-{'0' * 64}.sig")
    assert not speaks_of_another("sha256-" + "a" * 63) and not speaks_of_another("1.0")


def test_all_referrers_are_found_in_one_reading(layout: Layout, old: Resolved) -> None:
    found = spoken(layout)
    assert {subject: len(digests) for subject, digests in found.items()} == {
        fallback_tag(old.descriptor.digest): 5,
        fallback_tag(said(layout, old.descriptor)[SPDX].digest): 1,
    }
    assert not any(entry(old).digest in digests for digests in found.values())


def test_entries_of_the_index_that_cannot_be_read_refer_to_nothing(layout: Layout, old: Resolved) -> None:
    before = spoken(layout), [each.digest for each in referrers(layout, old.descriptor.digest)]
    enter(layout, layout.put(b"a file", "text/plain"))
    enter(layout, Descriptor(mediaType=MEDIA_TYPE_MANIFEST, digest=f"sha256:{'a' * 64}", size=9))
    path = layout.path / "index.json"
    document = json.loads(path.read_bytes())
    document["manifests"] = [{"digest": "none"}, *document["manifests"], {"annotations": 1}]
    path.write_text(json.dumps(document))
    layout = Layout.open(layout.path)
    assert (spoken(layout), [each.digest for each in referrers(layout, old.descriptor.digest)]) == before
