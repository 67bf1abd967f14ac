"""Plans: partitions within the budget, the same for the same images, steady when images come, and worth it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfarm.jobs.errors import MalformedPlan
from layerfarm.jobs.relayer.planner.plan import Divider, Group, Part, Plan, Snapshot, parse_plan
from layerfarm.jobs.relayer.planner.search import PlanOptions, make_plan, predict
from tests.examples import examples

MB = 1 << 20


def part(key: str, version: int | str = 1, packed: int = MB, source: str = "") -> Part:
    return Part(key, source, f"{key}@{version}", 3 * packed, packed)


def snapshot(line: str, when: int, parts: Sequence[Part], room: int = 62) -> Snapshot:
    return Snapshot(line, when, f"v{when}", tuple(parts), room)


@st.composite
def catalogs(draw: st.DrawFn) -> list[Snapshot]:
    """A few lines of a few tags, of packages that some of them share and that now and then change."""
    names = [f"p{number}" for number in range(draw(st.integers(1, 14)))]
    sizes = {name: draw(st.integers(0, 1 << 22)) for name in names}
    sources = {name: draw(st.sampled_from(["", "a", "b"])) for name in names}
    images = []
    for line in range(draw(st.integers(1, 4))):
        room = draw(st.integers(1, 9))
        versions = dict.fromkeys(names, 0)
        for when in range(draw(st.integers(1, 4))):
            for name in draw(st.lists(st.sampled_from(names), max_size=4)):
                versions[name] += 1
            held = draw(st.lists(st.sampled_from(names), unique=True))
            parts = [part(name, versions[name], sizes[name], sources[name]) for name in held]
            images.append(snapshot(f"line{line}", when, parts, room))
    return images


@settings(max_examples=examples(60), deadline=None)
@given(catalogs(), st.integers(0, 4))
def test_every_part_is_in_exactly_one_layer_and_the_budget_is_kept(images: list[Snapshot], spare: int) -> None:
    plan = make_plan(images, PlanOptions(spare=spare))
    for image in images:
        chunks = Divider(plan).divide(image.parts, image.room)
        assert sorted(part for chunk in chunks for part in chunk.parts) == sorted(image.parts)
        assert all(chunk.parts for chunk in chunks)
        assert len(chunks) <= image.room
    assert plan.prediction is not None
    assert plan.prediction.stored >= plan.prediction.components


@settings(max_examples=examples(40), deadline=None)
@given(catalogs(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_is_irrelevant(images: list[Snapshot], shuffle: random.Random) -> None:
    plan = make_plan(images)
    others = [image._replace(parts=tuple(shuffle.sample(image.parts, len(image.parts)))) for image in images]
    shuffle.shuffle(others)
    assert make_plan(others).encode() == plan.encode()
    assert parse_plan(plan.encode(), "here") == plan


@settings(max_examples=examples(40), deadline=None)
@given(catalogs(), catalogs())
def test_newcomers_move_nothing(images: list[Snapshot], more: list[Snapshot]) -> None:
    """No layer of the first plan's images changes when others join the catalog."""
    strangers = [image._replace(line=f"new {image.line}") for image in more]
    first = make_plan(images)
    second = make_plan([*images, *strangers], previous=first)
    kept = {group.name: set(group.components) for group in first.groups}
    found = {group.name: set(group.components) for group in second.groups}
    assert all(kept[name] <= found[name] for name in kept)
    for image in images:
        known = {key for group in first.groups for key in group.components}
        assert {part.key for part in image.parts} <= known
        before = Divider(first).divide(image.parts, image.room)
        after = Divider(second).divide(image.parts, image.room)
        assert {chunk.digest for chunk in before} == {chunk.digest for chunk in after}


