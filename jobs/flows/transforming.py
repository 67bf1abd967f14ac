"""The first and the last stages of every transform: pin the image; verify, publish and tag the new one.

A flow puts its own stages between :func:`begin` and those that :func:`transform_flow` adds. Nothing is tagged
before every image of the set is proved equivalent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from layerfarm.jobs.flows.base import (
    Context,
    FileRef,
    Flow,
    Model,
    RecordT,
    Stage,
    WorkDirectory,
    work_directory,
)
from layerfarm.jobs.flows.images import ImagesState, image_set, image_stage, images_behind, pin, source_of
from layerfarm.jobs.flows.importing import Import
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.stages import Planned, ResultT, keyed_stage, result_of, single_stage
from layerfarm.jobs.flows.transforms import ImageChange, TransformRequest, TransformResult
from layerfarm.jobs.image import ImageConfig, PackedLayer, Resolved, resolve, write_image
from layerfarm.jobs.relayer.configs import untrue_label
from layerfarm.jobs.relayer.equivalence import Tolerance
from layerfarm.jobs.relayer.indexes import ImageSet, copy_manifest, follow, platform_of, rewrite
from layerfarm.jobs.relayer.layers import check_range, layers_of_base
from layerfarm.jobs.relayer.proof import Proof, prove, put_proof
from layerfarm.jobs.relayer.referrers import Carrier, Choice
from layerfarm.jobs.store import Descriptor, Layout, check_refname
from layerfarm.jobs.store.transfer import copy_blob


class TransformState(ImagesState):
    """State of every transform; each flow adds its own fields."""

    target: ImageRef
    referrers: Choice
    proof: bool
    transformed: FileRef | None = None
    """A file with its :class:`Transformed`, by the digest of each old image."""
    result: TransformResult | None = None


StateT = TypeVar("StateT", bound=TransformState)


class Transformed(Model):
    """One transformed and proved image of the set."""

    old: Descriptor
    new: Descriptor
    change: ImageChange
    proof: Proof | None = None
    """None: the image did not change."""
    warnings: list[str] = []


@dataclass(frozen=True)
class TransformedImage:
    """A transformed image; its blobs are in the target's store, except those it shares with the old one."""

    image: Resolved
    proof: Proof | None
    """None: nothing had to be done, and ``image`` is the old one."""
    warnings: list[str] = field(default_factory=list)


Make = Callable[[Context, StateT, Resolved], TransformedImage]
"""Writes the documents of a transformed image, given the old one."""


# --- begin ---------------------------------------------------------------------------------------


def begin(ctx: Context, request: TransformRequest, *, linux: bool = True) -> tuple[ImageSet, dict[str, Any]]:
    """Pin the images; return them, and the fields of the first state. Their blobs count as just used.

    ``linux``: images for other systems stay unchanged (:class:`~layerfarm.jobs.flows.images.ImagesState`).

    Raises:
        OutsideAllowedRoots: a store is not allowed; TagNotFound and others: the image cannot be read.
        TransformError: none is for Linux.
    """
    source = ctx.store(request.image.store)
    target = ctx.store(request.target.store)
    check_refname(request.target.tag)
    images = images_behind(ctx, source.path, request.image.tag, linux=linux)
    pin(source, (*images.images, *images.others))
    work_directory(ctx, target.path).create()
    return images, {
        "source": source.path,
        "target": request.target.model_copy(update={"store": target.path}),
        "top": images.top,
        "linux": linux,
        "referrers": request.referrers,
        "proof": request.proof,
        "warnings": images.warnings,
    }


def kept_layers(ctx: Context, image: Resolved, keep: int, base: ImageRef | None) -> int:
    """Return the number of lowest layers that stay: ``keep``, or those of the ``base`` if they are more.

    Raises:
        TransformError: the image has fewer layers, or is not on that base.
    """
    if base is not None:
        base_store = ctx.store(base.store)
        keep = max(keep, layers_of_base(image, resolve(base_store, base.tag, platform_of(image))))
    check_range(image, keep, None)
    return keep


