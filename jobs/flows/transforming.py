"""What every transform of an image begins and ends with: pin it, and prove, publish and tag what was made.

A flow puts its own stages between :func:`begin` and those that :func:`transform_flow` adds. Nothing is tagged
before every image of the set is proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from layerfarm.jobs.flows.base import Context, FileRef, Flow, Model, Stage, State, Unit, unit_of, work_directory
from layerfarm.jobs.flows.importing import Import
from layerfarm.jobs.flows.records import RecordT, keep_records, read_records
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import ImageChange, TransformRequest, TransformResult
from layerfarm.jobs.image import ImageConfig, PackedLayer, Resolved, resolve, write_image
from layerfarm.jobs.relayer.equivalence import Allowed
from layerfarm.jobs.relayer.indexes import ImageSet, copy_manifest, follow, platform_of, read_images, rewrite
from layerfarm.jobs.relayer.layers import check_range, layers_of_base, linux_only
from layerfarm.jobs.relayer.proof import Proof, attach_proof, prove
from layerfarm.jobs.relayer.referrers import Carrier, Choice
from layerfarm.jobs.store import Descriptor, Layout, check_refname
from layerfarm.jobs.store.transfer import copy_blob


class Made(Model):
    """One image of the set, made over and proved."""

    old: Descriptor
    new: Descriptor
    change: ImageChange
    proof: Proof | None = None
    """None: it is the old one."""
    warnings: list[str] = []


class TransformState(State):
    """What every transform knows; the flows' own states extend it."""

    source: Path
    target: ImageRef
    top: Descriptor
    """What the tag named when the job began."""
    referrers: Choice
    made: FileRef | None = None
    """:class:`Made` by the digest of the old image."""
    warnings: list[str] = []
    result: TransformResult | None = None


StateT = TypeVar("StateT", bound=TransformState)


@dataclass(frozen=True)
class NewImage:
    """What a flow made of one image; its blobs are in the target's store, but for those it shares with the old."""

    image: Resolved
    proof: Proof | None
    """None: nothing had to be done, and ``image`` is the old one."""
    warnings: list[str] = field(default_factory=list)


Make = Callable[[Context, StateT, Resolved], NewImage]


def begin(ctx: Context, request: TransformRequest) -> tuple[ImageSet, dict[str, Any]]:
    """Pin the image: the set, and the fields of the first state. Its blobs count as just used from now on.

    Raises:
        OutsideAllowedRoots: a store is not allowed; TagNotFound and others: the image cannot be read.
    """
    source = Layout.open(ctx.policy.check_store(request.image.store))
    target = Layout.open(ctx.policy.check_store(request.target.store))
    check_refname(request.target.tag)
    images = read_images(source, request.image.tag)
    for blob in {blob.digest: blob for image in images.images for blob in image.blobs}.values():
        source.pin(blob)
    work_directory(ctx, target.path).create()
    return images, {
        "source": source.path,
        "target": request.target.model_copy(update={"store": target.path}),
        "top": images.top,
        "referrers": request.referrers,
        "warnings": images.warnings,
    }


def image_set(ctx: Context, state: TransformState) -> ImageSet:
    """The images as they were when the job began."""
    return follow(source_of(ctx, state), state.top)


def records_of(ctx: Context, state: TransformState, file: FileRef | None, kind: type[RecordT]) -> dict[str, RecordT]:
    """The records that the job keeps in ``file`` (:mod:`layerfarm.jobs.flows.records`)."""
    return read_records(work_directory(ctx, state.target.store), file, kind)


def images_with(
    ctx: Context, state: TransformState, file: FileRef | None, kind: type[RecordT]
) -> Iterator[tuple[Resolved, RecordT]]:
    """Each image of the set, once, with its record in ``file``."""
    records = records_of(ctx, state, file, kind)
    for image in image_set(ctx, state).images:
        yield image, records[image.descriptor.digest]


