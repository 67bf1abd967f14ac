"""The unit that digests the new tree, and writes it down for the bundle, beside one that leaves a processor idle.

Where most of a tree was read, that is the comparison: it takes one processor, and as long. Where few suspects were, the
comparison is short, and says what there is to write: then it is the layer, which waits for its reader now and then.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from layerfarm.jobs.flows.base import Context, FileRef, Model, Unit, work_directory
from layerfarm.jobs.flows.layer_state import LayeringState
from layerfarm.jobs.flows.newtree import NewTree, Tree
from layerfarm.jobs.flows.survey import Known, Survey

_KEY: Final = "trees"
"""Of the unit's parameters and of its result: it stands among units of another kind."""


class _TreeUnit(Model):
    store: Path
    survey: Survey
    fragments: list[FileRef]
    known: Known | None
    exact: bool
    """Write the tree as it lies on disk."""


class _Written(Model):
    """What the unit found and wrote."""

    tree_digest: str
    exact_tree: Tree | None = None


def plan_beside_comparing(state: LayeringState) -> list[Unit]:
    """The unit, where most of the tree was read."""
    return [_unit(state)] if _most_was_read(state) else []


def plan_beside_layer(state: LayeringState) -> list[Unit]:
    """The unit, where little was read, once that is compared."""
    assert state.survey is not None
    if state.survey.untouched or _most_was_read(state):
        return []
    # Where nothing differs the tree as a layer can hold it is the old one, whatever was suspected.
    return [_unit(state)] if state.differing or state.exact else []


def _most_was_read(state: LayeringState) -> bool:
    survey = state.survey
    assert survey is not None
    return 2 * survey.entries_to_read > survey.entries


def _unit(state: LayeringState) -> Unit:
    assert state.survey is not None
    params = _TreeUnit(
        store=state.store,
        survey=state.survey,
        fragments=state.fragments,
        known=state.known,
        exact=state.exact,
    )
    return Unit(params={_KEY: params.model_dump(mode="json")})


def is_tree_unit(unit: Unit) -> bool:
    """Whether a unit is such a one, and so for :func:`run_tree_unit`."""
    return _KEY in unit.params


def run_tree_unit(ctx: Context, unit: Unit) -> dict[str, Any]:
    """Digest the tree and, if it is wanted exactly, write it into the job's work directory.

    Raises:
        OutsideAllowedRoots: the operator does not allow the store or the bundle.
        IncompleteTree, MtreeError: what was read of the tree, or known of it, is not whole.
    """
    params = _TreeUnit.model_validate(unit.params[_KEY])
    if params.known is not None:
        ctx.policy.check_resolved(params.known.manifest.parent)
    new = NewTree(work_directory(ctx, params.store), params.survey, params.fragments, params.known)
    exact, digest = new.write() if params.exact else (None, new.digest())
    return {_KEY: _Written(tree_digest=digest, exact_tree=exact).model_dump(mode="json")}


def split_results(results: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The results of a stage's other units, and what this one's changes of the state."""
    others: list[dict[str, Any]] = []
    update: dict[str, Any] = {}
    for result in results:
        if _KEY not in result:
            others.append(result)
            continue
        written = _Written.model_validate(result[_KEY])
        update = {"tree_digest": written.tree_digest, "exact_tree": written.exact_tree}
    return others, update
