"""The flows ``rebase`` and ``rebase-check``: an image on another base, and what speaks against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import UnsafeRebase
from layerfarm.jobs.extras import require
from layerfarm.jobs.flows.base import (
    Context,
    FileRef,
    Flow,
    Model,
    Request,
    Stage,
    State,
    Unit,
    unit_of,
    work_directory,
)
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.records import keep_records
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforming import (
    NewImage,
    TransformState,
    begin,
    finish,
    image_set,
    importing,
    records_of,
    target_of,
    transform_flow,
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
from layerfarm.jobs.relayer.indexes import ImageSet, platform_of, read_images
from layerfarm.jobs.relayer.layers import layers_of_base, linux_only
from layerfarm.jobs.relayer.proof import prove_rebase
from layerfarm.jobs.relayer.rebase_findings import Verdict
from layerfarm.jobs.store import Descriptor, Layout

_PLAN = "plan"
_MOST_SHOWN = 50
"""Concerns, and packages, that a result names; it goes through Redis."""


class Bases(Model):
    """The bases of one image, pinned."""

    image: Descriptor
    below: int
    """Layers of the old base."""
    old: Descriptor
    new: Descriptor


class Plan(Model):
    """What both flows know of every image."""

    source: Path
    old_store: Path
    new_store: Path
    bases: list[Bases]


def _pin(ctx: Context, images: ImageSet, source: Layout, request: RebaseCheckRequest | RebaseRequest) -> Plan:
    """The bases of each image's own platform, claimed.

    Raises:
        MissingExtra: ``layerfarm[rebase]`` is not installed, without which no program can be examined.
        TransformError: an image is not on the old base, or not for Linux.
        TagNotFound: a base has no image for the platform.
    """
    require("rebase", "a rebase")
    stores = [Layout.open(ctx.policy.check_store(ref.store)) for ref in (request.old_base, request.new_base)]
    bases = []
    for image in images.images:
        linux_only(image)
        old, new = (
            resolve(store, ref.tag, platform_of(image))
            for store, ref in zip(stores, (request.old_base, request.new_base), strict=True)
        )
        for store, base in zip(stores, (old, new), strict=True):
            for blob in base.blobs:
                store.pin(blob)
        below = layers_of_base(image, old)
        bases.append(Bases(image=image.descriptor, below=below, old=old.descriptor, new=new.descriptor))
    return Plan(source=source.path, old_store=stores[0].path, new_store=stores[1].path, bases=bases)


# --- examine: one image a unit -------------------------------------------------------------------


class _ExamineUnit(Model):
    source: Path
    new_store: Path
    bases: Bases


def _plan_examine(plan: Plan) -> list[Unit]:
    source, new_store = Layout.open(plan.source), Layout.open(plan.new_store)
    units = []
    for bases in plan.bases:
        read = [
            *resolve_walk(source, [bases.image]).manifest.layers,
            *resolve_walk(new_store, [bases.new]).manifest.layers,
        ]
        params = _ExamineUnit(source=plan.source, new_store=plan.new_store, bases=bases)
        units.append(unit_of(params, nbytes=sum(layer.size for layer in read)))
    return units


def _run_examine(ctx: Context, unit: Unit) -> dict[str, Any]:
    require("rebase", "a rebase")
    from layerfarm.jobs.relayer.rebase_check import examine

    params = _ExamineUnit.model_validate(unit.params)
    source = Layout.open(ctx.policy.check_store(params.source))
    new_store = Layout.open(ctx.policy.check_store(params.new_store))
    image = resolve_walk(source, [params.bases.image])
    new_base = resolve_walk(new_store, [params.bases.new])
    found = examine(source, image, params.bases.below, new_store, new_base, ctx.observer.advanced)
    return RebaseVerdict(
        platform=platform_of(image),
        verdict=found.verdict.value,
        concerns=[str(concern) for concern in found.concerns[:_MOST_SHOWN]],
        concerns_total=len(found.concerns),
        packages=found.packages[:_MOST_SHOWN],
        packages_total=len(found.packages),
    ).model_dump()


def _worst(verdicts: list[RebaseVerdict]) -> VerdictName:
    return max((Verdict(each.verdict) for each in verdicts), key=lambda verdict: verdict.rank).value


# --- rebase --------------------------------------------------------------------------------------


class RebaseState(TransformState):
    """What a rebase knows between two stages."""

    plan: FileRef
    """The one :class:`Plan`."""
    accept: VerdictName
    epoch: int | None
    verdicts: FileRef | None = None
    """:class:`~layerfarm.jobs.flows.transforms.RebaseVerdict` by the digest of the image."""


def _begin(ctx: Context, request: RebaseRequest) -> RebaseState:
    images, fields = begin(ctx, request)
    plan = _pin(ctx, images, Layout.open(fields["source"]), request)
    file = keep_records(work_directory(ctx, fields["target"].store), _PLAN, {_PLAN: plan}, Plan)
    return RebaseState(plan=file, accept=request.accept, epoch=request.source_date_epoch, **fields)


def _join_examine(ctx: Context, state: RebaseState, results: list[dict[str, Any]]) -> RebaseState:
    verdicts = [RebaseVerdict.model_validate(result) for result in results]
    worst = _worst(verdicts)
    if Verdict(worst).rank > Verdict(state.accept).rank:
        named = [f"{each.platform}: {concern}" for each in verdicts for concern in each.concerns[:3]]
        total = sum(each.concerns_total for each in verdicts)
        raise UnsafeRebase(
            f"the verdict on this rebase is {worst!r}, {total} things speak against it: {'; '.join(named[:5])}",
            where=str(state.target),
            hint="see all with layerfarm rebase --check; do it all the same with --accept; docs/transforms.md#rebase",
        )
    found = {bases.image.digest: verdict for bases, verdict in zip(_plan(ctx, state).bases, verdicts, strict=True)}
    file = keep_records(work_directory(ctx, state.target.store), "verdicts", found, RebaseVerdict)
    return state.model_copy(update={"verdicts": file})


def _plan(ctx: Context, state: RebaseState) -> Plan:
    return records_of(ctx, state, state.plan, Plan)[_PLAN]


def _verdicts(ctx: Context, state: RebaseState) -> dict[str, RebaseVerdict]:
    return records_of(ctx, state, state.verdicts, RebaseVerdict)


def _from_old(ctx: Context, state: RebaseState) -> Import:
    images = image_set(ctx, state).images
    own = [
        layer
        for image, bases in zip(images, _plan(ctx, state).bases, strict=True)
        for layer in image.manifest.layers[bases.below :]
    ]
    return importing(ctx, state, own)


def _from_new_base(ctx: Context, state: RebaseState) -> Import:
    plan = _plan(ctx, state)
    new_store = Layout.open(ctx.policy.check_store(plan.new_store))
    layers = [
        layer
        for bases in plan.bases
        for layer in resolve_walk(new_store, [bases.new]).manifest.layers
        if not layer.urls or new_store.has(layer)
    ]
    return Import(plan.new_store, state.target.store, layers)


def _make(ctx: Context, state: RebaseState, old: Resolved) -> NewImage:
    plan = _plan(ctx, state)
    (bases,) = (bases for bases in plan.bases if bases.image.digest == old.descriptor.digest)
    found = _verdicts(ctx, state)[old.descriptor.digest]
    if bases.old.digest == bases.new.digest:
        return NewImage(old, None)
    old_base = resolve_walk(Layout.open(ctx.policy.check_store(plan.old_store)), [bases.old])
    new_base = resolve_walk(Layout.open(ctx.policy.check_store(plan.new_store)), [bases.new])
    config, conflicts = rebased_config(old, old_base, new_base, state.epoch)
    manifest = rebased_manifest(old, bases.below, new_base)
    image = write_image(target_of(ctx, state), old.path[-1:], manifest, config)
    parameters = {"verdict": found.verdict, "concerns": found.concerns_total}
    proof = prove_rebase(old, old_base, new_base, image, parameters=parameters)
    warnings = [f"set by the image and changed by the base, the image's stays: {name}" for name in conflicts]
    return NewImage(image, proof, [*warnings, *found.concerns])


def _finish(ctx: Context, state: RebaseState) -> RebaseResult:
    verdicts = list(_verdicts(ctx, state).values())
    return RebaseResult(verdict=_worst(verdicts), verdicts=verdicts, **finish(ctx, state).model_dump(mode="python"))


REBASE = transform_flow(
    RebaseRequest,
    RebaseState,
    _begin,
    (
        Stage("examine", lambda ctx, state: _plan_examine(_plan(ctx, state)), _run_examine, _join_examine),
        import_stage(_from_old),
        import_stage(_from_new_base, "import-base"),
    ),
    _make,
    finish=_finish,
    result=RebaseResult,
)


# --- rebase-check --------------------------------------------------------------------------------


class CheckState(State):
    """What a check knows between its stages."""

    image: ImageRef
    plan: Plan
    verdicts: list[RebaseVerdict] = []


def _begin_check(ctx: Context, request: RebaseCheckRequest) -> CheckState:
    source = Layout.open(ctx.policy.check_store(request.image.store))
    images = read_images(source, request.image.tag)
    for image in images.images:
        for blob in image.blobs:
            source.pin(blob)
    return CheckState(image=request.image, plan=_pin(ctx, images, source, request))


def _join_check(ctx: Context, state: CheckState, results: list[dict[str, Any]]) -> CheckState:
    return state.model_copy(update={"verdicts": [RebaseVerdict.model_validate(result) for result in results]})


def _finish_check(ctx: Context, state: CheckState) -> RebaseCheckResult:
    return RebaseCheckResult(image=str(state.image), verdict=_worst(state.verdicts), images=state.verdicts)


def _clean_check(ctx: Context, request: Request, succeeded: bool) -> None:
    """Nothing was staged."""


REBASE_CHECK = Flow(
    request=RebaseCheckRequest,
    state=CheckState,
    stages=(Stage("examine", lambda ctx, state: _plan_examine(state.plan), _run_examine, _join_check),),
    begin=_begin_check,
    finish=_finish_check,
    clean=_clean_check,
    result=RebaseCheckResult,
)