# --- the images and records of a job --------------------------------------------------------------


def target_of(ctx: Context, state: TransformState) -> Layout:
    return ctx.store(state.target.store)


def work_of(ctx: Context, state: TransformState) -> WorkDirectory:
    return work_directory(ctx, state.target.store)


def images_with(
    ctx: Context, state: TransformState, file: FileRef | None, kind: type[RecordT]
) -> Iterator[tuple[Resolved, RecordT]]:
    """Yield each image of the set, once, with its record in ``file``."""
    records = work_of(ctx, state).kept(file, kind)
    for image in image_set(ctx, state).images:
        yield image, records[image.descriptor.digest]


def importing(ctx: Context, state: TransformState, layers: Iterable[Descriptor]) -> Import:
    """Return the import of layers that the new image shares with the old; external ones need not be in the store."""
    return importing_from(source_of(ctx, state), state, layers)


def importing_from(store: Layout, state: TransformState, layers: Iterable[Descriptor]) -> Import:
    """Return the import of shared layers from another store."""
    return Import(store.path, state.target.store, [layer for layer in layers if not layer.urls or store.has(layer)])


# --- stages of layers ----------------------------------------------------------------------------


class LayerWork(Model):
    """Parameters of a unit that writes one layer; each flow adds its own."""

    target: Path


WorkT = TypeVar("WorkT", bound=LayerWork)


def layer_stage(
    name: str,
    params: type[WorkT],
    plan: Callable[[Context, StateT], Planned[WorkT]],
    run: Callable[[Context, WorkT], PackedLayer],
    into: str,
    equal: Callable[[Context, WorkT], str],
) -> Stage[StateT]:
    """Return a stage with a unit for each layer to be written; equal units of all jobs share it."""

    def holds(ctx: Context, params: WorkT, packed: PackedLayer) -> bool:
        return ctx.store(params.target).claim(packed.descriptor)

    return keyed_stage(name, params, PackedLayer, plan, run, keeping(into, PackedLayer), equal, holds)


def keeping(into: str, result: type[ResultT]) -> Callable[[Context, StateT, dict[str, ResultT]], StateT]:
    """Return a join that stores the results, by the keys of the plan, in the file ``into`` of the state."""

    def join(ctx: Context, state: StateT, results: dict[str, ResultT]) -> StateT:
        return state.model_copy(update={into: work_of(ctx, state).keep(into, results, result)})

    return join


# --- prove, publish ------------------------------------------------------------------------------


def written(
    ctx: Context,
    state: TransformState,
    old: Resolved,
    layers: Sequence[Descriptor],
    config: ImageConfig,
    allowed: Tolerance,
    operation: str,
    parameters: dict[str, Any],
    warnings: Sequence[str] = (),
) -> TransformedImage:
    """Write the image with these layers and this config, and prove that it differs only as ``allowed``.

    Raises:
        NotEquivalent: it has other differences.
    """
    source, target = source_of(ctx, state), target_of(ctx, state)
    image = write_image(target, old.path[-1:], old.manifest.model_copy(update={"layers": list(layers)}), config)
    known: dict[str, Any] = {"operation": operation, "parameters": parameters, "advanced": ctx.observer.advanced}
    untrue = untrue_label(old.config, config)
    proof = prove(source, old, target, image, allowed, **known)
    return TransformedImage(image, proof, [*warnings, *([untrue] if untrue else [])])


