"""The flow ``verify``: the proofs of an image checked again, as a job, for catalogs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import display
from layerfarm.jobs.flows.base import Context, Flow, Request, Result, Stage, State, Unit, unit_of
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.relayer.proof import verify_image
from layerfarm.jobs.store import Layout

_MOST = 20
"""Faults that are told."""


class VerifyRequest(Request):
    """Check every proof of all that the tag leads to."""

    kind = "verify"

    image: ImageRef


class VerifyResult(Result):
    """What was found."""

    image: str
    proofs: int
    bytes_read: int
    errors: list[str]
    """The first ones; none: every proof holds."""
    warnings: list[str] = []


class VerifyState(State):
    """What the flow knows between two stages."""

    store: Path
    tag: str
    result: VerifyResult | None = None


def _begin(ctx: Context, request: VerifyRequest) -> VerifyState:
    store = Layout.open(ctx.policy.check_store(request.image.store))
    return VerifyState(store=store.path, tag=request.image.tag)


def _plan(ctx: Context, state: VerifyState) -> list[Unit]:
    return [unit_of(state)]


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    state = VerifyState.model_validate(unit.params)
    found = verify_image(Layout.open(ctx.policy.check_store(state.store)), state.tag, ctx.observer.advanced)
    told = {
        severity: [f"{display(f.where)}: {display(f.message)}" for f in found.findings if f.severity == severity][
            :_MOST
        ]
        for severity in ("error", "warning")
    }
    return VerifyResult(
        image=f"{state.store}:{state.tag}",
        proofs=found.reachable,
        bytes_read=found.reachable_bytes,
        errors=told["error"],
        warnings=told["warning"],
    ).model_dump()


def _join(ctx: Context, state: VerifyState, results: list[dict[str, Any]]) -> VerifyState:
    (result,) = results
    return state.model_copy(update={"result": VerifyResult.model_validate(result)})


def _finish(ctx: Context, state: VerifyState) -> VerifyResult:
    assert state.result is not None
    return state.result


def _clean(ctx: Context, request: VerifyRequest, succeeded: bool) -> None:
    """Nothing was staged."""


VERIFY = Flow(
    request=VerifyRequest,
    state=VerifyState,
    stages=(Stage("verify", _plan, _run, _join),),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=VerifyResult,
)
"""The flow."""