def source_of(ctx: Context, state: TransformState) -> Layout:
    return Layout.open(ctx.policy.check_store(state.source))


def target_of(ctx: Context, state: TransformState) -> Layout:
    return Layout.open(ctx.policy.check_store(state.target.store))


def finish(ctx: Context, state: TransformState) -> TransformResult:
    """What the job gives back."""
    assert state.result is not None
    return state.result


def clean(ctx: Context, request: TransformRequest, succeeded: bool) -> None:
    """Remove what the job staged."""
    work_directory(ctx, request.target.store).remove()


def transform_flow(
    request: type[TransformRequest],
    state: type[StateT],
    begin: Callable[[Context, Any], StateT],
    stages: Sequence[Stage[StateT]],
    make: Make[StateT],
    **others: Any,
) -> Flow[StateT]:
    """The flow of a transform: its own ``stages``, then two that all have.

    ``prove`` is a unit for each image of the set, in which ``make`` writes its documents; and ``publish``.
    ``others`` are fields of :class:`Flow` that are not those of every transform.
    """
    closing: _Closing[StateT] = _Closing(state, make)
    fields: dict[str, Any] = {"finish": finish, "clean": clean, "result": TransformResult}
    return Flow(
        request=request,
        state=state,
        stages=(
            *stages,
            Stage("prove", closing.plan_prove, closing.prove, closing.join_prove),
            Stage("publish", closing.plan_publish, closing.publish, closing.join_publish, commits=True),
        ),
        begin=begin,
        **(fields | others),
    )


# --- what several transforms do -------------------------------------------------------------------


def kept_layers(ctx: Context, image: Resolved, keep: int, base: ImageRef | None) -> int:
    """How many of the lowest layers are to stay: ``keep``, or those of the ``base``, if they are more.

    Raises:
        TransformError: the image has not so many, is not on that base, or not for Linux.
    """
    linux_only(image)
    if base is not None:
        base_store = Layout.open(ctx.policy.check_store(base.store))
        keep = max(keep, layers_of_base(image, resolve(base_store, base.tag, platform_of(image))))
    check_range(image, keep, None)
    return keep


def importing(ctx: Context, state: TransformState, layers: Iterable[Descriptor]) -> Import:
    """Layers of the old image that the new one has too; what is fetched from elsewhere need not be in the store."""
    source = source_of(ctx, state)
    return Import(state.source, state.target.store, [layer for layer in layers if not layer.urls or source.has(layer)])


