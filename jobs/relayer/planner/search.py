"""The planner: which components share a layer, for all images of a catalog at once.

Components begin as clusters of their own. Two are merged where a layer less is worth more than what is
stored and pulled in vain, and then, in each image that has more clusters than layers, the two whose union
costs least. At last components move to clusters that suit them better. What that costs is always counted
over the whole catalog: over every image that holds the one or the other. It is the owner-set idea of nix'
auto-layer, weighed by hhd-dev/rechunk's joint update history (relayer.md 2.3, 2.4), observed instead of
taken from changelogs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from layerfarm.jobs.relayer.planner.agglomerate import Merger
from layerfarm.jobs.relayer.planner.bitsets import Catalog, Cluster, clusters_of, lowest_possible, update_rates
from layerfarm.jobs.relayer.planner.costs import Costs, bits, merged
from layerfarm.jobs.relayer.planner.local_search import Refiner
from layerfarm.jobs.relayer.planner.plan import Chunk, Group, Plan, Prediction, Snapshot, divide

_EAGER = 2.0
"""How much more a pull weighs while clusters are merged than it does in the end: what changes is harder to part from
what does not, once they are together. Of 1, 2 and 4 this one gave the cheapest plans of 24 and 16 layers."""


@dataclass(frozen=True)
class PlanOptions:
    """What is asked of a plan."""

    pulls: float = 3.0
    """Pulls of each tag by hosts that have the one before, for each time that it is stored."""
    spare: int = 4
    """Layers of each image that are kept free for components that come later."""


def make_plan(images: Iterable[Snapshot], options: PlanOptions = PlanOptions(), previous: Plan | None = None) -> Plan:
    """Plan the layers of these images together.

    Deterministic, whatever the order of ``images``. With a ``previous`` plan its groups stay as they are, and
    only components that it does not know are grouped, among themselves; so the layers of what it knows keep
    their digests.
    """
    catalog = Catalog.of(images)
    clusters = clusters_of(catalog)
    rates = update_rates(catalog, clusters)
    clusters = [replace(cluster, rate=sum(rates[source] for source in cluster.sources)) for cluster in clusters]
    kept: dict[str, Group] = {}
    if previous is not None:
        clusters, kept = _locked(clusters, previous, rates)
    room = [_room(image, options, previous) for image in catalog.images]
    merger = Merger(Costs(catalog, options.pulls * _EAGER), clusters, rates)
    merger.merge_for_free()
    merger.fit(room)
    refined = Refiner(Costs(catalog, options.pulls), rates, clusters, merger.clusters(), room).refined()
    plan = Plan(groups=_groups(refined, kept, previous), spare=options.spare)
    return plan.model_copy(update={"prediction": predict(plan, catalog.images)})


def _room(image: Snapshot, options: PlanOptions, previous: Plan | None) -> int:
    """The layers of an image that are given away now: some stay free, fewer where there are few."""
    spare = min(options.spare, max(1, image.room // 12)) if previous is None else 1
    return max(1, image.room - min(spare, options.spare))


def predict(plan: Plan, images: Sequence[Snapshot]) -> Prediction:
    """What the images would cost, if their layers were those of the plan."""
    catalog = Catalog.of(images)
    stored: dict[str, int] = {}
    pulled = most = 0
    held: set[str] = set()
    for image, before in zip(catalog.images, catalog.before, strict=True):
        chunks = divide(plan, image.parts, image.room)
        most = max(most, len(chunks))
        sizes = {chunk.digest: chunk.packed for chunk in chunks}
        stored |= sizes
        if before is not None:
            pulled += sum(size for digest, size in sizes.items() if digest not in held)
        held = set(sizes)
    return Prediction(
        images=len(catalog.images),
        layers_most=most,
        stored=sum(stored.values()),
        pulled=pulled,
        components=lowest_possible(catalog),
    )


def _locked(
    clusters: Sequence[Cluster], previous: Plan, rates: dict[str, float]
) -> tuple[list[Cluster], dict[str, Group]]:
    """The clusters with those of a previous group put together; each such group by the first of its keys."""
    group_of = {key: group for group in previous.groups for key in group.components}
    together: defaultdict[str, list[Cluster]] = defaultdict(list)
    free: list[Cluster] = []
    for cluster in clusters:
        group = group_of.get(cluster.keys[0])
        if group is None:
            free.append(cluster)
        else:
            together[group.name].append(cluster)
    kept: dict[str, Group] = {}
    for group in previous.groups:
        whole: Cluster | None = None
        for cluster in together.get(group.name, ()):
            whole = cluster if whole is None else merged(whole, cluster, rates)
        if whole is not None:
            free.append(replace(whole, locked=True))
            kept[whole.keys[0]] = group
    return sorted(free, key=lambda cluster: cluster.keys), kept


def _groups(clusters: Sequence[Cluster], kept: dict[str, Group], previous: Plan | None) -> tuple[Group, ...]:
    """The plan's groups: the previous ones first and as they were, then the new ones by name."""
    grown: dict[str, set[str]] = {}
    new: list[Group] = []
    for cluster in clusters:
        olds = [kept[key].name for key in cluster.keys if key in kept]
        if olds:
            grown[olds[0]] = set(cluster.keys)
        else:
            new.append(Group(name=_name(cluster), components=cluster.keys))
    old = [
        group.model_copy(update={"components": tuple(sorted(grown.get(group.name, set()) | set(group.components)))})
        for group in (previous.groups if previous else ())
    ]
    return (*old, *sorted(new, key=lambda group: group.name))


def _name(cluster: Cluster) -> str:
    # No other cluster has this key, so the name is its own.
    more = len(cluster.keys) - 1
    return cluster.keys[0] if not more else f"{cluster.keys[0]} and {more} more"


__all__ = ["Chunk", "PlanOptions", "bits", "divide", "make_plan", "predict"]
