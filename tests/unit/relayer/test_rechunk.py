"""rechunk: the same tree in layers by content, proved; equal content in equal layers; nothing done twice."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from layerfarm.jobs.compress.decompress import decompress
from layerfarm.jobs.errors import BlobNotFound, LayerfarmError, MalformedDocument, MalformedPlan, TransformError
from layerfarm.jobs.flows import base
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.transforms import (
    AnalyzeRequest,
    AnalyzeResult,
    ComponentRule,
    RechunkRequest,
    TransformResult,
)
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.image.trees import stack_of
from layerfarm.jobs.layer import unpack_layer
from layerfarm.jobs.relayer.analysis import AnalysisOptions, analyze, kept_analysis
from layerfarm.jobs.relayer.planner.plan import Group, Plan
from layerfarm.jobs.relayer.proof import proofs_of
from layerfarm.jobs.relayer.rechunk import (
    DELETIONS,
    DIRECTORIES,
    _line,
    layers_to_be,
    put_plan,
    recipe_of_files,
    write_layer,
)
from layerfarm.jobs.relayer.spool import Spool, read_image
from layerfarm.jobs.store import Layout
from layerfarm.jobs.tar.writer import Header
from layerfarm.worker.engine import local
from tests.examples import examples
from tests.steps import steps
from tests.unit.image.images import image
from tests.unit.layer.archives import archive, links_beside_their_inodes
from tests.unit.layer.archives import entry as member
from tests.unit.relayer.images import ref, run, tree_of, two_platforms
from tests.unit.relayer.layers import Layer, stacks, tars

STATUS = b"Package: a\nVersion: %d\nArchitecture: amd64\n\nPackage: b\nVersion: 1\nArchitecture: amd64\n"


def packages(version: int = 1, *, when: int = 1_600_000_000, extra: bytes = b"app") -> bytes:
    """A layer of two packages and an application, as a rebuild makes it: directories are as new as it is."""
    return archive(
        member("usr/", "dir", mtime=when),
        member("usr/bin/", "dir", mtime=when),
        member("usr/bin/a", content=b"a%d" % version * 4000, mode=0o4755, uid=3, xattrs={"user.a": b"1"}),
        member("usr/bin/a2", "hardlink", link="usr/bin/a"),
        member("usr/bin/b", content=b"b" * 5000, xattrs={"user.k": b"v"}),
        member("usr/lib/", "dir", mode=0o751, uid=7, mtime=when, xattrs={"user.dir": b"d"}),
        member("usr/lib/b.so", content=b"so" * 3000, pax={"mtime": "12.000000009"}),
        member("srv/app", content=extra * 1000, mtime=when),
        member("dev/null", "char", device=(1, 3)),
        member("var/lib/dpkg/status", content=STATUS % version, mtime=when),
        member("var/lib/dpkg/info/a.list", content=b"/usr/bin/a\n/usr/bin/a2\n", mtime=when),
        member("var/lib/dpkg/info/b.list", content=b"/usr/bin/b\n/usr/lib/b.so\n", mtime=when),
    )


PLAN = Plan(
    groups=(
        Group(name="base", components=("dpkg:b",)),
        Group(name="busy", components=("dpkg:a",)),
        Group(name="rest", components=("database:dpkg", "tree:dev", "tree:srv")),
    )
)


def request(layout: Layout, tag: str = "t", **fields: object) -> RechunkRequest:
    return RechunkRequest(image=ref(layout, tag), target=ref(layout, f"{tag}-re"), **fields)  # type: ignore[arg-type]


def names(made: Resolved) -> list[str | None]:
    return [entry.comment for entry in made.config.history or [] if not entry.empty_layer]


def members(layout: Layout, made: Resolved, number: int) -> list[str]:
    layer = made.manifest.layers[number]
    with layout.open_blob(layer) as blob, tarfile.open(fileobj=decompress(blob, layer.media_type), mode="r|") as tar:  # type: ignore[call-overload]
        return [entry.name for entry in tar]


def test_the_tree_is_the_same_and_the_layers_are_those_of_the_plan(layout: Layout) -> None:
    old = image(
        layout, [packages(0), packages(1)], config={"Env": ["A=1"], "Odd": 1}, history=[{"created_by": "x"}] * 2
    )
    result = run(request(layout, plan=put_plan(layout, PLAN)))
    new = resolve(layout, "t-re")
    assert tree_of(layout, "t-re") == tree_of(layout, "t")
    assert names(new) == ["base", "busy", "rest", DIRECTORIES]
    assert members(layout, new, 0) == ["usr", "usr/bin", "usr/bin/b", "usr/lib", "usr/lib/b.so"]
    assert members(layout, new, 1) == ["usr", "usr/bin", "usr/bin/a", "usr/bin/a2"]
    assert new.config.config == old.config.config
    assert [entry.empty_layer for entry in new.config.history or []] == [True, True, None, None, None, None]
    (change,) = result.images
    assert (change.layers_before, change.layers_after) == (2, 4)
    (proof,) = proofs_of(layout, change.new)
    assert (proof.operation, proof.method, proof.same_tree) == ("rechunk", "tree", True)
    assert proof.parameters["plan"] == put_plan(layout, PLAN)


def test_the_spool_is_not_read_again_for_a_digest(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest_of = base._digest
    monkeypatch.setattr(base, "_digest", lambda path: read.append(path.name) or digest_of(path))
    image(layout, [packages(0), packages(1)])
    run(request(layout, plan=put_plan(layout, PLAN)))
    assert tree_of(layout, "t-re") == tree_of(layout, "t")
    assert any(name.startswith(".recipe-") for name in read)
    assert not [name for name in read if "spool" in name]


def test_images_share_layers_of_common_files_regardless_of_directory_times(layout: Layout) -> None:
    image(layout, [packages(1)], tag="one")
    image(layout, [packages(1, when=1_700_000_000, extra=b"other")], tag="two")
    plan = put_plan(layout, PLAN)
    run(request(layout, "one", plan=plan))
    run(request(layout, "two", plan=plan))
    one, two = resolve(layout, "one-re").manifest.layers, resolve(layout, "two-re").manifest.layers
    assert [a.digest == b.digest for a, b in zip(one, two, strict=True)] == [True, True, False, False]
    assert tree_of(layout, "two-re") == tree_of(layout, "two")


def test_of_an_updated_package_only_the_layer_that_holds_it_changes(layout: Layout) -> None:
    plan = put_plan(layout, PLAN.model_copy(update={"groups": (*PLAN.groups[:2], *_apart())}))
    image(layout, [packages(1)], tag="old")
    image(layout, [packages(2)], tag="new")
    run(request(layout, "old", plan=plan))
    run(request(layout, "new", plan=plan))
    old, new = resolve(layout, "old-re"), resolve(layout, "new-re")
    changed = [
        name
        for name, a, b in zip(names(new), old.manifest.layers, new.manifest.layers, strict=True)
        if a.digest != b.digest
    ]
    assert changed == ["busy", "database"]


def _apart() -> tuple[Group, ...]:
    return (
        Group(name="database", components=("database:dpkg",)),
        Group(name="rest", components=("tree:dev", "tree:srv")),
    )


def test_the_layers_of_a_base_stay_and_their_removed_files_are_deleted_first(layout: Layout) -> None:
    upper = archive(
        member("usr/bin/.wh.b"),
        member("srv/.wh.app"),
        member("srv/", "dir", mode=0o700),
        member("usr/bin/a3", "hardlink", link="usr/bin/a"),
        member("opt/new", content=b"n" * 2000),
    )
    old = image(layout, [packages(1), upper], history=[{"created_by": "base"}, {"created_by": "upper"}])
    run(request(layout, keep=1))
    new = resolve(layout, "t-re")
    assert new.manifest.layers[0] == old.manifest.layers[0]
    assert tree_of(layout, "t-re") == tree_of(layout, "t")
    assert names(new)[:2] == [None, DELETIONS] and names(new)[-1] == DIRECTORIES
    assert members(layout, new, 1) == ["srv", "srv/.wh.app", "usr", "usr/bin", "usr/bin/.wh.b"]
    held = {name for number in range(2, len(new.manifest.layers)) for name in members(layout, new, number)}
    # A name that is new takes the inode's other names along: a link cannot lead to a lower layer.
    assert {"opt/new", "usr/bin/a", "usr/bin/a2", "usr/bin/a3"} <= held
    assert "usr/lib/b.so" not in held


def test_where_all_layers_are_kept_there_is_nothing_to_do(layout: Layout) -> None:
    image(layout, [packages(1), packages(2)])
    assert run(request(layout, keep=2, budget=2)).unchanged


def test_a_base_is_named_by_its_tag(layout: Layout) -> None:
    image(layout, [packages(1)], tag="base")
    old = image(layout, [packages(1), archive(member("opt/new", content=b"n"))])
    run(request(layout, base=ref(layout, "base")))
    assert resolve(layout, "t-re").manifest.layers[0] == old.manifest.layers[0]
    image(layout, [packages(2)], tag="base")
    with pytest.raises(TransformError, match="not on this base"):
        run(request(layout, base=ref(layout, "base")))


@pytest.mark.large
@pytest.mark.usefixtures("as_root")
@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stacks, st.integers(0, 3), st.sampled_from([None, 0, 8]))
def test_any_stack_of_layers_is_laid_out_and_proved(
    tmp_path: Path, stack: list[Layer], keep: int, epoch: int | None
) -> None:
    """The flow publishes nothing that is not proved equal; all unpackers of layerfarm agree."""
    layout = Layout.create(tmp_path / hashlib.sha256(os.urandom(8)).hexdigest())
    try:
        old = image(layout, tars(stack))
        try:
            list(stack_of(layout, old).placed())
        except LayerfarmError:
            assume(False)  # what no unpacker takes
        result = run(request(layout, keep=min(keep, len(stack)), source_date_epoch=epoch, budget=12))
        new = resolve(layout, "t-re")
        assert len(new.manifest.layers) <= 12
        if result.unchanged:
            assert new.manifest == old.manifest
        elif epoch is None:
            assert tree_of(layout, "t-re") == tree_of(layout, "t")
    finally:
        shutil.rmtree(layout.path)


@pytest.mark.usefixtures("as_root")
def test_layers_of_files_stand_on_their_own(layout: Layout, tmp_path: Path) -> None:
    """Each unpacks alone: parents named, no link to what is not there, no whiteout."""
    image(layout, [packages(1)])
    run(request(layout, plan=put_plan(layout, PLAN)))
    new = resolve(layout, "t-re")
    for number, layer in enumerate(new.manifest.layers):
        place = tmp_path / str(number)
        place.mkdir()
        with layout.open_blob(layer) as blob:
            unpack_layer(place, decompress(blob, layer.media_type))  # type: ignore[arg-type]
        for directory, mode in (("usr", 0o755), ("usr/lib", 0o751)):
            if (place / directory).exists():
                assert (place / directory).stat().st_mode & 0o777 == mode
        assert not [name for name in members(layout, new, number) if ".wh." in name]


def test_every_name_of_a_file_carries_its_metadata(layout: Layout) -> None:
    image(layout, [packages(1)])
    run(request(layout, plan=put_plan(layout, PLAN)))
    layer = resolve(layout, "t-re").manifest.layers[1]
    with layout.open_blob(layer) as blob:
        ((link, inode),) = links_beside_their_inodes(decompress(blob, layer.media_type).read())  # type: ignore[arg-type]
    assert link == inode
    assert (link[:2], link[4]) == ((0o4755, 3), {"SCHILY.xattr.user.a": "1"})


def test_the_same_image_twice_is_read_once_and_written_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    image(layout, [packages(1)], tag="one")
    image(layout, [packages(1)], tag="two", config={"Env": ["B=1"]})
    first = run(request(layout, "one"))
    done: list[str] = []
    monkeypatch.setattr("layerfarm.jobs.flows.rechunk.pack_layer", lambda *args: done.append("packed"))
    second = run(request(layout, "two"))
    assert done == []
    assert resolve(layout, "one-re").manifest.layers == resolve(layout, "two-re").manifest.layers
    monkeypatch.setattr("layerfarm.jobs.flows.rechunk.read_image", lambda *args: done.append("read"))
    again = run(request(layout, "one"))
    assert done == [] and again.new == first.new != second.new


def test_an_image_with_that_layout_already_stays(layout: Layout) -> None:
    image(layout, [packages(1)])
    run(request(layout))
    again = run(request(layout, "t-re"))
    assert again.unchanged and resolve(layout, "t-re-re").descriptor.digest == resolve(layout, "t-re").descriptor.digest


def test_the_bytes_do_not_depend_on_how_the_image_was_layered_before(layout: Layout) -> None:
    image(layout, [packages(1)], tag="whole")
    image(layout, [packages(0), packages(1)], tag="twice")
    run(request(layout, "whole"))
    run(request(layout, "twice"))
    assert resolve(layout, "whole-re").manifest.layers == resolve(layout, "twice-re").manifest.layers


def test_every_platform_of_an_index_is_laid_out(layout: Layout) -> None:
    two_platforms(layout, [packages(1), archive(member("opt/x", content=b"x"))], "t")
    result = run(request(layout))
    assert [change.platform for change in result.images] == ["linux/amd64", "linux/arm64/v8"]
    for platform in ("linux/amd64", "linux/arm64"):
        assert tree_of(layout, "t-re", platform) == tree_of(layout, "t", platform)


def test_an_epoch_makes_generated_files_equal_and_is_named_in_the_proof(layout: Layout) -> None:
    image(layout, [packages(1, when=1_650_000_000)], tag="one")
    image(layout, [packages(1, when=1_700_000_000)], tag="two")
    results = [run(request(layout, tag, source_date_epoch=1_600_000_000)) for tag in ("one", "two")]
    assert resolve(layout, "one-re").manifest.layers == resolve(layout, "two-re").manifest.layers
    (proof,) = proofs_of(layout, results[0].images[0].new)
    assert proof.allowed.clamp == 1_600_000_000


def test_the_operators_components_get_layers_of_their_own(layout: Layout) -> None:
    image(layout, [archive(member("srv/model", content=os.urandom(200_000)), member("srv/app", content=b"x" * 90_000))])
    run(request(layout, components=[ComponentRule(name="model", paths=["/srv/model"])]))
    assert "rule:model" in names(resolve(layout, "t-re"))


def test_a_broken_database_is_a_warning(layout: Layout) -> None:
    image(layout, [archive(member("var/lib/dpkg/status", content=b"nonsense\n"), member("etc/f", content=b"f"))])
    result = run(request(layout))
    assert len(result.warnings) == 1 and "dpkg database cannot be used" in result.warnings[0]
    assert tree_of(layout, "t-re") == tree_of(layout, "t")


def test_an_impossible_rechunk_changes_nothing(layout: Layout) -> None:
    image(layout, [packages(1)] * 3)
    with pytest.raises(TransformError, match="leave no room in a budget of 3"):
        run(request(layout, keep=2, budget=3))
    with pytest.raises(TransformError, match="image has 3 layers, not 9"):
        run(request(layout, keep=9))
    with pytest.raises(BlobNotFound, match="does not hold the plan"):
        run(request(layout, plan=f"sha256:{'0' * 64}"))
    with pytest.raises(MalformedPlan):
        run(request(layout, plan=layout.put(b"{}", "text/plain").digest))
    image(layout, [packages(1)], tag="w", os="windows")
    with pytest.raises(TransformError, match="can only be recompressed"):
        run(request(layout, "w"))
    assert layout.tags() == ["t", "w"]
    assert not list((layout.path / ".layerfarm" / "work").glob("*"))


def test_a_layer_whose_blob_is_gone_is_written_again(layout: Layout) -> None:
    image(layout, [packages(1)])
    first = run(request(layout))
    for layer in resolve(layout, "t-re").manifest.layers:
        layout.blob_path(layer.digest).unlink()
    layout.untag("t-re")
    assert run(request(layout)).new == first.new
    assert tree_of(layout, "t-re") == tree_of(layout, "t")


def test_an_analysis_is_kept_beside_the_store(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    old = image(layout, [packages(1)])
    analyze = AnalyzeRequest(image=ref(layout, "t"))
    result = local.run(analyze, Policy(shards=1, threads=1), 1)
    assert isinstance(result, AnalyzeResult)
    (found,) = result.images
    assert (found.image, found.files) == (old.descriptor.digest, 9)
    kept = kept_analysis(layout, old.descriptor.digest, AnalysisOptions())
    assert kept is not None
    assert [part.key for part in kept.parts] == ["database:dpkg", "dpkg:a", "dpkg:b", "tree:dev", "tree:srv"]
    by_key = {part.key: part for part in kept.parts}
    assert (by_key["dpkg:a"].size, by_key["dpkg:a"].files, by_key["dpkg:a"].version) == (8000, 2, "1")
    assert 0 < by_key["dpkg:a"].packed < 4000
    monkeypatch.setattr("layerfarm.jobs.flows.rechunk.read_image", lambda *args: pytest.fail("read again"))
    assert local.run(analyze, Policy(shards=1, threads=1), 1) == result
    assert kept_analysis(layout, old.descriptor.digest, AnalysisOptions(keep=1)) is None


@pytest.mark.parametrize("number", [10, pytest.param(200, marks=pytest.mark.large)])
def test_layers_without_content_are_estimated_by_the_number_of_their_entries(layout: Layout, number: int) -> None:
    paths = [f"srv/{hashlib.sha256(b'%d' % each).hexdigest()[:8]}" for each in range(number)]
    base = archive(*(member(f"{path}/file") for path in paths))
    above = archive(*(member(f"{path}/.wh.file") for path in paths), *(member(f"{path}/new/file") for path in paths))
    old = image(layout, [base, above])
    run(request(layout, keep=1))
    kept = kept_analysis(layout, old.descriptor.digest, AnalysisOptions(keep=1))
    assert kept is not None
    deletions, *_, directories = layers_to_be(kept, None, 10)
    assert (deletions.name, directories.name) == (DELETIONS, DIRECTORIES)
    _, written, *_, last = resolve(layout, "t-re").manifest.layers
    for estimated, layer in ((deletions, written), (directories, last)):
        assert layer.size / 2 < estimated.packed < layer.size * 2


def test_a_spool_that_is_too_short_for_a_recipe_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"0123456789")
    whole, beyond = (_line(Header(b"f", b"0", size=10), offset) for offset in (0, 5))
    with Spool(tmp_path / "spool") as spool:
        assert b"0123456789" in b"".join(write_layer(io.BytesIO(whole), spool))
        with pytest.raises(MalformedDocument, match="content of a file is missing in the spool"):
            b"".join(write_layer(io.BytesIO(whole + beyond), spool))


def test_a_damaged_note_is_as_none(layout: Layout) -> None:
    image(layout, [packages(1)])
    first: TransformResult = run(request(layout))
    for note in (layout.path / ".layerfarm" / "notes").glob("*/*"):
        note.write_bytes(b"{")
    assert run(request(layout)).new == first.new


def test_many_names_of_one_file_take_as_many_steps_as_names(tmp_path: Path) -> None:
    def take_apart(names: int) -> int:
        place = tmp_path / str(names)
        layout = Layout.create(place)
        content = [member("d/f", content=b"x" * 100), *(member(f"d/{n}", "hardlink", link="d/f") for n in range(names))]
        found = image(layout, [archive(*content)])

        def work() -> None:
            difference = read_image(layout, found, 0, place / "spool")
            with Spool(place / "spool") as spool:
                analyzed = analyze("digest", difference, spool, AnalysisOptions())
            (part,) = analyzed.analysis.parts
            assert part.size == 100
            for paths in analyzed.members.values():
                assert len(list(recipe_of_files(paths, difference, None))) == names + 2

        return steps(work)

    take_apart(10)
    assert take_apart(800) < 9 * take_apart(100)


def test_the_parts_of_an_analysis_differ_when_other_names_are_one_file(tmp_path: Path) -> None:
    def digest(*groups: str) -> str:
        """Each group of letters the names of one file."""
        layout = Layout.create(tmp_path / "-".join(groups))
        content = []
        for group in groups:
            content.append(member(f"d/{group[0]}", content=b"x"))
            content += [member(f"d/{name}", "hardlink", link=f"d/{group[0]}") for name in group[1:]]
        found = image(layout, [archive(*content)])
        difference = read_image(layout, found, 0, layout.path / "spool")
        with Spool(layout.path / "spool") as spool:
            (part,) = analyze("digest", difference, spool, AnalysisOptions()).analysis.parts
        return part.digest

    assert len({digest("abcd"), digest("ab", "cd"), digest("ac", "bd"), digest("abc", "d"), digest("a", "bcd")}) == 5