@settings(max_examples=examples(40), deadline=None)
@given(catalogs(), st.lists(st.integers(100, 130), unique=True, max_size=6))
def test_strange_parts_of_an_image_move_nothing_that_there_is_room_for(
    images: list[Snapshot], strange: list[int]
) -> None:
    plan = make_plan(images)
    for image in images:
        room = 20
        more = [part(f"stranger{number}") for number in strange]
        before = {chunk.digest for chunk in Divider(plan).divide(image.parts, room)}
        chunks = Divider(plan).divide((*image.parts, *more), room)
        assert before <= {chunk.digest for chunk in chunks}
        assert sorted(part for chunk in chunks for part in chunk.parts) == sorted((*image.parts, *more))


def test_components_of_the_same_images_that_change_together_share_a_layer() -> None:
    small = 10_000
    images = [
        snapshot("a", when, [part("x", when, small, "s"), part("y", when, small, "s"), part("z", 1, 5 * MB)], room=10)
        for when in range(5)
    ]
    plan = make_plan(images)
    assert {group.components for group in plan.groups} == {("x", "y"), ("z",)}


def test_within_a_tight_budget_changing_components_are_apart_from_stable_ones() -> None:
    stable = [part(f"stable{number}") for number in range(20)]
    images = [
        snapshot("a", when, [*stable, *(part(f"busy{number}", when) for number in range(20))], room=6)
        for when in range(6)
    ]
    plan = make_plan(images)
    for group in plan.groups:
        assert len({key.startswith("stable") for key in group.components}) == 1
    assert plan.prediction is not None
    assert plan.prediction.stored == plan.prediction.components
    assert plan.prediction.pulled == 5 * 20 * MB


def test_shared_components_are_apart_from_those_of_one_image() -> None:
    base = [part(f"base{number}") for number in range(30)]
    images = [
        snapshot(line, 0, [*base, *(part(f"{line}{number}") for number in range(30))], room=12) for line in "abcd"
    ]
    plan = make_plan(images)
    assert plan.prediction is not None
    assert plan.prediction.stored == plan.prediction.components == (30 + 4 * 30) * MB


def test_a_package_that_is_updated_in_one_image_changes_the_layer_that_holds_it_and_no_other() -> None:
    packages = [part(f"p{number}", 1, MB >> number % 5) for number in range(60)]
    images = [snapshot(line, 0, packages, room=20) for line in "ab"]
    plan = make_plan(images)
    before = Divider(plan).divide(packages, 20)
    updated = [part("p7", 2, MB) if each.key == "p7" else each for each in packages]
    after = Divider(plan).divide(updated, 20)
    (changed,) = [chunk for chunk in after if chunk.digest not in {old.digest for old in before}]
    assert "p7" in {each.key for each in changed.parts}
    assert len(after) == len(before)


def test_an_image_of_more_groups_than_it_has_room_for_is_layered_all_the_same() -> None:
    plan = Plan(groups=tuple(Group(name=f"g{number}", components=(f"p{number}",)) for number in range(50)))
    parts = [part(f"p{number}", 1, number * 1000) for number in range(50)]
    chunks = Divider(plan).divide(parts, 10)
    assert len(chunks) == 10
    assert Divider(plan).divide(list(reversed(parts)), 10) == chunks


def test_the_prediction_is_what_the_layers_come_to() -> None:
    images = [snapshot("a", when, [part("x", when), part("y", 1, 2 * MB)]) for when in range(3)]
    found = predict(make_plan(images), images)
    assert (found.images, found.stored, found.pulled, found.components) == (3, 5 * MB, 2 * MB, 5 * MB)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version": 2, "groups": []}',
        b'{"version": 1, "groups": [{"name": "a", "components": ["x"]}, {"name": "b", "components": ["x"]}]}',
        b'{"version": 1, "groups": [{"name": "a", "components": ["x"]}, {"name": "a", "components": ["y"]}]}',
    ],
)
def test_an_invalid_plan_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedPlan, match=r"plan\.json"):
        parse_plan(content, "plan.json")