def layer_is_there(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    """Of a unit that gives a layer for the layout ``target``: whether that still holds it (:class:`Equal`)."""
    packed = PackedLayer.model_validate(result)
    return Layout.open(ctx.policy.check_store(Path(unit.params["target"]))).claim(packed.descriptor)


def written(
    ctx: Context,
    state: TransformState,
    old: Resolved,
    layers: Sequence[Descriptor],
    config: ImageConfig,
    allowed: Allowed,
    operation: str,
    parameters: dict[str, Any],
    warnings: Sequence[str] = (),
) -> NewImage:
    """Write the image of these layers and this config, and prove it to be the old one but for what is allowed.

    Raises:
        NotEquivalent: it is not.
    """
    target = target_of(ctx, state)
    image = write_image(target, old.path[-1:], old.manifest.model_copy(update={"layers": list(layers)}), config)
    proof = prove(
        source_of(ctx, state),
        old,
        target,
        image,
        allowed,
        operation=operation,
        parameters=parameters,
        advanced=ctx.observer.advanced,
    )
    return NewImage(image, proof, list(warnings))


class _Closing(Generic[StateT]):
    def __init__(self, state_type: type[StateT], make: Make[StateT]) -> None:
        self._state_type = state_type
        self._make = make

    # --- prove ---------------------------------------------------------------------------------------

    def plan_prove(self, ctx: Context, state: StateT) -> list[Unit]:
        return [
            Unit(params={"state": state.model_dump(mode="json"), "image": image.descriptor.digest})
            for image in image_set(ctx, state).images
        ]

    def prove(self, ctx: Context, unit: Unit) -> dict[str, Any]:
        state = self._state_type.model_validate(unit.params["state"])
        images = image_set(ctx, state).images
        (old,) = (image for image in images if image.descriptor.digest == unit.params["image"])
        target = target_of(ctx, state)
        new = self._make(ctx, state, old)
        copy_blob(source_of(ctx, state), target, new.image.manifest.config)
        made = Made(
            old=old.descriptor,
            new=new.image.descriptor,
            change=_change(old, new.image),
            proof=new.proof,
            warnings=new.warnings,
        )
        # A proof names every layer.
        work = work_directory(ctx, state.target.store)
        name = f"made-{old.descriptor.digest.partition(':')[2]}"
        return keep_records(work, name, {old.descriptor.digest: made}, Made).model_dump()

    def join_prove(self, ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
        work = work_directory(ctx, state.target.store)
        made: dict[str, Made] = {}
        for result in results:
            made |= read_records(work, FileRef.model_validate(result), Made)
        return state.model_copy(update={"made": keep_records(work, "made", made, Made)})

    # --- publish -------------------------------------------------------------------------------------

    def plan_publish(self, ctx: Context, state: StateT) -> list[Unit]:
        return [unit_of(state)]

    def publish(self, ctx: Context, unit: Unit) -> dict[str, Any]:
        state = self._state_type.model_validate(unit.params)
        source, target = source_of(ctx, state), target_of(ctx, state)
        made = read_records(work_directory(ctx, target.path), state.made, Made)
        return _publish(ctx, source, target, state, image_set(ctx, state), list(made.values())).model_dump()

    def join_publish(self, ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
        (result,) = results
        return state.model_copy(update={"result": TransformResult.model_validate(result)})


def _publish(
    ctx: Context, source: Layout, target: Layout, state: TransformState, images: ImageSet, done: Sequence[Made]
) -> TransformResult:
    """Indexes, proofs, what speaks of the images, and at last the tag. Doing it twice changes nothing."""
    replaced = {made.old.digest: made.new for made in done if made.new.digest != made.old.digest}
    for image in images.images:
        if image.descriptor.digest not in replaced:
            copy_manifest(source, target, image.descriptor)
    same = all(made.proof is None or made.proof.same_tree for made in done)
    carrier = Carrier(source, target, same_tree=same, choice=state.referrers)
    top = rewrite(target, source, images.top, replaced, carrier.beside)
    changes = []
    for made in done:
        proof = None
        if made.proof is not None:
            proof = attach_proof(target, made.proof, made.new).digest
        changes.append(made.change.model_copy(update={"proof": proof}))
    for old in (*images.indexes, *(image.descriptor for image in images.images)):
        carrier.referrers(old, replaced.get(old.digest, old))
    new = follow(target, top).images
    needs = [blob for image in new for blob in image.blobs]
    target.tag(state.target.tag, top, needs=needs, once=ctx.commit)
    return TransformResult(
        image=str(state.target),
        old=images.top.digest,
        new=top.digest,
        images=changes,
        bytes_before=_bytes(images.images),
        bytes_after=_bytes(new),
        referrers=carrier.carried,
        unchanged=top.digest == images.top.digest,
        warnings=[*state.warnings, *(text for made in done for text in made.warnings), *carrier.warnings],
    )


def _change(old: Resolved, new: Resolved) -> ImageChange:
    return ImageChange(
        platform=platform_of(old),
        old=old.descriptor.digest,
        new=new.descriptor.digest,
        layers_before=len(old.manifest.layers),
        layers_after=len(new.manifest.layers),
        bytes_before=sum(layer.size for layer in old.manifest.layers),
        bytes_after=sum(layer.size for layer in new.manifest.layers),
    )


def _bytes(images: Iterable[Resolved]) -> int:
    return sum({layer.digest: layer.size for image in images for layer in image.manifest.layers}.values())
