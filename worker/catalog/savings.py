"""Plan only what saves: a repository for which the joint plan predicts a loss stays unchanged.

The measure is the bytes that hosts pull from one tag to the next, summed over a repository: owners of a well-layered
repository lose them when its layers are replaced by others (11 kB to 62 kB a pull in a catalog of one). A repository
of one tag has no pulls yet; it is rechunked for future ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from layerfarm.jobs.relayer.planner.plan import Plan
from layerfarm.worker.catalog.costs import pulls
from layerfarm.worker.catalog.members import Member
from layerfarm.worker.catalog.planning import Joint, plan_together
from layerfarm.worker.catalog.series import in_order, repository_of
from layerfarm.worker.catalog.state import Loss

_ROUNDS: Final = 3
"""Maximum number of plans: without some repositories, the plan of the others may change."""


def plan_what_saves(
    members: Sequence[Member],
    created: Mapping[str, str | None],
    order: str,
    previous: Plan | None,
    rechunked: Collection[str],
    largest: int | None = None,
) -> tuple[Joint | None, list[Loss]]:
    """Return the joint plan of the images for which it saves enough, and the other images, which stay unchanged.

    Images ``rechunked`` by earlier runs, and those of their repositories, are always planned: hosts already have their
    layers. ``largest``: bytes that no layer may exceed.
    """
    losses: list[Loss] = []
    settled = {repository_of(name) for name in rechunked}
    for _ in range(_ROUNDS):
        joint = plan_together(members, created, order, previous, largest)
        lost = _losses(joint, created, order, settled)
        if not lost:
            return joint, losses
        losses += lost.values()
        members = [
            member for member in members if (repository_of(member.name), member.policy.only_if_saves) not in lost
        ]
        if not members:
            return None, losses
    return joint.without({member.name for member in joint.members}.difference(each.name for each in members)), losses


def _losses(
    joint: Joint, created: Mapping[str, str | None], order: str, settled: Collection[str]
) -> dict[tuple[str, float], Loss]:
    """Return, by repository and percentage, the images for which the plan does not save enough."""
    before, planned = joint.originals(), joint.holdings()
    wanted = {member.name: member.policy.only_if_saves for member in joint.members}
    lost: dict[tuple[str, float], Loss] = {}
    for repository, names in in_order(before, created, order).items():
        if repository in settled:
            continue
        costs, after = pulls(before, [names]), pulls(planned, [names])
        groups: defaultdict[float, list[str]] = defaultdict(list)
        for name in names:
            percent = wanted[name]
            if percent != "off":
                groups[percent].append(name)
        for percent, group in groups.items():
            known = [(cost, after[name]) for name in group if (cost := costs[name]) is not None]
            old, new = sum(cost for cost, _ in known), sum(cost or 0 for _, cost in known)
            if known and new > old * (1 - percent / 100):
                lost[repository, percent] = Loss(
                    repository=repository, images=len(group), pull_before=old, pull_planned=new, wanted=percent
                )
    return lost
