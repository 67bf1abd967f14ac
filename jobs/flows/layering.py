"""The stages that turn a tree on disk into a layer of an image: survey, hash, compare, pack, publish.

``build`` and ``repack`` share them; they differ in where the old tree and the base image come from. Every unit leaves
its output as a file in the job's work directory, so a unit that runs twice, or on another host, has the same input
and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeVar

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.errors import display
from layerfarm.jobs.flows.base import Context, Equal, FileRef, Model, Stage, Unit, name_of_work, unit_of, work_directory
from layerfarm.jobs.flows.new_tree import NewTree, Tree
from layerfarm.jobs.flows.requests import (
    BuildRequest,
    IdMapping,
    ImageRef,
    ImageResult,
    LayerOptions,
    RepackRequest,
)
from layerfarm.jobs.flows.stages import single_stage
from layerfarm.jobs.flows.surveying import TreeState, survey_stages
from layerfarm.jobs.image import HistoryEntry, Resolved, append_layer
from layerfarm.jobs.image.documents import timestamp
from layerfarm.jobs.image.pack import PackedLayer, pack_layer
from layerfarm.jobs.image.trees import portable
from layerfarm.jobs.layer import GenerateOptions, IdMap, generate_from_keys, read_keys
from layerfarm.jobs.mtree import (
    ROOT,
    Delta,
    DeltaSummary,
    Entry,
    compare,
    mask,
    parse_lines,
    simplify,
    write_all_extra,
    write_deltas,
)
from layerfarm.jobs.store import Layout

_TREE: Final = "new_tree"
"""The only parameter of a tree unit, and the key of its result."""
_LAST_SECOND: Final = 253_402_300_799
"""9999-12-31T23:59:59Z, the last one that RFC 3339 can express."""


class LayeringState(TreeState):
    """State of the shared stages; the flows' own states extend it."""

    store: Path
    image: ImageRef
    options: LayerOptions
    compression: Compression
    mask_paths: list[str] = []
    uid_map: list[IdMapping] = []
    gid_map: list[IdMapping] = []
    rootless: bool = False
    refresh: bool = False
    """Also write the new tree as on disk, for the bundle's next repack."""
    exact_tree: Tree | None = None
    """The file of that tree; None if it is not wanted, or equal to the old one."""
    tree_digest: str = ""
    """``sha256:`` digest of the manifest of the tree as a layer can hold it."""
    deltas: FileRef | None = None
    changed: DeltaSummary = DeltaSummary()
    """Counts over the deltas."""
    differing: int = 0
    """Number of changed paths, masked ones too."""
    sockets: int = 0
    packed: PackedLayer | None = None
    warnings: list[str] = []
    result: ImageResult | None = None


StateT = TypeVar("StateT", bound=LayeringState)


def layering_stages(
    state_type: type[StateT],
    old_tree: Callable[[Context, StateT], Iterator[Entry]],
    base_of: Callable[[StateT], Resolved | None],
    created_by: str,
    published: Callable[[Context, StateT, Resolved], None] = lambda ctx, state, image: None,
) -> tuple[Stage[StateT], ...]:
    """Return the five stages.

    ``old_tree`` opens the tree to compare with, in mtree order; ``base_of`` is the image below the new layer;
    ``published`` is called with the new image after it is tagged, perhaps twice.
    """

    def beside_layer(ctx: Context, state: StateT) -> bool:
        """Return True if the tree unit runs beside the packing of the layer."""
        survey = state.surveyed
        if 2 * survey.entries_to_read <= survey.entries:
            return True
        if ctx.format < 3:  # Workers of 1.0 expect it beside the comparison.
            return False
        base = base_of(state)
        return base is None or not base.layers

    def plan_compare(ctx: Context, state: StateT) -> list[Unit]:
        if state.surveyed.to_read is None:
            return []
        return [unit_of(state), *(() if beside_layer(ctx, state) else _tree_unit(state))]

    def plan_pack(ctx: Context, state: StateT) -> list[Unit]:
        survey, units = state.surveyed, _pack_units(state)
        # Without a difference, the tree as a layer can hold it equals a known old one, whatever was dirty.
        wanted = state.differing or state.refresh or survey.incremental is None
        if survey.to_read is not None and wanted and beside_layer(ctx, state):
            units += _tree_unit(state)
        return units

    def run_compare(ctx: Context, unit: Unit) -> dict[str, Any]:
        if _TREE in unit.params:
            return _run_tree(ctx, state_type.model_validate(unit.params[_TREE]))
        state = state_type.model_validate(unit.params)
        return _compare(ctx, state, lambda: old_tree(ctx, state))

    def run_pack(ctx: Context, unit: Unit) -> dict[str, Any]:
        if _TREE in unit.params:
            return _run_tree(ctx, state_type.model_validate(unit.params[_TREE]))
        return _pack(ctx, _PackUnit.model_validate(unit.params))

    def publish(ctx: Context, state: StateT) -> ImageResult:
        image = _publish(ctx, state, base_of(state), created_by)
        published(ctx, state, image)
        return _result(state, image)

    return (
        *survey_stages(state_type, lambda state: state.store, work_directory),
        Stage("compare", plan_compare, run_compare, _join),
        Stage("pack", plan_pack, run_pack, _join, Equal(_name_of_pack, _is_packed)),
        single_stage("publish", state_type, ImageResult, publish, commits=True),
    )


