"""The report on a catalog: the costs of its images before and after, predicted and actual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

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
from layerfarm.worker.catalog.series import in_order, repository_of, split_name
from layerfarm.worker.catalog.sources import CatalogImage
from layerfarm.worker.catalog.state import ImageState, Loss, Missed
from layerfarm.worker.catalog.summary import Summary, summary_of

if TYPE_CHECKING:
    from layerfarm.worker.catalog.work import Work


class ImageRow(Row):
    """One image. None: unknown, because it is not planned or not done, or has no preceding tag."""

    name: str
    state: str
    """``done``, ``failed``, ``pending``, ``planned`` or ``skipped``."""
    error: str | None = None
    error_type: str | None = None
    """Class name of the error."""
    policy: str = ""
    old: str = ""
    """Digest of the original image."""
    new: str | None = None
    proof: str | None = None
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
    warnings: tuple[str, ...] = ()
    """Why it is skipped or kept; referrers that were not copied or published; faults found by an analysis."""


class DuplicateRow(Row):
    """One content that is in several layers."""

    what: str
    bytes: int
    """Uncompressed bytes of one copy."""
    before: int
    """Number of layers that hold it."""
    after: int | None = None


class Report(Row):
    """A catalog's costs. ``after`` counts an image that is not done, or failed, as before."""

    catalog: str
    before: Totals
    planned: Totals | None = None
    after: Totals | None = None
    images: tuple[ImageRow, ...]
    shared_before: tuple[SharedRow, ...] = ()
    shared_after: tuple[SharedRow, ...] = ()
    duplicates: tuple[DuplicateRow, ...] = ()
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
    def failures(self) -> list[tuple[str, str]]:
        """The images that failed and the sources that could not be listed, with the reason."""
        failed = [(image.name, image.error or "") for image in self.images if image.state == "failed"]
        return failed + [(row.where, row.error) for row in self.missed]

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
    before = {name: state.held(work.store, state.old) for name, state in states.items() if state.old is not None}
    made = {name: _made(work, by_name[name], states[name]) for name in before}
    any_made = any(made.values())
    after = {name: made[name] or held for name, held in before.items()}
    plan = work.joint.holdings() if work.joint else {}
    # Platforms that are not planned, those of other systems, stay unchanged.
    planned = {name: {**held, **plan.get(name, {})} for name, held in before.items()} if plan or work.losses else {}
    created = {name: states[name].created for name in before}
    series = list(in_order(before, created, work.catalog.order).values())
    pull_before, pull_planned, pull_after = (pulls(held, series) for held in (before, planned, after))
    rows = [
        _row(states[name], before[name], planned.get(name), made[name]).model_copy(
            update={
                "policy": by_name[name].policy.do.transform,
                "pull_before": pull_before[name],
                "pull_planned": pull_planned.get(name),
                "pull_after": pull_after[name] if any_made else None,
            }
        )
        for repository in series
        for name in repository
    ]
    rows += [_row(state) for name, state in states.items() if name not in before]
    last = work.states.last_run()
    return Report(
        catalog=work.name,
        before=totals(before, series),
        planned=totals(planned, series) if planned else None,
        after=totals(after, series) if any_made else None,
        images=tuple(rows),
        shared_before=shared(before),
        shared_after=shared(after) if any_made else (),
        duplicates=tuple(work.joint.duplicates()) if work.joint else (),
        missed=last.missed,
        losses=tuple(work.losses),
        requests=last.requests,
    )


def _made(work: Work, image: CatalogImage, state: ImageState) -> Holding | None:
    if state.new is None or not work.is_made(image):
        return None
    return state.held(work.destination, state.new)


def _row(
    state: ImageState, before: Holding | None = None, planned: Holding | None = None, made: Holding | None = None
) -> ImageRow:
    proofs = [change.proof for change in state.result.images if change.proof] if state.result and before else []
    return ImageRow(
        name=state.name,
        state=_state(state, planned, made),
        error=state.error,
        error_type=state.error_type if state.error else None,
        old=state.old.digest if state.old else "",
        new=state.new.digest if state.new and made else None,
        proof=proofs[0] if proofs else None,
        layers_before=layer_count(before) if before else 0,
        layers_planned=layer_count(planned) if planned else None,
        layers_after=layer_count(made) if made else None,
        bytes_before=nbytes(before) if before else 0,
        bytes_after=nbytes(made) if made else None,
        warnings=(
            *([state.note] if state.note else []),
            *((*state.left, *(state.result.warnings if state.result else ()), *state.refused) if before else ()),
        ),
    )


def _state(state: ImageState, planned: Holding | None, made: Holding | None) -> str:
    if state.error:
        return "failed"
    if state.note and state.old is None:
        return "skipped"
    return "done" if made else "planned" if planned else "pending"


def percent(part: int, whole: int) -> str:
    """Format ``part`` of ``whole``; 0 of 0 is 100 %."""
    return f"{100 * part / whole:.1f} %" if whole else "100.0 %"


def size_text(count: int | None) -> str:
    """Format bytes in powers of 1000."""
    if count is None:
        return "-"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} B"


def requests_text(requests: Mapping[str, int]) -> str:
    """Format numbers of requests by method: ``53 (13 GET, 40 HEAD)``."""
    return f"{sum(requests.values()):,} ({', '.join(f'{count:,} {method}' for method, count in requests.items())})"


def by_repository(images: Iterable[ImageRow]) -> dict[str, list[ImageRow]]:
    """Yield the rows of each repository, in the order given."""
    found: dict[str, list[ImageRow]] = {}
    for image in images:
        found.setdefault(repository_of(image.name), []).append(image)
    return found


# --- the page -------------------------------------------------------------------------------------

_NAMES: Final = 6
"""Repositories named in one row of the page."""


def page(report: Report) -> str:
    """Return the report as one self-contained HTML page. Everything is escaped: names come from registries."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("layerfarm.worker.catalog", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        report=report,
        repositories=by_repository(report.images),
        stored=_three(report, "stored"),
        pulled=_three(report, "pulled"),
        layers=_three(report, "layers"),
        shown="pull_after" if report.after else "pull_planned",
        size=size_text,
        count="{:,}".format,
        percent=percent,
        requests=requests_text,
        named=_named,
        tag=lambda name: split_name(name)[1] or name,
    )


def _three(report: Report, what: str) -> dict[str, int | None]:
    def value(totals: Totals | None) -> int | None:
        return None if totals is None else int(getattr(totals, what))

    return {"before": value(report.before), "planned": value(report.planned), "after": value(report.after)}


def _named(images: Sequence[str]) -> str:
    """Return the images by repository: ``web/api: 1.0, 1.1``, shortened."""
    tags: dict[str, list[str]] = {}
    for image in images:
        repository, tag = split_name(image)
        tags.setdefault(repository, []).append(tag)
    shown = [f"{name}: {_span(found)}".rstrip(": ") for name, found in list(tags.items())[:_NAMES]]
    more = [f"{len(tags) - _NAMES} more repositories"] if len(tags) > _NAMES else []
    return "; ".join(shown + more)


def _span(tags: Sequence[str]) -> str:
    return ", ".join(tags) if len(tags) <= 4 else f"{tags[0]}, {tags[1]}, … {tags[-1]} ({len(tags)} tags)"
