"""recompress: other bytes, the same tars, nothing else changed and nothing silently lost."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from layerfarm.jobs.errors import (
    AmbiguousReference,
    DigestMismatch,
    LayerfarmError,
    MalformedDocument,
    RequestError,
    TagNotFound,
    UnsupportedMediaType,
)
from layerfarm.jobs.flows.transforms import RecompressRequest
from layerfarm.jobs.image import resolve, resolve_walk, write_image
from layerfarm.jobs.image.resolve import read_index
from layerfarm.jobs.image.trees import stack_of
from layerfarm.jobs.image.validate import validate_image
from layerfarm.jobs.relayer.indexes import read_images
from layerfarm.jobs.relayer.proof import proofs_of, verify_image
from layerfarm.jobs.relayer.referrers import fallback_index, fallback_tag, referrers
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.descriptor import named
from tests.examples import examples
from tests.unit.image.images import image, tar
from tests.unit.layer.archives import entry as member
from tests.unit.layer.test_properties import CHECKS, workspace
from tests.unit.relayer.images import (
    attestation,
    entry,
    index,
    manifest,
    platform,
    ref,
    run,
    tree_of,
    two_platforms,
)
from tests.unit.relayer.layers import Layer, stacks, tars

TOC = "io.github.containers.zstd-chunked.manifest-checksum"
LOW = tar(("a", b"low" * 5000), ("d", None), ("d/f", b"x"))
HIGH = tar(("a", b"high" * 3000))


def request(layout: Layout, target: Layout | None = None, **fields: object) -> RecompressRequest:
    fields = {"compress": "zstd", **fields}
    return RecompressRequest(image=ref(layout, "t"), target=ref(target or layout, "z"), **fields)  # type: ignore[arg-type]


def test_tars_config_and_everything_unknown_stay(layout: Layout) -> None:
    old = image(layout, [LOW, HIGH], config={"Env": ["A=1"], "New": {"x": 1}}, history=[{"created_by": "x"}] * 2)
    result = run(request(layout))
    new = resolve(layout, "z")
    assert new.config == old.config
    assert new.manifest.config.digest == old.manifest.config.digest
    assert [layer.media_type for layer in new.manifest.layers] == ["application/vnd.oci.image.layer.v1.tar+zstd"] * 2
    (change,) = result.images
    assert (change.old, change.new) == (old.descriptor.digest, new.descriptor.digest)
    assert (change.platform, change.layers_before, change.layers_after) == ("linux/amd64", 2, 2)
    assert change.bytes_before == sum(layer.size for layer in old.manifest.layers)
    assert change.bytes_after == sum(layer.size for layer in new.manifest.layers)
    assert not result.unchanged and result.warnings == []
    assert resolve(layout, "t").descriptor.digest == old.descriptor.digest


def test_the_new_layers_hold_the_old_tars(layout: Layout) -> None:
    image(layout, [LOW, HIGH])
    run(request(layout, compress="none"))
    new = resolve(layout, "z")
    assert [layout.read(layer) for layer in new.manifest.layers] == [LOW, HIGH]


def test_the_proof_is_a_referrer_of_the_new_image(layout: Layout) -> None:
    old = image(layout, [LOW])
    result = run(request(layout))
    (proof,) = proofs_of(layout, result.images[0].new)
    assert (proof.old.digest, proof.new.digest) == (old.descriptor.digest, result.images[0].new)
    assert (proof.method, proof.diff_ids) == ("layers", old.config.rootfs.diff_ids)
    assert proof.operation == "recompress" and proof.same_tree
    assert proof.codecs[0].startswith("zstd;libzstd=") and proof.parameters["codec"] == proof.codecs[0]
    (found,) = referrers(layout, result.images[0].new)
    assert found.digest == result.images[0].proof
    assert found.artifact_type == "application/vnd.layerfarm.proof.v1+json"
    assert layout.tags() == ["t", "z"]


def test_a_registry_without_an_api_for_referrers_gets_a_tag(layout: Layout) -> None:
    image(layout, [LOW])
    digest = run(request(layout)).new
    assert fallback_tag(digest) == "sha256-" + digest[7:]
    (listed,) = fallback_index(referrers(layout, digest)).manifests
    assert listed.artifact_type == "application/vnd.layerfarm.proof.v1+json"
    assert set(listed.annotations or {}) == {"dev.layerfarm.operation", "dev.layerfarm.old"}
    assert referrers(layout, resolve(layout, "t").descriptor.digest) == []


def test_twice_gives_the_same_and_leaves_one_proof(layout: Layout) -> None:
    image(layout, [LOW, HIGH])
    first = run(request(layout))
    assert run(request(layout)) == first
    assert len(referrers(layout, first.new)) == 1


def test_layers_with_that_compression_stay(layout: Layout) -> None:
    old = image(layout, [LOW])
    result = run(request(layout, compress="gzip"))
    assert result.unchanged and result.new == result.old == old.descriptor.digest
    assert result.images[0].proof is None
    assert resolve(layout, "z").descriptor.digest == old.descriptor.digest


def test_a_level_is_meant_for_layers_of_other_tools_too(layout: Layout) -> None:
    image(layout, [LOW])
    first = run(request(layout, compress="gzip", level=9))
    assert not first.unchanged
    again = RecompressRequest(image=ref(layout, "z"), target=ref(layout, "zz"), compress="gzip", level=9)
    assert run(again).unchanged


def test_to_zstd_chunked_and_back(layout: Layout) -> None:
    image(layout, [LOW, HIGH])
    result = run(request(layout, compress="zstd:chunked"))
    assert result.warnings == []
    new = resolve(layout, "z")
    assert [layer.media_type for layer in new.manifest.layers] == ["application/vnd.oci.image.layer.v1.tar+zstd"] * 2
    assert all(TOC in (layer.annotations or {}) for layer in new.manifest.layers)
    assert validate_image(layout.path, "z").findings == []
    layout.tag("t", new.path[0])
    assert run(request(layout, compress="zstd:chunked")).unchanged
    stronger = run(request(layout, compress="zstd:chunked", level=9))
    assert (stronger.unchanged, stronger.warnings) == (False, [])
    back = run(request(layout, compress="zstd"))
    assert f"annotation {TOC!r} described a layer's old bytes and was removed" in back.warnings
    assert not any(TOC in (layer.annotations or {}) for layer in resolve(layout, "z").manifest.layers)


STARGZ = "containerd.io/snapshot/stargz/toc.digest"


def ended(tar: bytes) -> bytes:
    """A tar that ends as layerfarm's do: tarfile fills a whole record."""
    content = tar.rstrip(b"\0")
    return content + bytes(-len(content) % 512 + 1024)


