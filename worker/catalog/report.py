"""The report on a catalog: what its last run did, and the costs of its images before and after."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import computed_field

from layerfarm.worker.catalog.costs import (
    Holding,
    Row,
    SharedRow,
    Totals,
    layer_count,
    nbytes,
    pulls,
    shared,
    totals,
)
from layerfarm.worker.catalog.duplicates import DuplicateRow, FileRow, duplicate_components, duplicate_files
from layerfarm.worker.catalog.outcomes import ABOUT_SOURCES, MEANING, Outcome, advice, outcome_of
from layerfarm.worker.catalog.partial import InPart, has_tables
from layerfarm.worker.catalog.places import place_of
from layerfarm.worker.catalog.policies import Keep, Rechunk
from layerfarm.worker.catalog.series import in_order, repository_of
from layerfarm.worker.catalog.sources import CatalogImage
from layerfarm.worker.catalog.stacks import LayerRow, layer_rows
from layerfarm.worker.catalog.state import ImageState, LastRun, Loss, Missed, utc_now
from layerfarm.worker.catalog.summary import Summary, summary_of

if TYPE_CHECKING:
    from layerfarm.worker.catalog.work import Work


class PolicyRow(Row):
    """A policy of the catalog file."""

    match: tuple[str, ...]
    do: dict[str, Any]
    """The transform, and the parameters that differ from their defaults."""


class RunRow(Row):
    """The last run, or the last plan."""

    kind: Literal["plan", "run"]
    began: str | None
    """Time in UTC, RFC 3339."""
    ended: str | None
    """None: it was interrupted, or is running."""
    fetched: int
    """Number of images whose original was fetched."""
    outcomes: dict[Outcome, int]
    """Number of images by outcome."""


class ImageRow(Row):
    """One image. None: unknown, because it is not planned or not done, or has no preceding tag."""

    name: str
    state: str
    """``done``, ``failed``, ``pending``, ``planned`` or ``skipped``."""
    outcome: Outcome
    """Result of the last run for it."""
    error: str | None = None
    error_type: str | None = None
    """Class name of the error."""
    todo: str | None = None
    """Advice about the error."""
    policy: str = ""
    old: str = ""
    """Digest of the original image at its source. One in Docker's formats is converted when it is fetched."""
    new: str | None = None
    place: str = ""
    """``docker://…`` or ``LAYOUT:TAG`` of the new image."""
    proof: str | None = None
    """Digest of its proof; of an index, of the first platform's."""
    verify: str | None = None
    """Command that checks its proofs, reading all layers."""
    layers_before: int
    """For an index, the layers of the platform with the most."""
    layers_planned: int | None = None
    layers_after: int | None = None
    bytes_before: int
    """All platforms together, each blob once."""
    bytes_after: int | None = None
    pull_before: int | None = None
    """Bytes to fetch for a host that has the repository's preceding tag (:mod:`~layerfarm.worker.catalog.costs`)."""
    pull_planned: int | None = None
    pull_after: int | None = None
    pull_in_part_before: int | None = None
    """The same for a client that pulls layers in part (:mod:`~layerfarm.worker.catalog.partial`); None: no layer of the
    catalog has a table of contents."""
    pull_in_part_after: int | None = None
    warnings: tuple[str, ...] = ()
    """Why it is skipped or kept; referrers that were not copied or published; faults found by an analysis."""


class Failure(NamedTuple):
    """An image that failed, or a source that could not be listed."""

    where: str
    why: str
    todo: str
    """Advice."""


