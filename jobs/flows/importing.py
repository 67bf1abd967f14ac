"""The stage that copies blobs from one store into another, a unit each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from layerfarm.jobs.flows.base import Context, Equal, Model, Stage, State, Unit, name_of_work, unit_of
from layerfarm.jobs.store import Descriptor
from layerfarm.jobs.store.transfer import copy_blob

StateT = TypeVar("StateT", bound=State)


class Import(NamedTuple):
    """Blobs that ``target`` must have."""

    source: Path
    target: Path
    blobs: Sequence[Descriptor]


class _ImportUnit(Model):
    source: Path
    target: Path
    blob: Descriptor


def import_stage(wanted: Callable[[Context, StateT], Import | None], name: str = "import") -> Stage[StateT]:
    """Return a stage that copies the blobs returned by ``wanted``; none if it returns None or both stores are one."""

    def plan(ctx: Context, state: StateT) -> list[Unit]:
        asked = wanted(ctx, state)
        if asked is None or asked.source == asked.target:
            return []
        return [
            unit_of(_ImportUnit(source=asked.source, target=asked.target, blob=blob), nbytes=blob.size)
            for blob in {blob.digest: blob for blob in asked.blobs}.values()
        ]

    return Stage(name, plan, _run, lambda ctx, state, results: state, Equal(_name, _is_there))


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _ImportUnit.model_validate(unit.params)
    source = ctx.store(params.source)
    target = ctx.store(params.target)
    copy_blob(source, target, params.blob, ctx.observer.advanced)
    return {}


def _name(ctx: Context, unit: Unit) -> str:
    params = _ImportUnit.model_validate(unit.params)
    return name_of_work("import", str(params.target), params.blob.digest, params.blob.size)


def _is_there(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _ImportUnit.model_validate(unit.params)
    return ctx.store(params.target).claim(params.blob)
