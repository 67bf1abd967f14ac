"""A catalog's report as text."""

from __future__ import annotations

from collections.abc import Sequence

from layerfarm.jobs.errors import display
from layerfarm.worker.catalog.costs import Totals
from layerfarm.worker.catalog.quantities import percent, requests_text, size_text
from layerfarm.worker.catalog.report import ImageRow, Report, RunRow, by_repository
from layerfarm.worker.catalog.state import Loss
from layerfarm.worker.cli.output import columns
from layerfarm.worker.plural import counted

_SHARED = 10
"""Most rows of shared layers; the page and JSON have more."""
_WARNINGS = 30
"""Most warnings; JSON has more."""


def report_lines(report: Report) -> list[str]:
    """Return the report, to be printed."""
    lines = [f"catalog: {report.catalog}, {counted(report.before.images, 'image')}"]
    lines += _run(report.run) if report.run else []
    lines += [f"requests to registries: {requests_text(report.requests)}"] if report.requests else []
    lines += [""]
    lines += columns(_totals(report))
    lines += ["", *columns(_repositories(report))]
    if report.shared_after:
        lines += ["", "layers by the images that have them, now:", *_shared(report)]
    if report.losses:
        lines += ["", "left as they are, because rechunk would not save enough:", *map(_loss, report.losses)]
    if report.failed:
        lines += ["", f"failed: {report.failed}", *_failures(report)]
    if report.warned:
        lines += ["", f"warnings: {report.warned}", *_warnings(report)]
    return lines


def _failures(report: Report) -> list[str]:
    return [f"  {each.where}: {display(each.why)}\n    {display(each.todo)}" for each in report.failures]


def _run(run: RunRow) -> list[str]:
    """Return what the run did, in one line."""
    counts = [f"{count:,} {outcome}" for outcome, count in run.outcomes.items()]
    end = "" if run.ended else ", interrupted"
    return [f"{run.kind} of {run.began}{end}: {', '.join(counts) or 'no images'}"]


def _loss(loss: Loss) -> str:
    wanted = f", {loss.wanted:g} % less is wanted" if loss.wanted else ""
    pulls = f"pulls {size_text(loss.pull_before)} -> {size_text(loss.pull_planned)} predicted"
    return f"  {loss.repository or '-'}, {counted(loss.images, 'image')}: {pulls}{wanted}"


def image_lines(report: Report) -> list[str]:
    """One line for each image."""
    rows: list[tuple[str, ...]] = [("IMAGE", "POLICY", "STATE", "LAYERS", "BYTES", "PULL", "PREDICTED", "NOW")]
    for image in report.images:
        layers = image.layers_after if image.layers_after is not None else image.layers_planned
        change = f"{image.layers_before} -> {layers}" if layers is not None else str(image.layers_before)
        costs = (image.pull_before, image.pull_planned, image.pull_after)
        sizes = (size_text(image.bytes_before), *(size_text(cost) for cost in costs))
        rows.append((image.name, image.policy, image.state, change, *sizes))
    return columns(rows)


def _totals(report: Report) -> list[tuple[str, ...]]:
    known: list[tuple[str, Totals]] = [("before", report.before)]
    known += [("predicted", report.planned)] if report.planned else []
    known += [("now", report.after)] if report.after else []
    in_part = any(totals.pulled_in_part is not None for _, totals in known)
    rows: list[tuple[str, ...]] = [("", "STORED", "", "PULLED TO NEXT TAG", "", "LAYERS")]
    rows[0] += ("IN PART",) if in_part else ()
    for name, totals in known:
        stored, pulled = percent(totals.stored, report.before.stored), percent(totals.pulled, report.before.pulled)
        row = (name, size_text(totals.stored), stored, size_text(totals.pulled), pulled, str(totals.layers))
        rows.append((*row, size_text(totals.pulled_in_part)) if in_part else row)
    return rows


def _repositories(report: Report) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("REPOSITORY", "TAGS", "FAILED", "PULLS BEFORE", "PREDICTED", "NOW")]
    for repository, images in by_repository(report.images).items():
        failed = sum(image.state == "failed" for image in images)
        pulls = [_sum(images, field) for field in ("pull_before", "pull_planned", "pull_after")]
        rows.append((repository or "-", str(len(images)), str(failed), *(size_text(cost) for cost in pulls)))
    return rows


def _warnings(report: Report) -> list[str]:
    lines = [f"  {image.name}: {display(text)}" for image in report.images for text in image.warnings]
    more = [f"  and {len(lines) - _WARNINGS} more, with --json"] if len(lines) > _WARNINGS else []
    return lines[:_WARNINGS] + more


def _sum(images: Sequence[ImageRow], field: str) -> int | None:
    known = [value for image in images if (value := getattr(image, field)) is not None]
    return sum(known) if known else None


def _shared(report: Report) -> list[str]:
    rows = []
    for row in report.shared_after[:_SHARED]:
        what = (
            row.images[0] if len(row.images) == 1 else f"{len(row.images)} images, {row.images[0]} to {row.images[-1]}"
        )
        rows.append(("", size_text(row.bytes), counted(row.layers, "layer"), what))
    return columns(rows)