def test_to_estargz_and_back_gives_the_old_tars(layout: Layout) -> None:
    tars = [ended(LOW), ended(HIGH)]
    old = image(layout, tars, history=[{"created_by": "x"}] * 2, config={"New": {"x": 1}})
    result = run(request(layout, compress="estargz"))
    assert result.warnings == []
    new = resolve(layout, "z")
    assert [layer.media_type for layer in new.manifest.layers] == ["application/vnd.oci.image.layer.v1.tar+gzip"] * 2
    assert all(STARGZ in (layer.annotations or {}) for layer in new.manifest.layers)
    for layer, diff_id in new.layers:
        tar = gzip.decompress(layout.read(layer))
        assert diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
        assert b"stargz.index.json" in tar and b".no.prefetch.landmark" in tar
    same = new.config.model_copy(update={"rootfs": old.config.rootfs})
    assert same == old.config and new.config != old.config
    assert validate_image(layout.path, "z").findings == []
    (proof,) = proofs_of(layout, result.images[0].new)
    assert (proof.method, proof.same_tree) == ("tree", True)
    assert verify_image(layout, "z").findings == []
    assert tree_of(layout, "z") == tree_of(layout, "t")
    assert facts(layout, "z") == facts(layout, "t")

    layout.tag("t", new.path[0])
    assert run(request(layout, compress="estargz")).unchanged
    stronger = run(request(layout, compress="estargz", level=9))
    assert (stronger.unchanged, stronger.warnings) == (False, [])
    back = run(request(layout, compress="gzip"))
    assert f"annotation {STARGZ!r} described a layer's old bytes and was removed" in back.warnings
    assert resolve(layout, "z").config == old.config
    assert [gzip.decompress(layout.read(layer)) for layer in resolve(layout, "z").manifest.layers] == tars