class Report(Row):
    """A catalog's costs. ``after`` counts an image that is not done, or failed, as before."""

    catalog: str
    file: str = ""
    """The catalog file."""
    created: str = ""
    """Time of the report in UTC, RFC 3339."""
    store: str = ""
    destination: str = ""
    policies: tuple[PolicyRow, ...] = ()
    order: str = ""
    proofs: str = ""
    run: RunRow | None = None
    before: Totals
    planned: Totals | None = None
    after: Totals | None = None
    images: tuple[ImageRow, ...]
    layers_of: Literal["before", "planned", "after"] = "before"
    """The state whose layers are listed."""
    layers: tuple[LayerRow, ...] = ()
    """All different layers, most bytes first."""
    shared_before: tuple[SharedRow, ...] = ()
    shared_after: tuple[SharedRow, ...] = ()
    duplicates: tuple[DuplicateRow, ...] = ()
    """Components that are, or were, in several layers."""
    duplicate_files: tuple[FileRow, ...] = ()
    """Large files that are in several layers by the plan."""
    missed: tuple[Missed, ...] = ()
    losses: tuple[Loss, ...] = ()
    """Repositories that stay unchanged, because the plan would not save enough of their pulls."""
    requests: dict[str, int] = {}
    """Requests to registries, by method, for any purpose."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> Summary:
        """Return the result in a few fields, for CI."""
        return summary_of(self.images, self.missed, self.before, self.after or self.planned)

    @property
    def failures(self) -> list[Failure]:
        """The images that failed and the sources that could not be listed."""
        failed = [
            Failure(image.name, image.error or "", image.todo or "") for image in self.images if image.state == "failed"
        ]
        return failed + [Failure(row.where, row.error, ABOUT_SOURCES) for row in self.missed]

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def warned(self) -> int:
        """Return the number of warnings."""
        return sum(len(image.warnings) for image in self.images)


# --- from a catalog's states ----------------------------------------------------------------------


def report_of(work: Work, images: Sequence[CatalogImage]) -> Report:
    """Return the report on the images of a catalog; one that is not transformed, or not planned, counts as before.

    Raises:
        StoreError: the store has lost a blob of theirs.
    """
    with work.steady():
        return _report_of(work, images)


def _report_of(work: Work, images: Sequence[CatalogImage]) -> Report:
    by_name = {image.name: image for image in images}
    states = {name: work.states[name] for name in by_name}
    before = {name: held for name, state in states.items() if (held := state.held_before(work.store)) is not None}
    made = {name: _made(work, by_name[name], states[name]) for name in before}
    any_made = any(made.values())
    after = {name: made[name] or held for name, held in before.items()}
    plan = work.joint.holdings() if work.joint else {}
    # Platforms that are not planned, those of other systems, stay unchanged.
    planned = {name: {**held, **plan.get(name, {})} for name, held in before.items()} if plan or work.losses else {}
    created = {name: states[name].created for name in before}
    series = list(in_order(before, created, work.catalog.order).values())
    pull_before, pull_planned, pull_after = (pulls(held, series) for held in (before, planned, after))
    in_part = InPart([work.destination, work.store])
    part_before, part_after = (
        pulls(held, series, in_part.fetched) if has_tables(held) else None for held in (before, after)
    )
    last = work.states.last_run()
    rows = [
        _row(
            *(work, last, by_name[name], states[name], before[name], planned.get(name), made[name]),
            pull_before=pull_before[name],
            pull_planned=pull_planned.get(name) if _is_predictable(by_name[name]) else None,
            pull_after=pull_after[name] if any_made else None,
            pull_in_part_before=part_before[name] if part_before else None,
            pull_in_part_after=part_after[name] if part_after and any_made else None,
        )
        for repository in series
        for name in repository
    ]
    rows += [_row(work, last, by_name[name], state) for name, state in states.items() if name not in before]
    return Report(
        catalog=work.name,
        file=str(work.file),
        created=utc_now(),
        store=str(work.store.path),
        destination=work.catalog.destination.registry or work.catalog.destination.layout or "",
        policies=tuple(
            PolicyRow(match=each.match, do=each.do.model_dump(mode="json", by_alias=True, exclude_defaults=True))
            for each in work.catalog.policies
        ),
        order=work.catalog.order,
        proofs=work.catalog.proofs,
        run=_run(last, rows, states.values()),
        before=totals(before, pull_before, part_before),
        planned=totals(planned, pull_planned) if planned else None,
        after=totals(after, pull_after, part_after) if any_made else None,
        images=tuple(rows),
        layers_of="after" if any_made else "planned" if planned else "before",
        layers=_layers(work, states, before, planned, after if any_made else None),
        shared_before=shared(before),
        shared_after=shared(after) if any_made else (),
        duplicates=duplicate_components(work.joint) if work.joint else (),
        duplicate_files=duplicate_files(work.joint) if work.joint else (),
        missed=last.missed,
        losses=tuple(work.losses),
        requests=last.requests,
    )


def _run(last: LastRun, rows: Sequence[ImageRow], states: Iterable[ImageState]) -> RunRow | None:
    if last.began is None:
        return None
    counts = Counter(row.outcome for row in rows)
    fetched = sum(state.run == last.began and "fetched" in state.acts for state in states)
    outcomes = {outcome: counts[outcome] for outcome in MEANING if counts[outcome]}
    return RunRow(kind=last.kind, began=last.began, ended=last.ended, fetched=fetched, outcomes=outcomes)


def _layers(
    work: Work,
    states: Mapping[str, ImageState],
    before: Mapping[str, Holding],
    planned: Mapping[str, Holding],
    after: Mapping[str, Holding] | None,
) -> tuple[LayerRow, ...]:
    """Return the layers after the run; before one, those of the plan."""
    layouts = work.joint.layouts() if work.joint else {}
    if after is not None:
        done = {name for name, layout in layouts.items() if name in after and states[name].layout == layout}
        return layer_rows(after, work.joint, done)
    return layer_rows(planned or before, work.joint, layouts)


def _made(work: Work, image: CatalogImage, state: ImageState) -> Holding | None:
    if state.new is None or not work.is_made(image):
        return None
    return state.held_after(work.destination, state.new)


def _row(
    work: Work,
    last: LastRun,
    image: CatalogImage,
    state: ImageState,
    before: Holding | None = None,
    planned: Holding | None = None,
    made: Holding | None = None,
    **pulls: int | None,
) -> ImageRow:
    target = work.target(image)
    proofs = [change.proof for change in state.result.images if change.proof] if state.result and made else []
    return ImageRow(
        name=state.name,
        state=_state(state, planned, made),
        outcome=outcome_of(state, last, made=made is not None),
        error=state.error,
        error_type=state.error_type if state.error else None,
        todo=advice(state.failed_in, state.name, state.origin) if state.error else None,
        policy=image.policy.do.transform,
        old=state.original or "",
        new=state.new.digest if state.new and made else None,
        place=place_of(work.catalog.destination, state.name) or str(target),
        proof=proofs[0] if proofs else None,
        verify=f"layerfarm verify --image {shlex.quote(str(target))}" if proofs else None,
        layers_before=layer_count(before) if before else 0,
        layers_planned=layer_count(planned) if planned and _is_predictable(image) else None,
        layers_after=layer_count(made) if made else None,
        bytes_before=nbytes(before) if before else 0,
        bytes_after=nbytes(made) if made else None,
        warnings=(
            *([state.note] if state.note else []),
            *((*state.left, *(state.result.warnings if state.result else ()), *state.refused) if before else ()),
        ),
        **pulls,
    )


def _is_predictable(image: CatalogImage) -> bool:
    """Return False if only the transform itself finds the new layers; meanwhile the totals count it as before."""
    return isinstance(image.policy.do, Rechunk | Keep)


def _state(state: ImageState, planned: Holding | None, made: Holding | None) -> str:
    if state.error:
        return "failed"
    if state.note and state.old is None:
        return "skipped"
    return "done" if made else "planned" if planned else "pending"


def by_repository(images: Iterable[ImageRow]) -> dict[str, list[ImageRow]]:
    """Yield the rows of each repository, in the order given."""
    found: dict[str, list[ImageRow]] = {}
    for image in images:
        found.setdefault(repository_of(image.name), []).append(image)
    return found
