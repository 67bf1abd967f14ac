"""The planner's work grows as the catalog does: counted in calls, on catalogs that are made up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.relayer.planner import contents, search
from layerfarm.jobs.relayer.planner.agglomerate import Merger
from layerfarm.jobs.relayer.planner.bitsets import Catalog, Costs, clusters_of, merged, update_rates
from layerfarm.jobs.relayer.planner.contents import bits
from layerfarm.jobs.relayer.planner.local_search import Refiner
from layerfarm.jobs.relayer.planner.plan import Divider, Part, Snapshot
from tests.bench.synthetic import snapshots


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: Counter[str]) -> None:
    real: Callable[..., Any] = getattr(owner, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, count)


@pytest.mark.large
@pytest.mark.parametrize("images", [50, 200])
def test_exact_costs_are_computed_for_few_pairs_of_each_merge(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Each is a product of the contents of two clusters, of which a large catalog has hundreds."""
    calls: Counter[str] = Counter()
    counted(monkeypatch, Costs, "together", calls)
    counted(monkeypatch, Merger, "_merge", calls)
    monkeypatch.setattr(Refiner, "refined", lambda refiner: [])
    search.make_plan(snapshots(images, components=200, room=32))
    assert calls["_merge"] > 500
    assert calls["together"] < 3.5 * calls["_merge"]


def test_a_plan_is_indexed_once_for_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images = list(snapshots(30, components=110, room=20))
    plan = search.make_plan(images)
    calls: Counter[str] = Counter()
    counted(monkeypatch, Divider, "__init__", calls)
    counted(monkeypatch, Divider, "divide", calls)
    assert search.predict(plan, images) == plan.prediction
    assert calls == {"__init__": 1, "divide": 30}


def test_images_with_equal_layers_share_them_in_memory() -> None:
    images = list(snapshots(30, components=110, room=20))
    divider = Divider(search.make_plan(images))
    chunks = [chunk for image in images for chunk in divider.divide(image.parts, image.room)]
    assert len({id(chunk) for chunk in chunks}) == len({(chunk.name, chunk.parts) for chunk in chunks}) < len(chunks)


@given(st.sets(st.integers(0, 700)))
def test_the_numbers_of_a_set_come_in_order(numbers: set[int]) -> None:
    assert bits(sum(1 << number for number in numbers)) == sorted(numbers)


def test_a_larger_synthetic_catalog_begins_as_a_smaller_one_does() -> None:
    assert list(snapshots(20, components=110)) == list(snapshots(40, components=110))[:20]
    assert list(snapshots(20, components=110, seed=2)) != list(snapshots(20, components=110))
    assert {len(image.parts) for image in snapshots(20, components=110)} == {110}


def test_the_cost_of_a_merge_is_that_of_the_merged_cluster_however_it_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalog = Catalog.of(snapshots(40, components=110, room=20))
    costs = Costs(catalog, 3.0)
    components = {}
    for few in (0, 1000):
        monkeypatch.setattr(contents, "FEW", few)
        components[few] = clusters_of(catalog)
    rates = update_rates([(catalog, components[0])])
    chance = random.Random(1)
    for _ in range(300):
        picked = chance.sample(range(len(components[0])), 4)
        found = set()
        for few, known in components.items():
            monkeypatch.setattr(contents, "FEW", few)
            four = [replace(known[at], rate=sum(rates[source] for source in known[at].sources)) for at in picked]
            one, other = merged(*four[:2], rates), merged(*four[2:], rates)
            assert bool(one.contents.sets) == bool(few)
            both = merged(one, other, rates)
            assert costs.together(one, other, rates) == costs.of(both)
            sketch = costs.sketch(both)
            found.add((costs.of(both), sketch.mean, sketch.new, sketch.renewed, sketch.least))
        assert len(found) == 1


def test_images_without_a_common_component_are_planned_by_themselves() -> None:
    """A catalog of two distributions costs twice one, not four times."""
    images = list(snapshots(60, components=110, room=20))
    families = Catalog.of(images).families()
    assert len(families) == 2
    held = [{part.key for image in family.images for part in image.parts} for family in families]
    assert not held[0] & held[1]
    assert sorted(image for family in families for image in family.images) == sorted(images)
    first, second = sorted(held[0])[0], sorted(held[1])[0]
    assert len(Catalog.of(images).families([[first, second], ["of no image"]])) == 1
    groups = [set(group.components) for group in search.make_plan(images).groups]
    assert all(any(group <= keys for keys in held) for group in groups)
    plan = search.make_plan(images, previous=search.make_plan(images[:40]))
    assert sorted(key for group in plan.groups for key in group.components) == sorted(set().union(*held))


def test_a_line_stays_whole_even_if_its_images_have_nothing_in_common() -> None:
    images = [
        Snapshot("web", 0, "1", (Part("a", "", "a1", 9, 3),), 5),
        Snapshot("web", 1, "2", (Part("b", "", "b1", 9, 3),), 5),
        Snapshot("api", 0, "1", (Part("c", "", "c1", 9, 3),), 5),
    ]
    assert [[image.tag for image in family.images] for family in Catalog.of(images).families()] == [["1"], ["1", "2"]]