def facts(layout: Layout, tag: str) -> list[object]:
    return list(stack_of(layout, resolve(layout, tag)).entries())


def test_equal_layers_are_equal_trees_whatever_their_annotations(layout: Layout) -> None:
    """skopeo and others drop the annotations of a layer that they copy byte for byte."""
    image(layout, [ended(LOW)])
    run(request(layout, compress="estargz"))
    new = resolve(layout, "z")
    (layer,) = new.manifest.layers
    bare = new.manifest.model_copy(update={"layers": [layer.model_copy(update={"annotations": None})]})
    layout.tag("bare", write_image(layout, (), bare, new.config).path[0])
    assert tree_of(layout, "bare") == tree_of(layout, "t")
    assert validate_image(layout.path, "bare").findings == []
    back = RecompressRequest(image=ref(layout, "bare"), target=ref(layout, "back"), compress="zstd")
    assert run(back).warnings == []
    assert resolve(layout, "back").config.rootfs == resolve(layout, "t").config.rootfs


def test_files_to_prefetch_of_every_layer_come_first(layout: Layout) -> None:
    image(layout, [LOW, tar(("b", b"1"), ("c", b"2"))])
    run(request(layout, compress="estargz"))
    layout.tag("t", resolve(layout, "z").path[0])
    result = run(request(layout, compress="estargz", prefetch=["/d/f", "other"]))
    assert not result.unchanged
    low, high = (gzip.decompress(layout.read(layer)) for layer in resolve(layout, "z").manifest.layers)
    with tarfile.open(fileobj=io.BytesIO(low)) as archive:
        assert archive.getnames() == ["d", "d/f", ".prefetch.landmark", "a", "stargz.index.json"]
    assert b".no.prefetch.landmark" in high
    assert validate_image(layout.path, "z").findings == []
    assert tree_of(layout, "z") == tree_of(layout, "t")
    with pytest.raises(RequestError, match="prefetch"):
        run(request(layout, compress="gzip", prefetch=["a"]))


def test_a_layer_with_a_file_of_a_name_that_estargz_reserves_stays_as_it_is(layout: Layout) -> None:
    image(layout, [tar(("stargz.index.json", b"{}"), ("a", b"x"))])
    (warning,) = run(request(layout, compress="estargz")).warnings
    assert "reserves the name" in warning
    assert tree_of(layout, "z") == tree_of(layout, "t")
    assert b"stargz.index.json" in tree_of(layout, "z")


def test_a_layer_that_no_table_of_contents_describes_is_done_once_with_a_warning(layout: Layout) -> None:
    image(layout, [tar(("a", b"1"), ("./a", b"2"))])
    (warning,) = run(request(layout, compress="zstd:chunked")).warnings
    (layer,) = resolve(layout, "z").manifest.layers
    assert layer.digest in warning and "several entries of one name: a" in warning
    assert TOC not in (layer.annotations or {})
    layout.tag("t", resolve(layout, "z").path[0])
    assert run(request(layout, compress="zstd:chunked")).unchanged


def test_the_lowest_layers_can_be_kept(layout: Layout) -> None:
    old = image(layout, [LOW, HIGH])
    run(request(layout, keep=1))
    new = resolve(layout, "z")
    assert new.manifest.layers[0] == old.manifest.layers[0]
    assert new.manifest.layers[1].media_type.endswith("+zstd")
    assert run(request(layout, keep=2)).unchanged


