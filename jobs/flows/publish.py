"""The last stage of a build or a repack: config and manifest, the tag, and the tree for the next one."""

from __future__ import annotations

from layerfarm.jobs.flows.base import Context, work_directory
from layerfarm.jobs.flows.layer_state import LayeringState
from layerfarm.jobs.flows.requests import ImageResult
from layerfarm.jobs.image import HistoryEntry, Resolved, adopt_tree, append_layer, share_tree
from layerfarm.jobs.image.timestamps import timestamp
from layerfarm.jobs.store import Layout


def publish_image(ctx: Context, state: LayeringState, base: Resolved | None, tag: str, created_by: str) -> Resolved:
    """Put the packed layer on ``base`` and let ``tag`` name the outcome. Doing it twice changes nothing."""
    layout = Layout.open(ctx.policy.check_store(state.store))
    created = _created(state)
    image = append_layer(layout, base, state.packed, _history(state, created, created_by), created)
    if _tree_is_the_images(state):
        _remember_tree(ctx, layout, state, base, image)
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


def _tree_is_the_images(state: LayeringState) -> bool:
    """True if unpacking the image would give the very tree that was hashed.

    Not so when paths were masked, ids mapped, or mtimes clamped.
    """
    mapped = state.uid_map or state.gid_map or state.rootless
    return not (state.mask_paths or mapped or state.options.source_date_epoch is not None)


def _remember_tree(ctx: Context, layout: Layout, state: LayeringState, base: Resolved | None, image: Resolved) -> None:
    if state.tree is None:
        # The old tree, which may be kept or not; to make it now would cost more than all the rest.
        if base is not None:
            share_tree(layout, base.descriptor.digest, image.descriptor.digest)
        return
    work = work_directory(ctx, layout.path)
    adopt_tree(layout, image.descriptor.digest, work.open(state.tree.manifest), work.open(state.tree.extra))
