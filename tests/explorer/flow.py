"""The flow that is explored: shards of work, joined, then an image that is given a tag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from layerfarm.jobs.flows import FLOWS
from layerfarm.jobs.flows.base import Context, Flow, Request, Result, Stage, State, Unit

from .world import Violation, World


class ExploredRequest(Request):
    kind = "explored"

    tag: str = "t"


class ExploredState(State):
    request: ExploredRequest
    plan: int = 0
    joined: int = 0


class ExploredResult(Result):
    plan: int


@dataclass
class Disk:
    """Output of the jobs, in place of a store."""

    world: World
    plans: int = 0
    shards: Callable[[int], int] = lambda plan: 2
    """Into how many shards the n-th plan cuts its job."""
    staged: set[tuple[str, int]] = field(default_factory=set)
    moves: list[tuple[str, str]] = field(default_factory=list)
    """Job and tag of each tag given, in order."""
    publish: Callable[[Context, str], None] = lambda context, tag: None
    done: Callable[[str], None] = lambda job_id: None
    """Called when something is done for a job."""
    broken: Callable[[], None] = lambda: None
    """Called before an error of the host on which the process runs."""
    breaks: list[int] = field(default_factory=list)
    """Shards that fail when they are worked on for the first time."""
    works: Callable[[], None] = lambda: None
    """Called while a shard is worked on."""

    def staged_of(self, job_id: str) -> bool:
        return any(staged == job_id for staged, _ in self.staged)

    def effect(self, label: str) -> None:
        if self.world.step(label, late=() if "clean" in label else ("EIO",)) == "EIO":
            self.broken()
            raise OSError(5, "Input/output error")
        self.done(label.partition(":")[0])


disk: Disk
"""Output of the current run."""


def use(new: Disk) -> None:
    global disk
    disk = new


def _begin(ctx: Context, request: ExploredRequest) -> ExploredState:
    disk.effect(f"{ctx.job_id}: stage")
    disk.staged.add((ctx.job_id, ctx.attempt))
    return ExploredState(request=request)


def _plan(ctx: Context, state: ExploredState) -> list[Unit]:
    disk.plans += 1
    shards = disk.shards(disk.plans)
    return [Unit(params={"plan": disk.plans, "of": shards, "index": index}, bytes=10) for index in range(shards)]


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    disk.effect(f"{ctx.job_id}: work on shard {unit.params['index']}")
    disk.works()
    if unit.params["index"] in disk.breaks:
        disk.breaks.remove(unit.params["index"])
        disk.broken()
        raise OSError(5, "Input/output error")
    return unit.params


def _join(ctx: Context, state: ExploredState, results: list[dict[str, Any]]) -> ExploredState:
    disk.effect(f"{ctx.job_id}: join")
    plans = {result["plan"] for result in results}
    if len(plans) != 1 or [result["index"] for result in results] != list(range(results[0]["of"])):
        raise Violation(f"results of different plans are joined: {results}")
    return state.model_copy(update={"plan": plans.pop()})


def _plan_publish(ctx: Context, state: ExploredState) -> list[Unit]:
    return [Unit(params={"tag": state.request.tag, "plan": state.plan})]


def _publish(ctx: Context, unit: Unit) -> dict[str, Any]:
    disk.effect(f"{ctx.job_id}: give the tag")
    disk.publish(ctx, unit.params["tag"])
    return {}


def _join_publish(ctx: Context, state: ExploredState, results: list[dict[str, Any]]) -> ExploredState:
    return state


def _finish(ctx: Context, state: ExploredState) -> ExploredResult:
    return ExploredResult(plan=state.plan)


def _clean(ctx: Context, request: ExploredRequest, succeeded: bool) -> None:
    disk.effect(f"{ctx.job_id}: clean")
    disk.staged.discard((ctx.job_id, ctx.attempt))


EXPLORED: Flow[ExploredState] = Flow(
    request=ExploredRequest,
    state=ExploredState,
    stages=(
        Stage("work", _plan, _run, _join),
        Stage("publish", _plan_publish, _publish, _join_publish, commits=True),
    ),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=ExploredResult,
)
FLOWS.setdefault(EXPLORED.name, EXPLORED)