def test_into_another_store_goes_all_that_the_image_needs(layout: Layout, tmp_path: Path) -> None:
    image(layout, [LOW, HIGH])
    other = Layout.create(tmp_path / "other")
    run(request(layout, other, keep=1))
    new = resolve(other, "z")
    assert all(other.has(blob) for blob in new.blobs)
    assert layout.tags() == ["t"]
    run(request(layout, other, compress="gzip"))
    assert all(other.has(blob) for blob in resolve(other, "z").blobs)


def test_every_platform_of_an_index_and_all_of_its_entries(layout: Layout, tmp_path: Path) -> None:
    first = image(layout, [LOW, HIGH], tag="alone")
    said, sbom = attestation(layout, first), manifest(layout, "application/spdx+json", b"{}")
    amd, arm = two_platforms(layout, [LOW, HIGH], "t", said, sbom)
    assert amd.descriptor.digest == first.descriptor.digest
    other = Layout.create(tmp_path / "other")
    for target in (layout, other):
        result = run(request(layout, target))
        assert [change.platform for change in result.images] == ["linux/amd64", "linux/arm64/v8"]
        old, new = (read_index(where, where.find(tag)[0]) for where, tag in ((layout, "t"), (target, "z")))
        assert new.annotations == {"of": "index"} and new.model_extra == {"unknown": {"kept": 1}}
        assert [child.platform for child in new.manifests] == [child.platform for child in old.manifests]
        assert [child.digest for child in new.manifests[:2]] == [change.new for change in result.images]
        assert new.manifests[2].digest == said.digest
        assert (new.manifests[2].annotations or {})["vnd.docker.reference.digest"] == result.images[0].new
        assert new.manifests[3] == sbom
        assert result.referrers == 1 and result.warnings == []
        assert target.read(said) and target.read(sbom)
        # One blob for the layer that both platforms share.
        shared = {resolve_walk(target, [child]).manifest.layers[0].digest for child in new.manifests[:2]}
        assert len(shared) == 1
        assert result.bytes_before == sum(layer.size for layer in amd.manifest.layers)
    assert arm.config.architecture == "arm64"


def test_an_image_that_an_index_names_twice_is_one_and_two_of_one_tag_are_ambiguous(layout: Layout) -> None:
    one, two = (image(layout, [tar(("f", content))], tag=tag) for content, tag in ((b"1", "one"), (b"2", "two")))
    index(layout, [entry(one), entry(one)], "twice")
    assert [each.descriptor.digest for each in read_images(layout, "twice").images] == [one.descriptor.digest]
    both = [named(each.descriptor, "both") for each in (one, two)]
    layout.update_index(lambda old: old.model_copy(update={"manifests": [*old.manifests, *both]}))
    with pytest.raises(AmbiguousReference, match="names 2 images"):
        read_images(layout, "both")


def test_annotations_about_the_old_bytes_are_removed_with_a_warning(layout: Layout) -> None:
    old = image(layout, [LOW])
    layer = old.manifest.layers[0].model_copy(
        update={"annotations": {"io.github.containers.zstd-chunked.manifest-checksum": "x", "mine": "y"}}
    )
    changed = old.manifest.model_copy(update={"layers": [layer]})
    layout.tag("t", layout.put_document(changed, "application/vnd.oci.image.manifest.v1+json"))
    result = run(request(layout))
    annotations = resolve(layout, "z").manifest.layers[0].annotations or {}
    assert annotations["mine"] == "y" and not any("chunked" in key for key in annotations)
    assert len(result.warnings) == 1


def test_layers_from_elsewhere_are_left_alone(layout: Layout) -> None:
    old = image(layout, [LOW])
    foreign = Descriptor.model_validate(
        {
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": f"sha256:{'1' * 64}",
            "size": 7,
            "urls": ["https://example.org/layer"],
        }
    )
    config = old.config.model_copy(
        update={
            "rootfs": old.config.rootfs.model_copy(
                update={"diff_ids": [f"sha256:{'2' * 64}", *old.config.rootfs.diff_ids]}
            )
        }
    )
    made = write_image(layout, (), old.manifest.model_copy(update={"layers": [foreign, *old.manifest.layers]}), config)
    layout.tag("t", made.path[0])
    run(request(layout))
    assert resolve(layout, "z").manifest.layers[0] == foreign


