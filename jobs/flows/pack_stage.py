"""The stage that writes the changed paths as one layer into the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.flows.base import Context, Equal, FileRef, Model, Stage, Unit, name_of_work, unit_of, work_directory
from layerfarm.jobs.flows.layer_state import LayeringState, StateT, id_map
from layerfarm.jobs.flows.requests import IdMapping
from layerfarm.jobs.flows.tree_unit import is_tree_unit, plan_beside_layer, run_tree_unit, split_results
from layerfarm.jobs.image.pack import PackedLayer, pack_layer
from layerfarm.jobs.layer import GenerateOptions, generate_layer
from layerfarm.jobs.mtree import read_deltas
from layerfarm.jobs.store import Layout


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


def _plan(ctx: Context, state: LayeringState) -> list[Unit]:
    return [*_plan_layer(state), *plan_beside_layer(state)]


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
    yield unit_of(params, nbytes=state.changes.bytes)


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    return run_tree_unit(ctx, unit) if is_tree_unit(unit) else _run_layer(ctx, unit)


def _run_layer(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _PackUnit.model_validate(unit.params)
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
    if is_tree_unit(unit):
        return None
    params = _PackUnit.model_validate(unit.params)
    codec = codec_id(Codec(params.compression, level=params.level))
    return name_of_work("pack", codec, params.model_dump(mode="json"))


def _is_packed(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _PackUnit.model_validate(unit.params)
    packed = PackedLayer.model_validate(result["packed"])
    return Layout.open(ctx.policy.check_store(params.store)).claim(packed.descriptor)


def _join(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
    layers, update = split_results(results)
    for layer in layers:
        update["packed"] = PackedLayer.model_validate(layer["packed"])
        update["warnings"] = state.warnings + layer["warnings"]
    return state.model_copy(update=update)
