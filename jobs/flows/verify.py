"""The flow ``verify``: check the proofs of an image again, as a job, for catalogs."""

from __future__ import annotations

from pathlib import Path

from layerfarm.jobs.errors import display
from layerfarm.jobs.flows.base import Context, Flow, Request, Result, State
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.stages import result_of, single_stage
from layerfarm.jobs.relayer.proof import verify_image

__all__ = ["VerifyRequest", "VerifyResult"]

_MOST = 20
"""Most findings of each severity in the result."""


class VerifyRequest(Request):
    """Check every proof of all images behind the tag."""

    kind = "verify"

    image: ImageRef


class VerifyResult(Result):
    """Findings of a verification."""

    image: str
    proofs: int
    bytes_read: int
    errors: list[str]
    """The first errors; empty: every proof holds."""
    warnings: list[str] = []


class VerifyState(State):
    store: Path
    tag: str
    result: VerifyResult | None = None


def _begin(ctx: Context, request: VerifyRequest) -> VerifyState:
    store = ctx.store(request.image.store)
    return VerifyState(store=store.path, tag=request.image.tag)


def _verify(ctx: Context, state: VerifyState) -> VerifyResult:
    found = verify_image(ctx.store(state.store), state.tag, ctx.observer.advanced)
    errors, warnings = (
        [f"{display(f.where)}: {display(f.message)}" for f in found.findings if f.severity == severity][:_MOST]
        for severity in ("error", "warning")
    )
    return VerifyResult(
        image=f"{state.store}:{state.tag}",
        proofs=found.reachable,
        bytes_read=found.reachable_bytes,
        errors=errors,
        warnings=warnings,
    )


VERIFY = Flow(
    request=VerifyRequest,
    state=VerifyState,
    stages=(single_stage("verify", VerifyState, VerifyResult, _verify),),
    begin=_begin,
    finish=result_of,
    result=VerifyResult,
)