def test_a_layer_that_is_not_what_its_diff_id_says_makes_no_image(layout: Layout) -> None:
    image(layout, [LOW], diff_ids=lambda ids: [f"sha256:{'0' * 64}"])
    with pytest.raises(DigestMismatch, match="diff_id"):
        run(request(layout))
    assert layout.tags() == ["t"]
    assert not list((layout.path / ".layerfarm/work").iterdir())


def test_an_image_that_is_not_oci_is_refused(layout: Layout) -> None:
    docker = layout.put(b"{}", "application/vnd.docker.distribution.manifest.v2+json")
    layout.tag("t", docker)
    with pytest.raises(UnsupportedMediaType, match=r"skopeo|docker"):
        run(request(layout))
    index(layout, [entry(image(layout, [LOW], tag="ok")), docker], "t")
    with pytest.raises(UnsupportedMediaType):
        run(request(layout))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"{}", b"\xff", b'{"config": 5}', b'{"config": {"mediaType": "a"}}'])
def test_hostile_documents_in_an_index_are_a_clear_error(layout: Layout, raw: bytes) -> None:
    bad = layout.put(raw, "application/vnd.oci.image.manifest.v1+json")
    index(layout, [entry(image(layout, [LOW], tag="ok")), bad], "t")
    with pytest.raises(MalformedDocument):
        run(request(layout))


def test_unknown_layer_types_are_refused(layout: Layout) -> None:
    old = image(layout, [LOW])
    odd = old.manifest.layers[0].model_copy(update={"media_type": "application/x-erofs"})
    changed = old.manifest.model_copy(update={"layers": [odd]})
    layout.tag("t", layout.put_document(changed, "application/vnd.oci.image.manifest.v1+json"))
    with pytest.raises(UnsupportedMediaType, match="erofs"):
        run(request(layout))


def test_what_makes_no_sense_is_a_clear_error(layout: Layout) -> None:
    image(layout, [LOW])
    with pytest.raises(RequestError, match="levels"):
        run(request(layout, compress="zstd", level=99))
    with pytest.raises(TagNotFound):
        run(RecompressRequest(image=ref(layout, "no"), target=ref(layout, "z"), compress="zstd"))
    index(layout, [], "empty")
    with pytest.raises(TagNotFound):
        run(RecompressRequest(image=ref(layout, "empty"), target=ref(layout, "z"), compress="zstd"))


def test_gzip_members_of_other_tools_are_read(layout: Layout) -> None:
    image(layout, [LOW], compress=lambda raw: gzip.compress(raw[:700], mtime=5) + gzip.compress(raw[700:], mtime=6))
    run(request(layout, compress="none"))
    assert layout.read(resolve(layout, "z").manifest.layers[0]) == LOW


def test_platform_is_that_of_the_config(layout: Layout) -> None:
    assert platform(image(layout, [LOW])) == {"os": "linux", "architecture": "amd64"}


@pytest.mark.large
@pytest.mark.usefixtures("as_root")
@settings(CHECKS, max_examples=examples(20))
@given(stacks, st.lists(st.sampled_from(["a", "a/b", "c", "/d", "b/a/c"]), max_size=3))
@example([[member("a/a"), member("a", "link", link="a")]], ["a"])
def test_any_image_is_the_same_tree_as_estargz_and_back(layers: list[Layer], prefetch: list[str]) -> None:
    with workspace() as place:
        layout = Layout.create(place / "store")
        image(layout, tars(layers))
        try:
            before = tree_of(layout, "t")
        except LayerfarmError:
            assume(False)
        run(request(layout, compress="estargz", prefetch=prefetch))
        assert tree_of(layout, "z") == before
        assert [finding for finding in validate_image(layout.path, "z").findings if finding.code == "toc"] == []
        run(RecompressRequest(image=ref(layout, "z"), target=ref(layout, "back"), compress="zstd"))
        assert tree_of(layout, "back") == before
