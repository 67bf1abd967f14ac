"""Stages with a unit for each image behind a tag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from layerfarm.jobs.flows.base import Context, Model, Stage, State
from layerfarm.jobs.flows.stages import Planned, ResultT, keyed_stage
from layerfarm.jobs.image import Resolved, resolve_walk
from layerfarm.jobs.relayer.indexes import ImageSet, follow, tagged
from layerfarm.jobs.store import Descriptor, Layout


class ImagesState(State):
    """State of a flow that works on all images behind a tag; each flow adds its own fields."""

    source: Path
    top: Descriptor
    """The manifest or index behind the tag when the job began."""
    linux: bool = True
    """Process only images for Linux (:meth:`~layerfarm.jobs.relayer.indexes.ImageSet.linux`)."""
    warnings: list[str] = []


StateT = TypeVar("StateT", bound=ImagesState)


def images_behind(ctx: Context, store: Path, top: Descriptor | str, *, linux: bool = True) -> ImageSet:
    """Return the images behind a tag, or a manifest or index. A process reads the documents once a job.

    ``linux``: see :class:`ImagesState`. Raises as :func:`~layerfarm.jobs.relayer.indexes.tagged`,
    :func:`~layerfarm.jobs.relayer.indexes.follow` and :meth:`~layerfarm.jobs.relayer.indexes.ImageSet.linux`.
    """
    path = ctx.policy.check_store(store)
    found = tagged(Layout.open(path), top) if isinstance(top, str) else top
    images = _followed(ctx.work, path, found.model_dump_json(by_alias=True))
    return images.linux() if linux else images


@lru_cache(maxsize=2)
def _followed(work: str, store: Path, top: str) -> ImageSet:
    return follow(Layout.open(store), Descriptor.model_validate_json(top))


def pin(store: Layout, images: Iterable[Resolved]) -> None:
    """Claim all blobs of the images for the job; they count as just used."""
    for blob in {blob.digest: blob for image in images for blob in image.blobs}.values():
        store.pin(blob)


def image_set(ctx: Context, state: ImagesState) -> ImageSet:
    """Return the images behind the tag when the job began."""
    return images_behind(ctx, state.source, state.top, linux=state.linux)


def source_of(ctx: Context, state: ImagesState) -> Layout:
    return ctx.store(state.source)


class _ImageWork(Model):
    state: dict[str, Any]
    image: Descriptor


def _sizes(ctx: Context, state: ImagesState) -> Iterator[tuple[Resolved, int]]:
    for image in image_set(ctx, state).images:
        yield image, sum(layer.size for layer in image.manifest.layers)


def image_stage(
    name: str,
    state: type[StateT],
    result: type[ResultT],
    run: Callable[[Context, StateT, Resolved], ResultT],
    join: Callable[[Context, StateT, dict[str, ResultT]], StateT],
    *,
    costs: Callable[[Context, StateT], Iterable[tuple[Resolved, int]]] = _sizes,
    equal: Callable[[Context, StateT, Resolved], str] | None = None,
    holds: Callable[[Context, StateT, ResultT], bool] = lambda ctx, state, result: True,
) -> Stage[StateT]:
    """Return a stage with a unit for each image. ``join`` gets the results by the digests of the images.

    ``costs``: the images, and the bytes to read for each. ``equal``, ``holds``: as
    :class:`~layerfarm.jobs.flows.base.Equal`.
    """

    def plan(ctx: Context, known: StateT) -> Planned[_ImageWork]:
        document = known.model_dump(mode="json")
        return {
            image.descriptor.digest: (_ImageWork(state=document, image=image.descriptor), nbytes)
            for image, nbytes in costs(ctx, known)
        }

    def parsed(ctx: Context, work: _ImageWork) -> tuple[StateT, Resolved]:
        known = state.model_validate(work.state)
        return known, resolve_walk(source_of(ctx, known), [work.image])

    return keyed_stage(
        name,
        _ImageWork,
        result,
        plan,
        lambda ctx, work: run(ctx, *parsed(ctx, work)),
        join,
        None if equal is None else lambda ctx, work: equal(ctx, *parsed(ctx, work)),
        lambda ctx, work, found: holds(ctx, state.model_validate(work.state), found),
    )