def id_map(rows: list[IdMapping]) -> IdMap:
    """Convert the id map of a request or a bundle to the type of ``jobs.layer``."""
    return IdMap.of(*((row.container, row.host, row.size) for row in rows))


def remove_work(ctx: Context, request: BuildRequest | RepackRequest, succeeded: bool) -> None:
    """Remove the job's work directory."""
    work_directory(ctx, request.image.store).remove()


def _join(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
    """Return the state with the fields in ``results`` and their warnings added."""
    update: dict[str, Any] = {}
    warnings = state.warnings
    for result in results:
        update |= result
        warnings = warnings + result.get("warnings", [])
    if not update:
        return state
    return type(state).model_validate(state.model_dump() | update | {"warnings": warnings})


# --- the tree unit: digests the new tree, and writes it for the bundle -----------------------------------------------
#
# It runs beside a unit that leaves a processor idle. If most of the tree was read, that is the comparison: it takes
# one processor, for as long. If few entries were dirty, or there is nothing to compare with, the comparison is short,
# and shows whether there is anything to write: then it is the packing of the layer, which waits for its reader now and
# then.


def _tree_unit(state: LayeringState) -> list[Unit]:
    return [Unit(params={_TREE: state.model_dump(mode="json")})]


def _run_tree(ctx: Context, state: LayeringState) -> dict[str, Any]:
    if state.recorded is not None:
        ctx.policy.check_resolved(state.recorded.manifest.parent)
    new = NewTree(work_directory(ctx, state.store), state)
    if not state.refresh:
        return {"tree_digest": new.digest()}
    tree, digest = new.write()
    return {"tree_digest": digest, "exact_tree": tree.model_dump()}


# --- compare: merge the shards, and compare them with the old tree ----------------------------------------------------


def _compare(ctx: Context, state: LayeringState, old_tree: Callable[[], Iterator[Entry]]) -> dict[str, Any]:
    work = work_directory(ctx, state.store)
    tree = NewTree(work, state)
    sockets: list[bytes] = []
    differing = 0
    summary = DeltaSummary()

    def noting_sockets(entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if entry.type == "socket":
                sockets.append(entry.path)
            yield entry

    def counted(deltas: Iterator[Delta]) -> Iterator[Delta]:
        nonlocal differing
        for delta in deltas:
            differing += 1
            yield delta

    def write(path: Path) -> None:
        nonlocal summary, differing
        with path.open("wb") as out:
            summary = write_deltas(wanted, out)
            if all_new:
                more, left_out = write_all_extra(lines, out)
                summary = summary.joined(more)
                differing += more.paths
                sockets.extend(left_out)

    lines = tree.lines()
    old = tree.replaced(old_tree)
    first = list(islice(old, 2))
    # A tree of nothing but a root, as of an image without layers: all else is new, and need not be parsed.
    all_new = not state.mask_paths and [entry.path for entry in first] in ([], [ROOT])
    new = parse_lines(islice(lines, len(first)) if all_new else lines)
    found = counted(compare(portable(chain(first, old)), portable(noting_sockets(new))))
    masked = [path.encode("utf-8", "surrogateescape") for path in state.mask_paths]
    wanted = simplify(mask(_unclamped(found, state.options.source_date_epoch), masked))
    deltas = work.publish("deltas", write)
    for _ in found:  # masked deltas are not read above, but they change the tree
        pass
    return {
        "deltas": deltas.model_dump(),
        "changed": summary,
        "differing": differing,
        "sockets": len(sockets),
        "warnings": [f"socket left out, a layer cannot hold it: {display(path)}" for path in sockets],
    }


def _unclamped(deltas: Iterator[Delta], epoch: int | None) -> Iterator[Delta]:
    """Drop differences that come only from the same clamp of mtimes in the layer below."""
    for delta in deltas:
        if (
            epoch is None
            or delta.keys != ("tar_time",)
            or delta.old is None
            or delta.new is None
            or min(delta.new.mtime // 1_000_000_000, epoch) != delta.old.mtime // 1_000_000_000
        ):
            yield delta


# --- pack: the changed paths as one layer in the store ---------------------------------------------------------------


class _PackUnit(Model):
    store: Path
    rootfs: Path
    deltas: FileRef
    tree: str
    """Digest of the tree as walked and read, inodes and times included: two trees that differ only in their hard links
    have different digests."""
    compression: Compression
    level: int | None
    prefetch: list[str]
    source_date_epoch: int | None
    uid_map: list[IdMapping]
    gid_map: list[IdMapping]
    rootless: bool

    def codec(self, threads: int = 1) -> Codec:
        return Codec(self.compression, level=self.level, threads=threads, prefetch=tuple(self.prefetch))


def _pack_units(state: LayeringState) -> list[Unit]:
    """Return the unit, or none if the image gets no layer."""
    survey = state.surveyed
    if survey.walk is None or state.deltas is None or not state.changed.paths:
        return []
    known = survey.incremental.tree if survey.incremental else None
    params = _PackUnit(
        store=state.store,
        rootfs=state.rootfs,
        deltas=state.deltas,
        tree=name_of_work("tree", survey.walk.sha256, known, [ref.sha256 for ref in state.fragments]),
        compression=state.compression,
        level=state.options.level,
        prefetch=state.options.prefetch,
        source_date_epoch=state.options.source_date_epoch,
        uid_map=state.uid_map,
        gid_map=state.gid_map,
        rootless=state.rootless,
    )
    return [unit_of(params, state.changed.bytes)]


def _pack(ctx: Context, params: _PackUnit) -> dict[str, Any]:
    rootfs = ctx.policy.check_resolved(params.rootfs)
    work = work_directory(ctx, params.store)
    warnings: list[str] = []
    options = GenerateOptions(
        uid_map=id_map(params.uid_map),
        gid_map=id_map(params.gid_map),
        rootless=params.rootless,
        source_date_epoch=params.source_date_epoch,
        warn=warnings.append,
        advanced=ctx.observer.advanced,
        processes=ctx.policy.threads,
    )
    codec = params.codec(ctx.policy.threads)
    with work.open(params.deltas).open("rb") as stream:
        layer = generate_from_keys(rootfs, read_keys(stream), options)
        packed = pack_layer(Layout.open(params.store), layer, codec)
    return {"packed": packed.model_dump(by_alias=True), "warnings": [*warnings, *packed.warnings]}


def _name_of_pack(ctx: Context, unit: Unit) -> str | None:
    if _TREE in unit.params:
        return None
    params = _PackUnit.model_validate(unit.params)
    return name_of_work("pack", codec_id(params.codec()), params.model_dump(mode="json"))


def _is_packed(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _PackUnit.model_validate(unit.params)
    packed = PackedLayer.model_validate(result["packed"])
    return ctx.store(params.store).claim(packed.descriptor)


# --- publish: config, manifest and tag -------------------------------------------------------------------------------


def _publish(ctx: Context, state: LayeringState, base: Resolved | None, created_by: str) -> Resolved:
    """Put the packed layer on ``base`` and tag the image. Doing it twice changes nothing."""
    layout = ctx.store(state.store)
    created = _created(state)
    image = append_layer(layout, base, state.packed, _history(state, created, created_by), created)
    layout.tag(state.image.tag, image.path[0], needs=image.blobs, once=ctx.commit)
    return image


def _result(state: LayeringState, image: Resolved) -> ImageResult:
    survey, packed = state.surveyed, state.packed
    return ImageResult(
        image=str(state.image),
        manifest=image.descriptor.digest,
        config=image.manifest.config.digest,
        layer=packed.descriptor.digest if packed else None,
        layer_size=packed.descriptor.size if packed else 0,
        diff_id=packed.diff_id if packed else None,
        mtree=tree_digest(state),
        entries=survey.entries - state.sockets,
        deltas=state.changed.paths,
        warnings=state.warnings,
    )


def tree_digest(state: LayeringState) -> str:
    """Return the ``sha256:`` digest of the new tree's manifest: the known one's unless something differs."""
    incremental = state.surveyed.incremental
    return state.tree_digest or (incremental.tree if incremental else "")


def _created(state: LayeringState) -> str | None:
    """Return the time of the new layer: as requested, else the given epoch, else the newest change's.

    Never the clock: the same input must give the same manifest (law 1, docs/architecture.md).
    """
    if state.options.history.created is not None:
        return state.options.history.created
    epoch, newest = state.options.source_date_epoch, state.changed.newest_mtime
    if epoch is not None:
        return timestamp(epoch)
    return None if newest is None else timestamp(min(max(newest, 0), _LAST_SECOND))


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
