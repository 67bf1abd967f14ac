"""Moving components between clusters: never dearer, never more layers than there is room for, nothing that is kept."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfarm.jobs.relayer.planner import local_search as refining
from layerfarm.jobs.relayer.planner.bitsets import Catalog, Cluster, Costs, clusters_of, merged, update_rates
from layerfarm.jobs.relayer.planner.local_search import Refiner
from layerfarm.jobs.relayer.planner.plan import Snapshot
from tests.examples import examples
from tests.unit.relayer.test_planner import catalogs, part, snapshot


class Ground:
    """A catalog, its components, and clusters made of them by number."""

    def __init__(self, images: list[Snapshot]) -> None:
        self.catalog = Catalog.of(images)
        components = clusters_of(self.catalog)
        self.rates = update_rates([(self.catalog, components)])
        self.components = [replace(one, rate=sum(self.rates[source] for source in one.sources)) for one in components]
        self.costs = Costs(self.catalog, 3.0)

    def clusters(self, homes: list[int]) -> list[Cluster]:
        groups: dict[int, list[Cluster]] = {}
        for component, home in zip(self.components, homes, strict=True):
            groups.setdefault(home, []).append(component)
        return [reduce(lambda one, other: merged(one, other, self.rates), group) for group in groups.values()]

    def counts(self, clusters: list[Cluster]) -> list[int]:
        return [sum(one.owners >> column & 1 for one in clusters) for column in range(len(self.catalog.images))]

    def refined(self, clusters: list[Cluster], room: list[int]) -> list[Cluster]:
        return Refiner(self.costs, self.rates, self.components, clusters, room).refined()

    def cost(self, clusters: list[Cluster]) -> float:
        return sum(self.costs.of(one) for one in clusters)


@settings(max_examples=examples(80), deadline=None)
@given(catalogs(), st.data())
def test_it_is_never_dearer_and_no_image_gets_more_than_it_has_room_for(
    images: list[Snapshot], data: st.DataObject
) -> None:
    ground = Ground(images)
    homes = data.draw(st.lists(st.integers(0, 5), min_size=len(ground.components), max_size=len(ground.components)))
    clusters = ground.clusters(homes)
    room = [count + data.draw(st.integers(0, 2)) for count in ground.counts(clusters)]
    found = ground.refined(clusters, room)
    assert sorted(key for one in found for key in one.keys) == sorted(one.keys[0] for one in ground.components)
    assert ground.cost(found) <= ground.cost(clusters) + 1e-3 * abs(ground.cost(clusters))
    assert all(count <= most for count, most in zip(ground.counts(found), room, strict=True))
    # They are clusters as merging would have made them.
    again = ground.clusters(
        [next(at for at, one in enumerate(found) if c.keys[0] in one.keys) for c in ground.components]
    )
    assert sorted((one.keys, one.owners, one.changed) for one in again) == sorted(
        (one.keys, one.owners, one.changed) for one in found
    )


def images_of_two_halves() -> Ground:
    """b and d change with every tag, a and c never do."""
    return Ground([snapshot("x", when, [part("a"), part("b", when), part("c"), part("d", when)]) for when in range(5)])


def test_changing_components_leave_stable_ones() -> None:
    ground = images_of_two_halves()
    wrong = ground.clusters([0, 0, 0, 1])  # a, b and c together
    assert [one.keys for one in ground.refined(wrong, [2] * 5)] == [("a", "c"), ("b", "d")]


def test_clusters_of_a_previous_plan_stay() -> None:
    ground = images_of_two_halves()
    kept, other = ground.clusters([0, 0, 0, 1])
    found = ground.refined([replace(kept, locked=True), other], [2] * 5)
    assert [one.keys for one in found] == [("a", "b", "c"), ("d",)]


def test_a_component_goes_where_its_image_has_no_layer_yet_only_if_there_is_room() -> None:
    images = [snapshot("x", when, [part("a"), part("b", when)]) for when in range(4)]
    images += [snapshot("y", when, [part("c", when)]) for when in range(4)]
    ground = Ground(images)
    together = ground.clusters([0, 0, 1])
    assert [one.keys for one in ground.refined(together, [1] * 8)] == [("a", "b"), ("c",)]


def test_the_work_is_bounded_by_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = images_of_two_halves()
    monkeypatch.setattr(refining, "_WORK", 0)
    wrong = ground.clusters([0, 0, 0, 1])
    # One component was looked at, and moved; to the others it has not come.
    assert [one.keys for one in ground.refined(wrong, [2] * 5)] == [("a", "d"), ("b", "c")]


def test_components_are_compared_without_merging_all_others_of_a_large_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = Ground([snapshot("x", 1, [part(f"p{number:03}", packed=1000 + number) for number in range(400)])])
    clusters = ground.clusters([number // 380 for number in range(400)])
    merges = 0

    def counted(*args: Any) -> Cluster:
        nonlocal merges
        merges += 1
        return merged(*args)

    monkeypatch.setattr(refining, "merged", counted)
    ground.refined(clusters, [2])
    assert 0 < merges < 6 * 400 * 60
