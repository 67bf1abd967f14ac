"""The requests of a catalog's jobs, and the joint plan of all its rechunked images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby
from typing import Any, Final

from layerfarm.jobs.errors import LayerfarmError, MalformedPlan, TransformError
from layerfarm.jobs.flows.base import name_of_work
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import (
    AnalyzeRequest,
    RebaseRequest,
    RechunkRequest,
    RecompressRequest,
    SquashRequest,
    StripRequest,
    TransformRequest,
)
from layerfarm.jobs.relayer.indexes import follow, is_for_linux, platform_of
from layerfarm.jobs.relayer.planner.plan import Divider, Plan, Snapshot, parse_plan
from layerfarm.jobs.relayer.planner.search import make_plan
from layerfarm.jobs.relayer.rechunk import LayerToBe, layers_to_be
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.catalog.costs import Holding, Pullable, numbered
from layerfarm.worker.catalog.members import Member
from layerfarm.worker.catalog.policies import Keep, Rebase, Rechunk, Recompress, Squash, Strip, Transform
from layerfarm.worker.catalog.series import in_order, split_name
from layerfarm.worker.catalog.state import States

PLAN: Final = "plan.json"


# --- requests -------------------------------------------------------------------------------------


def request_for(
    policy: Transform, image: ImageRef, target: ImageRef, plan: str | None, *, proof: bool = True
) -> TransformRequest | None:
    """Return an image's job; None: it stays unchanged. ``plan``: digest of the joint plan; ``proof``: store it."""
    fields = policy.model_dump(mode="json", exclude={"transform", "only_if_saves"})
    fields |= {"image": image, "target": target, "proof": proof}
    match policy:
        case Keep():
            return None
        case Recompress():
            return RecompressRequest.model_validate(fields)
        case Rebase():
            bases = {name: ImageRef.parse(fields[name]) for name in ("old_base", "new_base")}
            return RebaseRequest.model_validate(fields | bases)
        case Squash():
            return SquashRequest.model_validate(fields)
        case Strip():
            return StripRequest.model_validate(fields)
        case Rechunk():
            return RechunkRequest.model_validate(fields | {"plan": plan})


def for_other_systems(store: Layout, policy: Transform, old: Descriptor | None) -> str | None:
    """Return why an image without a platform for its transform is copied unchanged; None: it has one."""
    if old is None or isinstance(policy, Keep) or (isinstance(policy, Recompress) and policy.compress != "estargz"):
        return None
    images = follow(store, old).images
    if any(map(is_for_linux, images)):
        return None
    platforms = ", ".join(sorted(set(map(platform_of, images))))
    return f"copied unchanged, it is for {platforms}: its layers can only be recompressed"


def analysis_for(policy: Rechunk, image: ImageRef) -> AnalyzeRequest:
    """Return the job that analyzes an image for the joint plan."""
    fields = policy.model_dump(mode="json", include={"keep", "source_date_epoch", "components"})
    return AnalyzeRequest.model_validate(fields | {"image": image})


def fingerprint(old: str, policy: Transform, target: ImageRef, *more: str) -> str:
    """Return a digest of everything that determines the new image: if it is unchanged, there is nothing to do."""
    return name_of_work("catalog", old, _stated(policy), str(target), *more)


@cache
def _stated(policy: Transform) -> dict[str, Any]:
    return policy.model_dump(mode="json", exclude={"only_if_saves"})


# --- the joint plan -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joint:
    """The plan of a catalog, and its images."""

    plan: Plan
    members: tuple[Member, ...]
    """The platforms of one image follow each other."""
    layers: tuple[list[LayerToBe], ...]
    """The planned layers of each member, above the kept ones."""
    failed: Mapping[str, TransformError]
    """Images that the plan cannot divide, with the reason."""

    @classmethod
    def of(cls, plan: Plan, members: Iterable[Member]) -> Joint:
        """Divide the members by the plan; an image that it cannot divide, all platforms of it, is left out."""
        divider = Divider(plan)
        divided: list[tuple[Member, list[LayerToBe]]] = []
        failed: dict[str, TransformError] = {}
        for member in members:
            try:
                divided.append((member, layers_to_be(member.analysis, divider, member.policy.budget)))
            except TransformError as error:
                failed[member.name] = error
        divided = [each for each in divided if each[0].name not in failed]
        return cls(plan, tuple(member for member, _ in divided), tuple(layers for _, layers in divided), failed)

    def without(self, names: Collection[str]) -> Joint:
        """Return the same plan without these images."""
        left = [each for each in zip(self.members, self.layers, strict=True) if each[0].name not in names]
        return replace(self, members=tuple(member for member, _ in left), layers=tuple(layers for _, layers in left))

    def layouts(self) -> dict[str, str]:
        """Return, by image, a digest of its planned layers: if unchanged, so is the image."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for member, layers in zip(self.members, self.layers, strict=True):
            found[member.name] += [layer.digest for layer in layers]
        return {name: name_of_work("layout", digests) for name, digests in found.items()}

    def holdings(self) -> dict[str, Holding]:
        """Return, by image, its predicted layers and configurations."""
        return self._by_image(map(Member.predicted, self.members, self.layers))

    def originals(self) -> dict[str, Holding]:
        """Return, by image, its layers and configurations before the transform."""
        return self._by_image(member.original for member in self.members)

    @cached_property
    def platforms(self) -> list[str]:
        """Return the platform of each member, as the holding of its image names it."""
        images = groupby(self.members, lambda member: member.name)
        return [name for _, members in images for name in numbered(member.platform for member in members)]

    def _by_image(self, pullables: Iterable[Pullable]) -> dict[str, Holding]:
        """Group by image; ``pullables``: one for each member."""
        found: defaultdict[str, dict[str, Pullable]] = defaultdict(dict)
        for member, platform, each in zip(self.members, self.platforms, pullables, strict=True):
            found[member.name][platform] = each
        return dict(found)


def plan_together(
    members: Sequence[Member],
    created: Mapping[str, str | None],
    order: str,
    previous: Plan | None,
    largest: int | None = None,
) -> Joint:
    """Plan the layers of all members; the ``previous`` plan is kept. ``largest``: bytes that no layer may exceed."""
    position = {
        name: when
        for repository in in_order({member.name for member in members}, created, order).values()
        for when, name in enumerate(repository)
    }
    plan = make_plan((_snapshot(member, position) for member in members), previous=previous)
    return Joint.of(plan.model_copy(update={"largest": largest}), members)


def _snapshot(member: Member, position: Mapping[str, int]) -> Snapshot:
    repository, tag = split_name(member.name)
    line = f"{repository} {member.platform}"
    return member.analysis.snapshot(line, position[member.name], tag, member.policy.budget)


def previous_plan(states: States) -> Plan | None:
    """Return the plan of the last run, or None.

    Raises:
        MalformedPlan: it cannot be parsed; a new plan would move every layer.
    """
    path = states.directory / PLAN
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LayerfarmError(f"plan of the last run cannot be read, {error.strerror}", where=path) from error
    try:
        return parse_plan(content, str(path))
    except MalformedPlan as error:
        error.hint = "start a new plan with --replan"
        raise
