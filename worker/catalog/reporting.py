"""From what is known of a catalog's images to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerfarm.jobs.relayer.indexes import follow
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.catalog.report import Holding, ImageRow, Report, pulls, shared, totals
from layerfarm.worker.catalog.sources import CatalogImage, in_order
from layerfarm.worker.catalog.state import ImageState
from layerfarm.worker.catalog.work import Work


def report_of(work: Work, images: Sequence[CatalogImage]) -> Report:
    """The costs of the images that were fetched; one that is not made yet, or not planned, counts as it was.

    Raises:
        StoreError: the store has lost something of them.
    """
    planned = work.joint.holdings() if work.joint else {}
    states = {image.name: work.states[image.name] for image in images}
    fetched = {name: state for name, state in states.items() if state.old is not None}
    series = list(in_order(fetched, _created(fetched), work.catalog.order).values())
    before = {name: holding_of(work.store, state.old) for name, state in fetched.items() if state.old}
    made = {image.name: _new(work, image) for image in images if image.name in fetched}
    any_made = any(blobs is not None for blobs in made.values())
    after = {name: blobs if blobs is not None else before[name] for name, blobs in made.items()}
    predicted: dict[str, Holding] = {}
    if planned:
        predicted = {name: planned.get(name, held) for name, held in before.items()}
    costs = [pulls(state, series) for state in (before, predicted, after)]
    rows = []
    for name in (name for repository in series for name in repository):
        rows.append(
            _row(states[name], policy_of(images, name), before[name], predicted.get(name), made[name]).model_copy(
                update={
                    "pull_before": costs[0].get(name),
                    "pull_planned": costs[1].get(name),
                    "pull_after": costs[2].get(name) if any_made else None,
                }
            )
        )
    rows += [_missing(state) for name, state in states.items() if name not in fetched]
    return Report(
        catalog=work.name,
        before=totals(before, series),
        planned=totals(predicted, series) if planned else None,
        after=totals(after, series) if any_made else None,
        images=tuple(rows),
        shared_before=shared(before),
        shared_after=shared(after) if any_made else (),
        duplicates=tuple(work.joint.duplicates()) if work.joint else (),
    )


def holding_of(layout: Layout, top: Descriptor) -> Holding:
    """The layers and configurations of an image, of all platforms of an index, with their compressed bytes."""
    images = follow(layout, top).images
    return Holding(
        {layer.digest: layer.size for image in images for layer in image.manifest.layers},
        {image.manifest.config.digest: image.manifest.config.size for image in images},
    )


def policy_of(images: Sequence[CatalogImage], name: str) -> str:
    return next(image.policy.do.transform for image in images if image.name == name)


def _new(work: Work, image: CatalogImage) -> Holding | None:
    state = work.states[image.name]
    if state.new is None or not work.is_made(image):
        return None
    return holding_of(Layout.open(work.target(image).store), state.new)


def _created(states: Mapping[str, ImageState]) -> dict[str, str | None]:
    return {name: state.created for name, state in states.items()}


def _row(state: ImageState, policy: str, before: Holding, planned: Holding | None, made: Holding | None) -> ImageRow:
    assert state.old is not None
    proofs = [change.proof for change in state.result.images if change.proof] if state.result else []
    return ImageRow(
        name=state.name,
        state="failed" if state.error else "done" if made is not None else "planned" if planned else "pending",
        error=state.error,
        policy=policy,
        old=state.old.digest,
        new=state.new.digest if state.new and made is not None else None,
        proof=proofs[0] if proofs else None,
        layers_before=len(before.layers),
        layers_planned=None if planned is None else len(planned.layers),
        layers_after=None if made is None else len(made.layers),
        bytes_before=sum(before.blobs.values()),
        bytes_after=None if made is None else sum(made.blobs.values()),
        warnings=(*state.left, *(state.result.warnings if state.result else ())),
    )


def _missing(state: ImageState) -> ImageRow:
    return ImageRow(
        name=state.name,
        state="failed" if state.error else "pending",
        error=state.error,
        layers_before=0,
        bytes_before=0,
    )
