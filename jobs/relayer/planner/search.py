"""The planner: groups components into shared layers, for all images of a catalog at once.

Each component begins as a cluster. Two clusters are merged if one layer less is worth more than the extra bytes
stored and pulled, and then, in each image with more clusters than layers, the two whose union costs least. Finally
single components move to better clusters. Costs always count every image of the catalog that holds one of the two.
This is the owner-set idea of nix' auto-layer, weighed by the joint update history of hhd-dev/rechunk (relayer.md 2.3,
2.4), observed instead of taken from changelogs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from layerfarm.jobs.relayer.planner.agglomerate import Merger
from layerfarm.jobs.relayer.planner.bitsets import Catalog, Cluster, Costs, clusters_of, merged, update_rates
from layerfarm.jobs.relayer.planner.local_search import Refiner
from layerfarm.jobs.relayer.planner.plan import Divider, Group, Plan, Prediction, Snapshot

_EAGER = 2.0
"""Weight of a pull while clusters are merged, relative to the final one: merged clusters are hard to separate again.
Of 1, 2 and 4 this value gave the cheapest plans of 24 and 16 layers."""


@dataclass(frozen=True)
class PlanOptions:
    """Parameters of a plan."""

    pulls: float = 3.0
    """Pulls of each tag, by hosts with the preceding one, per stored copy."""
    spare: int = 4
    """Layers of each image that stay free for future components."""


def make_plan(images: Iterable[Snapshot], options: PlanOptions = PlanOptions(), previous: Plan | None = None) -> Plan:
    """Plan the layers of these images together. The order of ``images`` does not matter.

    The groups of a ``previous`` plan stay, so that their layers keep their digests; only other components are
    grouped, among themselves.
    """
    catalog = Catalog.of(images)
    groups = previous.groups if previous is not None else ()
    families = [(each, clusters_of(each)) for each in catalog.families(group.components for group in groups)]
    rates = update_rates(families)
    kept: dict[str, Group] = {}
    refined: list[Cluster] = []
    for family, clusters in families:
        clusters = [replace(cluster, rate=sum(rates[source] for source in cluster.sources)) for cluster in clusters]
        if previous is not None:
            clusters, known = _locked(clusters, previous, rates)
            kept |= known
        room = [_room(image, options, previous) for image in family.images]
        merger = Merger(Costs(family, options.pulls * _EAGER), clusters, rates)
        merger.merge_for_free()
        merger.fit(room)
        share = len(family.images) / len(catalog.images)
        refined += Refiner(Costs(family, options.pulls), rates, clusters, merger.clusters(), room, share).refined()
    refined.sort(key=lambda cluster: cluster.keys)
    plan = Plan(groups=_groups(refined, kept, previous), spare=options.spare)
    return plan.model_copy(update={"prediction": predict(plan, catalog.images)})


def _room(image: Snapshot, options: PlanOptions, previous: Plan | None) -> int:
    """Return the layers of an image that may be used now: some stay free, fewer if there are few."""
    spare = min(options.spare, max(1, image.room // 12)) if previous is None else 1
    return max(1, image.room - min(spare, options.spare))


def predict(plan: Plan, images: Sequence[Snapshot]) -> Prediction:
    """Return the cost of the images with the layers of the plan."""
    catalog = Catalog.of(images)
    stored: dict[str, int] = {}
    pulled = most = 0
    held: set[str] = set()
    divider = Divider(plan)
    for image, before in zip(catalog.images, catalog.before, strict=True):
        chunks = divider.divide(image.parts, image.room)
        most = max(most, len(chunks))
        sizes = {chunk.digest: chunk.packed for chunk in chunks}
        stored |= sizes
        if before is not None:
            pulled += sum(size for digest, size in sizes.items() if digest not in held)
        held = set(sizes)
    every = {(part.key, part.digest): part.packed for image in catalog.images for part in image.parts}
    return Prediction(
        images=len(catalog.images),
        layers_most=most,
        stored=sum(stored.values()),
        pulled=pulled,
        components=sum(every.values()),
    )


def _locked(
    clusters: Sequence[Cluster], previous: Plan, rates: dict[str, float]
) -> tuple[list[Cluster], dict[str, Group]]:
    """Return the clusters, those of one previous group merged and locked; and that group by its first key."""
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
    """Return the groups of the plan: the previous ones in their order, then the new ones by name."""
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