def transform_flow(
    request: type[TransformRequest],
    state: type[StateT],
    begin: Callable[[Context, Any], StateT],
    stages: Sequence[Stage[StateT]],
    make: Make[StateT],
    finish: Callable[[Context, StateT], TransformResult] = result_of,
    result: type[TransformResult] = TransformResult,
) -> Flow[StateT]:
    """Return the flow of a transform: its own ``stages``, ``prove`` with a unit for each image, and ``publish``."""

    def run_prove(ctx: Context, known: StateT, old: Resolved) -> FileRef:
        new = make(ctx, known, old)
        copy_blob(source_of(ctx, known), target_of(ctx, known), new.image.manifest.config)
        transformed = Transformed(
            old=old.descriptor,
            new=new.image.descriptor,
            change=_change(old, new.image),
            proof=new.proof,
            warnings=new.warnings,
        )
        # A file, because a proof names every layer.
        digest = old.descriptor.digest
        name = f"transformed-{digest.partition(':')[2]}"
        return work_of(ctx, known).keep(name, {digest: transformed}, Transformed)

    closing: tuple[Stage[StateT], ...] = (
        image_stage("prove", state, FileRef, run_prove, keeping("transformed", FileRef), costs=_no_bytes),
        single_stage("publish", state, TransformResult, _publish, commits=True),
    )
    return Flow(request, state, (*stages, *closing), begin, finish, _clean, result)


def _no_bytes(ctx: Context, state: TransformState) -> Iterator[tuple[Resolved, int]]:
    """Return the images, with no bytes: a proof that reads no layer would leave its progress incomplete."""
    return ((image, 0) for image in image_set(ctx, state).images)


def _clean(ctx: Context, request: TransformRequest, succeeded: bool) -> None:
    work_directory(ctx, request.target.store).remove()


def _publish(ctx: Context, state: TransformState) -> TransformResult:
    """Write indexes, proofs and referrers, and set the tag. Idempotent."""
    source, target = source_of(ctx, state), target_of(ctx, state)
    with source.steady(), target.steady():
        return _published(ctx, state, source, target)


def _published(ctx: Context, state: TransformState, source: Layout, target: Layout) -> TransformResult:
    images = image_set(ctx, state)
    every = (*images.images, *images.others)
    work = work_of(ctx, state)
    files = work.kept(state.transformed, FileRef).values()
    done = [each for file in files for each in work.kept(file, Transformed).values()]
    replaced = {each.old.digest: each.new for each in done if each.new.digest != each.old.digest}
    for image in every:
        if image.descriptor.digest not in replaced:
            copy_manifest(source, target, image.descriptor)
    same = all(each.proof is None or each.proof.same_tree for each in done)
    carrier = Carrier(source, target, same_tree=same, choice=state.referrers)
    top = rewrite(target, source, images.top, replaced, carrier.beside)
    proved = [each for each in done if each.proof is not None and state.proof]
    proofs = {each.new.digest: put_proof(target, each.proof, each.new) for each in proved if each.proof is not None}
    changes = [
        each.change.model_copy(update={"proof": proofs[each.new.digest].digest if each.new.digest in proofs else None})
        for each in done
    ]
    for old in (*images.indexes, *(image.descriptor for image in every)):
        carrier.referrers(old, replaced.get(old.digest, old))
    new = follow(target, top).images
    needs = [*(blob for image in new for blob in image.blobs), *proofs.values()]
    # With the tag: each change writes the whole index.
    target.tag(state.target.tag, top, needs, once=ctx.commit, referrers=proofs.values())
    return TransformResult(
        image=str(state.target),
        old=images.top.digest,
        new=top.digest,
        images=changes,
        bytes_before=_bytes(every),
        bytes_after=_bytes(new),
        referrers=carrier.carried,
        unchanged=top.digest == images.top.digest,
        warnings=[*state.warnings, *(text for each in done for text in each.warnings), *carrier.warnings],
    )


def _change(old: Resolved, new: Resolved) -> ImageChange:
    return ImageChange(
        platform=platform_of(old),
        old=old.descriptor.digest,
        new=new.descriptor.digest,
        layers_before=len(old.manifest.layers),
        layers_after=len(new.manifest.layers),
        bytes_before=_bytes([old]),
        bytes_after=_bytes([new]),
    )


def _bytes(images: Iterable[Resolved]) -> int:
    """Return the compressed bytes of their layers, each counted once."""
    return sum({layer.digest: layer.size for image in images for layer in image.manifest.layers}.values())
