"""The flows ``rebase`` and ``rebase-check``: put an image on another base, and report findings against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from layerfarm.jobs.errors import UnsafeRebase
from layerfarm.jobs.extras import require
from layerfarm.jobs.flows.base import Context, FileRef, Flow, Model, Stage, work_directory
from layerfarm.jobs.flows.images import ImagesState, image_set, image_stage, images_behind, pin, source_of
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.stages import result_of
from layerfarm.jobs.flows.transforming import (
    TransformedImage,
    TransformState,
    begin,
    importing,
    importing_from,
    target_of,
    transform_flow,
    work_of,
)
from layerfarm.jobs.flows.transforms import (
    RebaseCheckRequest,
    RebaseCheckResult,
    RebaseRequest,
    RebaseResult,
    RebaseVerdict,
    VerdictName,
)
from layerfarm.jobs.image import Resolved, resolve, resolve_walk, write_image
from layerfarm.jobs.relayer.configs import rebased_config, rebased_manifest
from layerfarm.jobs.relayer.indexes import ImageSet, platform_of
from layerfarm.jobs.relayer.layers import layers_of_base
from layerfarm.jobs.relayer.proof import prove_rebase
from layerfarm.jobs.relayer.rebase_findings import Verdict
from layerfarm.jobs.store import Descriptor, Layout

_PLAN = "plan"
_MOST_SHOWN = 50
"""Concerns, and packages, in a result, which goes through Redis."""


class Bases(Model):
    """The bases of one image, pinned."""

    below: int
    """Number of layers of the old base."""
    old: Descriptor
    new: Descriptor


class Plan(Model):
    """The bases of all images of a rebase or a check, by the digest of the image."""

    old_store: Path
    new_store: Path
    bases: dict[str, Bases]


def _pin(ctx: Context, images: ImageSet, request: RebaseCheckRequest | RebaseRequest) -> Plan:
    """Claim the bases of each image's platform.

    Raises:
        MissingExtra: ``layerfarm[rebase]``, which reads programs, is not installed.
        TransformError: an image is not on the old base.
        TagNotFound: a base has no image for the platform.
    """
    require("rebase", "a rebase")
    refs = (request.old_base, request.new_base)
    stores = [ctx.store(ref.store) for ref in refs]
    bases = {}
    for image in images.images:
        old, new = (resolve(store, ref.tag, platform_of(image)) for store, ref in zip(stores, refs, strict=True))
        for store, base in zip(stores, (old, new), strict=True):
            pin(store, [base])
        below = layers_of_base(image, old)
        bases[image.descriptor.digest] = Bases(below=below, old=old.descriptor, new=new.descriptor)
    return Plan(old_store=stores[0].path, new_store=stores[1].path, bases=bases)


def _new_base(ctx: Context, plan: Plan, image: str) -> Resolved:
    return resolve_walk(ctx.store(plan.new_store), [plan.bases[image].new])


# --- examine: one image a unit -------------------------------------------------------------------

StateT = TypeVar("StateT", bound=ImagesState)


def _examine_stage(
    state: type[StateT],
    plan_of: Callable[[Context, StateT], Plan],
    join: Callable[[Context, StateT, dict[str, RebaseVerdict]], StateT],
) -> Stage[StateT]:
    def costs(ctx: Context, known: StateT) -> Iterator[tuple[Resolved, int]]:
        plan = plan_of(ctx, known)
        for image in image_set(ctx, known).images:
            both = (image, _new_base(ctx, plan, image.descriptor.digest))
            yield image, sum(layer.size for each in both for layer in each.manifest.layers)

    def run(ctx: Context, known: StateT, image: Resolved) -> RebaseVerdict:
        return _examine(ctx, source_of(ctx, known), plan_of(ctx, known), image)

    return image_stage("examine", state, RebaseVerdict, run, join, costs=costs)


def _examine(ctx: Context, source: Layout, plan: Plan, image: Resolved) -> RebaseVerdict:
    require("rebase", "a rebase")
    from layerfarm.jobs.relayer.rebase_check import examine

    new_store = ctx.store(plan.new_store)
    digest = image.descriptor.digest
    new_base, below = _new_base(ctx, plan, digest), plan.bases[digest].below
    found = examine(source, image, below, new_store, new_base, ctx.observer.advanced)
    return RebaseVerdict(
        platform=platform_of(image),
        verdict=found.verdict.value,
        concerns=[str(concern) for concern in found.concerns[:_MOST_SHOWN]],
        concerns_total=len(found.concerns),
        packages=found.packages[:_MOST_SHOWN],
        packages_total=len(found.packages),
    )


def _worst(verdicts: Iterable[RebaseVerdict]) -> VerdictName:
    return max((Verdict(each.verdict) for each in verdicts), key=lambda verdict: verdict.rank).value


# --- rebase --------------------------------------------------------------------------------------


class RebaseState(TransformState):
    """State of a rebase."""

    plan: FileRef
    """The one :class:`Plan`."""
    accept: VerdictName
    epoch: int | None
    verdicts: FileRef | None = None
    """:class:`~layerfarm.jobs.flows.transforms.RebaseVerdict` by the digest of the image."""


def _begin(ctx: Context, request: RebaseRequest) -> RebaseState:
    images, fields = begin(ctx, request)
    plan = _pin(ctx, images, request)
    file = work_directory(ctx, fields["target"].store).keep(_PLAN, {_PLAN: plan}, Plan)
    return RebaseState(plan=file, accept=request.accept, epoch=request.source_date_epoch, **fields)


def _join_examine(ctx: Context, state: RebaseState, verdicts: dict[str, RebaseVerdict]) -> RebaseState:
    worst = _worst(verdicts.values())
    if Verdict(worst).rank > Verdict(state.accept).rank:
        named = [f"{each.platform}: {concern}" for each in verdicts.values() for concern in each.concerns[:3]]
        total = sum(each.concerns_total for each in verdicts.values())
        raise UnsafeRebase(
            f"rebase is rated {worst!r}, findings ({total}): {'; '.join(named[:5])}",
            where=str(state.target),
            hint="list all with layerfarm rebase --check; override with --accept; docs/transforms.md#rebase",
        )
    return state.model_copy(update={"verdicts": work_of(ctx, state).keep("verdicts", verdicts, RebaseVerdict)})


def _plan(ctx: Context, state: RebaseState) -> Plan:
    return work_of(ctx, state).kept(state.plan, Plan)[_PLAN]


def _verdicts(ctx: Context, state: RebaseState) -> dict[str, RebaseVerdict]:
    return work_of(ctx, state).kept(state.verdicts, RebaseVerdict)


def _from_old(ctx: Context, state: RebaseState) -> Import:
    bases = _plan(ctx, state).bases
    images = image_set(ctx, state).images
    own = (layer for image in images for layer in image.manifest.layers[bases[image.descriptor.digest].below :])
    return importing(ctx, state, own)


def _from_new_base(ctx: Context, state: RebaseState) -> Import:
    plan = _plan(ctx, state)
    new_store = ctx.store(plan.new_store)
    layers = (layer for image in plan.bases for layer in _new_base(ctx, plan, image).manifest.layers)
    return importing_from(new_store, state, layers)


def _make(ctx: Context, state: RebaseState, old: Resolved) -> TransformedImage:
    plan, digest = _plan(ctx, state), old.descriptor.digest
    bases, found = plan.bases[digest], _verdicts(ctx, state)[digest]
    if bases.old.digest == bases.new.digest:
        return TransformedImage(old, None)
    old_base = resolve_walk(ctx.store(plan.old_store), [bases.old])
    new_base = _new_base(ctx, plan, digest)
    config, warnings = rebased_config(old, old_base, new_base, state.epoch)
    manifest = rebased_manifest(old, bases.below, new_base)
    image = write_image(target_of(ctx, state), old.path[-1:], manifest, config)
    parameters = {"verdict": found.verdict, "concerns": found.concerns_total}
    proof = prove_rebase(old, old_base, new_base, image, parameters=parameters)
    return TransformedImage(image, proof, [*warnings, *found.concerns])


def _finish(ctx: Context, state: RebaseState) -> RebaseResult:
    verdicts = list(_verdicts(ctx, state).values())
    return RebaseResult(verdict=_worst(verdicts), verdicts=verdicts, **result_of(ctx, state).model_dump())


REBASE = transform_flow(
    RebaseRequest,
    RebaseState,
    _begin,
    (
        _examine_stage(RebaseState, _plan, _join_examine),
        import_stage(_from_old),
        import_stage(_from_new_base, "import-base"),
    ),
    _make,
    _finish,
    RebaseResult,
)


# --- rebase-check --------------------------------------------------------------------------------


class CheckState(ImagesState):
    """State of a check. Without a work directory: its store may be read-only."""

    image: ImageRef
    plan: Plan
    result: RebaseCheckResult | None = None


def _begin_check(ctx: Context, request: RebaseCheckRequest) -> CheckState:
    source = ctx.store(request.image.store)
    images = images_behind(ctx, source.path, request.image.tag)
    pin(source, images.images)
    plan = _pin(ctx, images, request)
    return CheckState(source=source.path, top=images.top, image=request.image, plan=plan, warnings=images.warnings)


def _join_check(ctx: Context, state: CheckState, verdicts: dict[str, RebaseVerdict]) -> CheckState:
    found = list(verdicts.values())
    result = RebaseCheckResult(image=str(state.image), verdict=_worst(found), images=found, warnings=state.warnings)
    return state.model_copy(update={"result": result})


REBASE_CHECK = Flow(
    request=RebaseCheckRequest,
    state=CheckState,
    stages=(_examine_stage(CheckState, lambda ctx, state: state.plan, _join_check),),
    begin=_begin_check,
    finish=result_of,
    result=RebaseCheckResult,
)
