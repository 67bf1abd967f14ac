"""Proofs: what is not the same is found and named; a proof is checked again, and lives as long as its image."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import assume, given, settings

from layerfarm.jobs.errors import LayerfarmError, MalformedDocument, NotEquivalent
from layerfarm.jobs.flows.transforms import RecompressRequest, SquashRequest
from layerfarm.jobs.image import Resolved, resolve, tree_of
from layerfarm.jobs.image.trees import stack_of, tree_digest
from layerfarm.jobs.relayer.equivalence import Tolerance, digest_of, facts_of
from layerfarm.jobs.relayer.proof import Proof, proofs_of, prove, put_proof, verify_image
from layerfarm.jobs.relayer.referrers import MEDIA_TYPE_PROOF, referrers
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.gc import collect
from tests.examples import examples
from tests.unit.image.images import image
from tests.unit.layer.archives import archive, entry
from tests.unit.layer.test_properties import CHECKS, workspace
from tests.unit.relayer.images import enter, manifest, ref, run
from tests.unit.relayer.images import tree_of as unpacked
from tests.unit.relayer.layers import Layer, stacks, tars


def layer(**changes: object) -> bytes:
    """A tree with one thing of each kind, of which one may be another."""
    given = {
        "file": entry("d/file", content=b"content", mode=0o640, uid=5, gid=6, mtime=100, xattrs={"user.a": b"1"}),
        "dir": entry("d/", "dir", mode=0o711, mtime=50),
        "link": entry("link", "link", link="d/file"),
        "dev": entry("dev", "char", device=(1, 3)),
        "one": entry("one", content=b"same"),
        "two": entry("two", "hardlink", link="one"),
    }
    return archive(*(value for value in {**given, **changes}.values() if value is not None))  # type: ignore[misc]


def both(layout: Layout, old: bytes, new: bytes, allowed: Tolerance | None = None) -> Proof:
    return prove(
        layout,
        image(layout, [old], tag="old"),
        layout,
        image(layout, [new], tag="new"),
        allowed or Tolerance(),
        operation="test",
    )


CHANGES = {
    "content": (
        {"file": entry("d/file", content=b"CONTENT", mode=0o640, uid=5, gid=6, mtime=100, xattrs={"user.a": b"1"})},
        "d/file: sha256",
    ),
    "mode": ({"dir": entry("d/", "dir", mode=0o751, mtime=50)}, "d: mode is 0751, was 0711"),
    "owner": ({"link": entry("link", "link", link="d/file", uid=9)}, "link: uid is 9, was 0"),
    "group": ({"dev": entry("dev", "char", device=(1, 3), gid=2)}, "dev: gid is 2"),
    "mtime": ({"dir": entry("d/", "dir", mode=0o711, mtime=51)}, "d: mtime"),
    "nanosecond": ({"dir": entry("d/", "dir", mode=0o711, pax={"mtime": "50.000000001"})}, "d: mtime is 50000000001"),
    "target": ({"link": entry("link", "link", link="elsewhere")}, "link: "),
    "device": ({"dev": entry("dev", "char", device=(1, 5))}, r"dev: device is \(1, 5\), was \(1, 3\)"),
    "device type": ({"dev": entry("dev", "block", device=(1, 3))}, "dev: type is block, was char"),
    "xattr": (
        {"file": entry("d/file", content=b"content", mode=0o640, uid=5, gid=6, mtime=100, xattrs={"user.a": b"2"})},
        "d/file: xattrs differ in user.a",
    ),
    "xattr gone": (
        {"file": entry("d/file", content=b"content", mode=0o640, uid=5, gid=6, mtime=100)},
        "xattrs differ in user.a",
    ),
    "missing": ({"link": None}, "link: the link is missing"),
    "extra": ({"more": entry("more")}, "more: the file is not in the old image"),
    "split link": ({"two": entry("two", content=b"same")}, "names differ"),
    "file for directory": ({"file": None, "dir": entry("d", content=b"")}, "d: "),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_kind_of_difference_is_named(layout: Layout, what: str) -> None:
    changed, said = CHANGES[what]
    with pytest.raises(NotEquivalent, match=said):
        both(layout, layer(), layer(**changed))  # type: ignore[arg-type]


def test_the_same_tree_from_other_layers_is_equal(layout: Layout) -> None:
    new = archive(
        entry("two", content=b"same"),
        entry("one", "hardlink", link="two"),
        entry("dev", "char", device=(1, 3)),
        entry("link", "link", link="d/file"),
        entry("d/", "dir", mode=0o711, mtime=50),
        entry("d/file", content=b"content", mode=0o640, uid=5, gid=6, mtime=100, xattrs={"user.a": b"1"}),
    )
    proof = both(layout, layer(), new)
    assert (proof.method, proof.entries) == ("tree", 7)
    assert proof.mtree == tree_digest(tree_of(layout, resolve(layout, "new")))


def test_only_differences_that_the_policy_allows_are_accepted(layout: Layout) -> None:
    late = {"dir": entry("d/", "dir", mode=0o711, mtime=40)}
    both(layout, layer(), layer(**late), Tolerance(clamp=40))
    with pytest.raises(NotEquivalent, match="d: mtime"):
        both(layout, layer(), layer(**late), Tolerance(clamp=45))
    exact = entry("d/", "dir", mode=0o711, pax={"mtime": "50.25"})
    both(layout, layer(dir=exact), layer(), Tolerance(whole_seconds=True))
    bare = entry("d/file", content=b"content", mode=0o640, uid=5, gid=6, mtime=100)
    both(layout, layer(), layer(file=bare), Tolerance(without_xattrs=("user.a",)))
    both(layout, layer(), layer(two=None), Tolerance(removed=("two",)))
    with pytest.raises(NotEquivalent, match="two: the file is not in the old image"):
        both(layout, layer(), layer(), Tolerance(removed=("two",)))


def test_only_the_first_differences_are_named(layout: Layout) -> None:
    with pytest.raises(NotEquivalent, match=r"f04: the file is missing and 15 more"):
        both(layout, archive(*(entry(f"f{number:02}") for number in range(20))), archive(entry("./", "dir", mtime=0)))


@pytest.mark.large
@pytest.mark.usefixtures("as_root")
@settings(CHECKS, max_examples=examples(60))
@given(stacks, stacks)
def test_two_images_are_equal_exactly_when_their_trees_are(one: list[Layer], other: list[Layer]) -> None:
    with workspace() as place:
        layout = Layout.create(place / "store")
        old, new = image(layout, tars(one), tag="old"), image(layout, tars(other), tag="new")
        try:
            same = unpacked(layout, "old") == unpacked(layout, "new")
        except LayerfarmError:
            assume(False)
        try:
            prove(layout, old, layout, new, operation="test")
        except NotEquivalent:
            assert not same
        else:
            assert same


# --- checked again -------------------------------------------------------------------------------


def codes(layout: Layout, tag: str = "s") -> list[str]:
    return [finding.code for finding in verify_image(layout, tag).findings]


def squashed(layout: Layout) -> Resolved:
    image(layout, [layer(), archive(entry("more", content=b"m"), entry(".wh.two"))])
    run(SquashRequest(image=ref(layout, "t"), target=ref(layout, "s")))
    return resolve(layout, "s")


def test_a_good_proof_holds(layout: Layout) -> None:
    squashed(layout)
    report = verify_image(layout, "s")
    assert (report.findings, report.reachable) == ([], 1)
    assert report.reachable_bytes > 0


def test_without_the_old_image_the_recorded_digests_are_checked(layout: Layout) -> None:
    squashed(layout)
    layout.untag("t")
    collect(layout, 0)
    assert codes(layout) == ["old-image"]


def test_an_image_without_a_proof_is_reported(layout: Layout) -> None:
    image(layout, [layer()])
    assert codes(layout, "t") == ["no-proof"]


def test_a_proof_of_something_else_does_not_hold(layout: Layout) -> None:
    made = squashed(layout)
    (proof,) = proofs_of(layout, made.descriptor.digest)
    other = image(layout, [layer(), archive(entry("more", content=b"n"), entry(".wh.two"))], tag="u")
    lie = proof.model_copy(update={"new": proof.new.model_copy(update={"digest": other.descriptor.digest})})
    layout.attach(put_proof(layout, lie, other.descriptor))
    assert codes(layout, "u") == ["not-equal", "not-equal"]
    layout.attach(put_proof(layout, proof, other.descriptor))
    assert "proof" in codes(layout, "u")


def test_a_proof_of_other_layers_does_not_hold(layout: Layout) -> None:
    image(layout, [layer()])
    run(RecompressRequest(image=ref(layout, "t"), target=ref(layout, "s"), compress="zstd"))
    (proof,) = proofs_of(layout, resolve(layout, "s").descriptor.digest)
    other = image(layout, [layer(), archive(entry("more"))], tag="u")
    new = proof.new.model_copy(update={"digest": other.descriptor.digest})
    layout.attach(put_proof(layout, proof.model_copy(update={"new": new}), other.descriptor))
    report = verify_image(layout, "u")
    assert [finding.code for finding in report.findings] == ["not-equal", "not-equal"]
    messages = [finding.message for finding in report.findings]
    assert messages[0] == "the proof names other layers than the image"
    assert messages[1] == f"its layers are not those of {proof.old.digest}"


def test_a_proof_of_two_documents_is_none(layout: Layout) -> None:
    made = image(layout, [layer()])
    twice = layout.put(b"{}", MEDIA_TYPE_PROOF)
    documents = [{"mediaType": twice.media_type, "digest": twice.digest, "size": twice.size}] * 2
    enter(layout, manifest(layout, MEDIA_TYPE_PROOF, b"{}", made.descriptor, layers=documents))
    with pytest.raises(MalformedDocument, match="does not have exactly one document"):
        proofs_of(layout, made.descriptor.digest)


def test_a_damaged_layer_or_proof_is_found(layout: Layout) -> None:
    image(layout, [layer()])
    run(RecompressRequest(image=ref(layout, "t"), target=ref(layout, "s"), compress="zstd"))
    made = resolve(layout, "s")
    assert codes(layout) == []
    path = layout.blob_path(made.manifest.layers[0].digest)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes((raw[-1] ^ 1,)))
    assert codes(layout) == ["not-equal"]
    path.write_bytes(raw)
    (found,) = referrers(layout, made.descriptor.digest)
    document = json.loads(layout.read(found))["layers"][0]["digest"]
    layout.blob_path(document).write_bytes(b"{}")
    assert codes(layout) == ["proof"]


# --- how long it lives ---------------------------------------------------------------------------


def age(layout: Layout) -> None:
    for path in layout.path.glob("blobs/*/*"):
        os.utime(path, (1, 1))


def test_a_proof_lives_as_long_as_its_image(layout: Layout) -> None:
    made = squashed(layout)
    age(layout)
    collect(layout, 3600)
    assert len(proofs_of(layout, made.descriptor.digest)) == 1
    layout.untag("s")
    dry = collect(layout, 3600, dry_run=True)
    done = collect(layout, 3600)
    assert [entry.artifact_type for entry in layout.index().manifests] == [None]
    assert made.descriptor.digest in {digest for digest, _ in done.blobs}
    assert dry.blobs == done.blobs
    assert not layout.blob_path(made.descriptor.digest).exists()
    assert resolve(layout, "t")


def test_a_proof_that_waits_for_the_tag_of_its_image_is_left_alone(layout: Layout) -> None:
    made = squashed(layout)
    layout.untag("s")
    collect(layout, 3600)
    assert MEDIA_TYPE_PROOF in [entry.artifact_type for entry in layout.index().manifests]
    layout.tag("s", made.path[0], needs=made.blobs)
    assert codes(layout) == []


def test_a_proof_whose_blobs_are_gone_is_no_obstacle(layout: Layout) -> None:
    made = squashed(layout)
    (found,) = referrers(layout, made.descriptor.digest)
    layout.untag("s")
    layout.blob_path(found.digest).unlink()
    collect(layout, 0)
    assert layout.tags() == ["t"] and len(layout.index().manifests) == 1


def linked(names: int) -> bytes:
    """A file with so many names, in several directories; the first in order of the tree is none of them by name."""
    others = (entry(f"{number % 3}/{number:05}", "hardlink", link="zero") for number in range(1, names))
    return archive(entry("zero", content=b"same"), *others)


def test_the_facts_of_hard_links_grow_with_their_number(layout: Layout) -> None:
    for names in (50, 400):
        found = list(facts_of(stack_of(layout, image(layout, [linked(names)]))))
        assert sum(len(facts.names) for facts in found) == names + (names - 1)
        assert digest_of(found)[1] == len(found)


def test_other_names_of_one_file_are_a_difference_of_each_that_changes(layout: Layout) -> None:
    olds = archive(entry("a", content=b"s"), entry("b", "hardlink", link="a"), entry("c", content=b"s"))
    news = archive(entry("a", content=b"s"), entry("b", content=b"s"), entry("c", "hardlink", link="b"))
    with pytest.raises(NotEquivalent, match=r"a: names differ in a b; b: names differ.*; c: names differ"):
        both(layout, olds, news)


def test_a_proof_of_version_1_holds(layout: Layout) -> None:
    """Its digest of the tree has all names of an inode with each of them."""
    image(layout, [linked(9), archive(entry("more", content=b"n"))])
    run(SquashRequest(image=ref(layout, "t"), target=ref(layout, "s")))
    made = resolve(layout, "s")
    (proof,) = proofs_of(layout, made.descriptor.digest)
    tree, entries = digest_of(facts_of(stack_of(layout, made), every_name=True))
    assert (proof.version, proof.tree != tree, proof.entries) == (2, True, entries)
    layout.attach(put_proof(layout, proof.model_copy(update={"version": 1, "tree": tree}), made.descriptor))
    assert codes(layout, "s") == []
    layout.attach(put_proof(layout, proof.model_copy(update={"version": 1}), made.descriptor))
    assert codes(layout, "s") == ["not-equal"]