def thousand_images(components: int) -> list[Snapshot]:
    """200 lines of 5 tags each: a base of three, what four of forty packages draw in, an application."""
    rng = random.Random(7)
    bases = [[(f"base{b}:{number}", rng.randrange(1 << 20)) for number in range(components * 2 // 5)] for b in range(3)]
    drawn = [[(f"pkg{p}:{number}", rng.randrange(1 << 20)) for number in range(components // 8)] for p in range(40)]
    images = []
    for line in range(200):
        own = [package for stack in rng.sample(drawn, 4) for package in stack]
        app = [(f"app{line}:{number}", rng.randrange(1 << 20)) for number in range(20)]
        for when in range(5):
            parts = [
                part(key, hash_of(key, when) if key.startswith("app") or size % 7 == 0 else 0, size)
                for key, size in (*bases[line % 3], *own, *app)
            ]
            images.append(snapshot(f"line{line}", when, parts))
    return images


def hash_of(key: str, when: int) -> int:
    return random.Random(f"{key} {when // 2}").randrange(1 << 30)


@pytest.mark.large
def test_a_thousand_images_are_planned_within_their_budget() -> None:
    images = thousand_images(components=100)
    plan = make_plan(images)
    assert plan.prediction is not None
    assert (plan.prediction.images, plan.prediction.layers_most <= 62) == (1000, True)
    assert plan.prediction.components <= plan.prediction.stored < 1.02 * plan.prediction.components


@pytest.mark.large
def test_an_image_of_a_thousand_components_fits_with_changing_ones_apart() -> None:
    """More than are compared pair by pair: the lightest are first merged with their like."""
    rng = random.Random(3)
    sizes = [rng.randrange(1 << 20) for _ in range(1000)]
    images = [
        snapshot("a", when, [part(f"p{n}", when if n % 10 == 0 else 0, size) for n, size in enumerate(sizes)], room=30)
        for when in range(3)
    ]
    plan = make_plan(images)
    assert plan.prediction is not None
    assert plan.prediction.layers_most <= 30
    assert plan.prediction.stored < 1.002 * plan.prediction.components
    assert make_plan(images[::-1]).encode() == plan.encode()


def test_components_that_change_with_every_tag_of_many_are_counted_right() -> None:
    images = [
        snapshot(line, when, [part("x", f"{line}{when}"), part("y", f"{line}{when // 2}"), part("z")], room=2)
        for line in "ab"
        for when in range(12)
    ]
    plan = make_plan(images, PlanOptions(spare=0))
    # With x, y would be stored and pulled as often as x is; with z, only z is, as often as y.
    assert {group.components for group in plan.groups} == {("x",), ("y", "z")}
    found = predict(plan, images)
    assert (found.stored, found.pulled) == ((24 + 12 * 2) * MB, (22 + 10 * 2) * MB)


def test_a_layer_larger_than_the_limit_is_split_between_its_components() -> None:
    plan = Plan(groups=(Group(name="all", components=tuple(f"p{n}" for n in range(6))),), largest=10 * MB)
    parts = [part(f"p{number}", packed=4 * MB) for number in range(6)]
    chunks = Divider(plan).divide(parts, 20)
    assert [(chunk.name, [each.key for each in chunk.parts]) for chunk in chunks] == [
        ("all (1)", ["p0", "p1"]),
        ("all (2)", ["p2", "p3"]),
        ("all (3)", ["p4", "p5"]),
    ]
    assert Divider(plan).divide(parts[:2], 20)[0].name == "all"  # not larger: not renamed
    assert parse_plan(plan.encode(), "here") == plan


@settings(max_examples=examples(60), deadline=None)
@given(catalogs(), st.integers(1, 1 << 24))
def test_no_layer_exceeds_the_limit_except_for_large_components_or_lack_of_room(
    images: list[Snapshot], largest: int
) -> None:
    plan = make_plan(images).model_copy(update={"largest": largest})
    for image in images:
        chunks = Divider(plan).divide(image.parts, 1000)
        assert sorted(part for chunk in chunks for part in chunk.parts) == sorted(image.parts)
        assert all(chunk.packed <= largest or len(chunk.parts) == 1 for chunk in chunks)
        assert len(Divider(plan).divide(image.parts, image.room)) <= image.room
