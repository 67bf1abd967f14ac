"""Stages whose units have typed parameters and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from layerfarm.jobs.flows.base import Context, Equal, Model, Stage, State, Unit, unit_of

StateT = TypeVar("StateT", bound=State)
ParamsT = TypeVar("ParamsT", bound=Model)
ResultT = TypeVar("ResultT", bound=BaseModel)

Planned = Mapping[str, tuple[ParamsT, int]]
"""Units by a key (a digest): the parameters of each, and the bytes that it reads or writes."""


def keyed_stage(
    name: str,
    params: type[ParamsT],
    result: type[ResultT],
    plan: Callable[[Context, StateT], Planned[ParamsT]],
    run: Callable[[Context, ParamsT], ResultT],
    join: Callable[[Context, StateT, dict[str, ResultT]], StateT],
    equal: Callable[[Context, ParamsT], str] | None = None,
    holds: Callable[[Context, ParamsT, ResultT], bool] = lambda ctx, params, result: True,
    commits: bool = False,
) -> Stage[StateT]:
    """Return a stage whose units have typed parameters and results. ``join`` gets the results by the keys of the plan.

    ``equal`` and ``holds``: see :class:`Equal`.
    """

    def parsed(unit: Unit) -> ParamsT:
        return params.model_validate(unit.params)

    dedup = None
    if equal is not None:
        named = equal
        dedup = Equal(
            lambda ctx, unit: named(ctx, parsed(unit)),
            lambda ctx, unit, found: holds(ctx, parsed(unit), result.model_validate(found)),
        )
    return Stage(
        name,
        lambda ctx, state: [unit_of(each, nbytes) for each, nbytes in plan(ctx, state).values()],
        lambda ctx, unit: run(ctx, parsed(unit)).model_dump(mode="json", by_alias=True),
        lambda ctx, state, results: join(
            ctx, state, dict(zip(plan(ctx, state), map(result.model_validate, results), strict=True))
        ),
        dedup,
        commits,
    )


def single_stage(
    name: str,
    state: type[StateT],
    result: type[ResultT],
    run: Callable[[Context, StateT], ResultT],
    field: str = "result",
    commits: bool = False,
    nbytes: Callable[[StateT], int] = lambda state: 0,
) -> Stage[StateT]:
    """Return a stage of one unit, which gets the state, and whose result becomes ``field`` of the state."""

    def plan(ctx: Context, known: StateT) -> dict[str, tuple[StateT, int]]:
        return {"": (known, nbytes(known))}

    def join(ctx: Context, known: StateT, results: dict[str, ResultT]) -> StateT:
        return known.model_copy(update={field: results[""]})

    return keyed_stage(name, state, result, plan, run, join, commits=commits)


def result_of(ctx: Context, state: Any) -> Any:
    """Return the result that the last stage put into the state: :attr:`Flow.finish`."""
    assert state.result is not None
    return state.result
