"""The stage that writes: the changed paths as one layer in the store, and beside it the new tree's manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jobs.flows.base import Context, Equal, FileRef, Model, Stage, Unit, name_of_work, work_directory
from jobs.flows.layer_state import LayeringState, StateT, id_map
from jobs.flows.newtree import NewTree, Tree
from jobs.flows.requests import IdMapping
from jobs.flows.survey import Known, Survey
from jobs.image.pack import PackedLayer, pack_layer
from jobs.layer import Codec, Compression, GenerateOptions, codec_id, generate_layer
from jobs.mtree import read_deltas
from jobs.store import Layout

_TREE_NAME: Final = "tree"
_EXACT_TREE_NAME: Final = "bundle"


def pack_stage() -> Stage[StateT]:
    """The stage, the same for every flow that has it."""
    return Stage("pack", _plan, _run, _join, Equal(_name, _is_packed))


class _PackUnit(Model):
    store: Path
    rootfs: Path
    changes: FileRef
    tree: str
    """Digest of what was found and read of the tree, inodes and times too: so two trees that are equal but
    for how their hard links go are not taken for one."""
    compression: Compression
    level: int | None
    source_date_epoch: int | None
    uid_map: list[IdMapping]
    gid_map: list[IdMapping]
    rootless: bool


class _TreeUnit(Model):
    store: Path
    survey: Survey
    fragments: list[FileRef]
    known: Known | None
    packed: bool
    """Write the tree as a layer can hold it."""
    exact: bool
    """Write it as it lies on disk."""


class _Trees(Model):
    """What a tree unit wrote."""

    tree: Tree | None = None
    exact_tree: Tree | None = None


_LAYER: Final = "layer"
_TREES: Final = "trees"
"""What the units of the stage make; a unit's parameters are below the one of its kind."""


def _plan(ctx: Context, state: LayeringState) -> list[Unit]:
    return [*_plan_layer(state), *_plan_trees(state)]


def _plan_layer(state: LayeringState) -> Iterator[Unit]:
    assert state.changes is not None
    if state.changes.count == 0 or state.changes.file is None:
        return
    params = _PackUnit(
        store=state.store,
        rootfs=state.rootfs,
        changes=state.changes.file,
        tree=_tree_as_read(state),
        compression=state.compression,
        level=state.options.level,
        source_date_epoch=state.options.source_date_epoch,
        uid_map=state.uid_map,
        gid_map=state.gid_map,
        rootless=state.rootless,
    )
    yield Unit(params={_LAYER: params.model_dump(mode="json")}, bytes=state.changes.bytes)


def _plan_trees(state: LayeringState) -> Iterator[Unit]:
    """Beside the layer, which leaves a processor idle now and then: 0.7 s for each tree of 137,000 entries."""
    survey = state.survey
    assert survey is not None
    if survey.untouched:
        return
    # Where nothing differs the tree as a layer can hold it is the old one, whatever was suspected.
    packed = bool(state.differing) or survey.reading is None
    if packed or state.exact:
        params = _TreeUnit(
            store=state.store,
            survey=survey,
            fragments=state.fragments,
            known=state.known,
            packed=packed,
            exact=state.exact,
        )
        yield Unit(params={_TREES: params.model_dump(mode="json")})


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    return _run_layer(ctx, unit) if _LAYER in unit.params else _run_trees(ctx, unit)


def _run_trees(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _TreeUnit.model_validate(unit.params[_TREES])
    if params.known is not None:
        ctx.policy.check_root(params.known.manifest.parent)
    tree = NewTree(work_directory(ctx, params.store), params.survey, params.fragments, params.known)
    written = _Trees(
        tree=tree.write(_TREE_NAME) if params.packed else None,
        exact_tree=tree.write(_EXACT_TREE_NAME, exact=True) if params.exact else None,
    )
    return {_TREES: written.model_dump(mode="json")}


def _run_layer(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _PackUnit.model_validate(unit.params[_LAYER])
    rootfs = ctx.policy.check_root(params.rootfs)
    work = work_directory(ctx, params.store)
    warnings: list[str] = []
    options = GenerateOptions(
        uid_map=id_map(params.uid_map),
        gid_map=id_map(params.gid_map),
        rootless=params.rootless,
        source_date_epoch=params.source_date_epoch,
        warn=warnings.append,
        advanced=ctx.observer.advanced,
    )
    codec = Codec(params.compression, level=params.level, threads=ctx.policy.threads)
    with work.open(params.changes).open("rb") as stream:
        layer = generate_layer(rootfs, read_deltas(stream), options)
        packed = pack_layer(Layout.open(params.store), layer, codec)
    return {"packed": packed.model_dump(by_alias=True), "warnings": warnings}


def _tree_as_read(state: LayeringState) -> str:
    assert state.survey is not None
    return name_of_work("tree", state.survey.walk.sha256, state.survey.tree, [ref.sha256 for ref in state.fragments])


def _name(ctx: Context, unit: Unit) -> str | None:
    if _LAYER not in unit.params:
        return None
    params = _PackUnit.model_validate(unit.params[_LAYER])
    codec = codec_id(Codec(params.compression, level=params.level))
    return name_of_work("pack", codec, params.model_dump(mode="json"))


def _is_packed(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _PackUnit.model_validate(unit.params[_LAYER])
    packed = PackedLayer.model_validate(result["packed"])
    return Layout.open(ctx.policy.check_store(params.store)).claim(packed.descriptor)


def _join(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
    survey = state.survey
    assert survey is not None
    update: dict[str, Any] = {"tree_digest": survey.tree}
    for result in results:
        if _TREES in result:
            trees = _Trees.model_validate(result[_TREES])
            update |= {"tree": trees.tree, "exact_tree": trees.exact_tree}
            if trees.tree is not None:
                update["tree_digest"] = f"sha256:{trees.tree.manifest.sha256}"
        else:
            update["packed"] = PackedLayer.model_validate(result["packed"])
            update["warnings"] = state.warnings + result["warnings"]
    return state.model_copy(update=update)
