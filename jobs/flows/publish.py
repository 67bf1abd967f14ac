"""The last stage of a build or a repack: config and manifest, and the tag."""

from __future__ import annotations

from layerfarm.jobs.flows.base import Context
from layerfarm.jobs.flows.layer_state import LayeringState
from layerfarm.jobs.flows.requests import ImageResult
from layerfarm.jobs.image import HistoryEntry, Resolved, append_layer
from layerfarm.jobs.image.documents import timestamp
from layerfarm.jobs.store import Layout


def publish_image(ctx: Context, state: LayeringState, base: Resolved | None, tag: str, created_by: str) -> Resolved:
    """Put the packed layer on ``base`` and let ``tag`` name the outcome. Doing it twice changes nothing."""
    layout = Layout.open(ctx.policy.check_store(state.store))
    created = _created(state)
    image = append_layer(layout, base, state.packed, _history(state, created, created_by), created)
    layout.tag(tag, image.path[0], needs=image.blobs, once=ctx.commit)
    return image


def image_result(state: LayeringState, store_and_tag: str, manifest: str, config: str) -> ImageResult:
    """What the job gives back."""
    assert state.changes is not None
    packed = state.packed
    return ImageResult(
        image=store_and_tag,
        manifest=manifest,
        config=config,
        layer=packed.descriptor.digest if packed else None,
        layer_size=packed.descriptor.size if packed else 0,
        diff_id=packed.diff_id if packed else None,
        mtree=state.tree_digest,
        entries=state.tree_entries,
        deltas=state.changes.count,
        warnings=state.warnings,
    )


def _created(state: LayeringState) -> str | None:
    """The time of the new layer: as asked, else the epoch given, else that of the newest change.

    Never the clock, or the same input would not give the same manifest (DESIGN law 1).
    """
    assert state.changes is not None
    if state.options.history.created is not None:
        return state.options.history.created
    epoch, newest = state.options.source_date_epoch, state.changes.newest_mtime
    if epoch is not None:
        return timestamp(epoch)
    return None if newest is None else timestamp(min(max(newest, 0), _LAST_SECOND))


_LAST_SECOND = 253_402_300_799
"""9999-12-31T23:59:59Z, the last one that RFC 3339 can write."""


def _history(state: LayeringState, created: str | None, created_by: str) -> HistoryEntry | None:
    wanted = state.options.history
    if wanted.omit:
        return None
    return HistoryEntry(
        created=created,
        created_by=wanted.created_by if wanted.created_by is not None else created_by,
        author=wanted.author,
        comment=wanted.comment,
    )
