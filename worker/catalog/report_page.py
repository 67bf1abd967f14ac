"""A report as one HTML page that needs nothing beside it: no script, no font, no image, no network."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from layerfarm.worker.catalog.report import Report, Totals, by_repository, percent, size_text
from layerfarm.worker.catalog.sources import repository_of

_NAMES = 6
"""Repositories that one row names."""


def page(report: Report) -> str:
    """The page. Names in it come from registries, so everything is escaped."""
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
        named=_named,
    )


def _three(report: Report, what: str) -> dict[str, int | None]:
    def value(totals: Totals | None) -> int | None:
        return None if totals is None else int(getattr(totals, what))

    return {"before": value(report.before), "planned": value(report.planned), "after": value(report.after)}


def _named(images: Sequence[str]) -> str:
    """The images by repository: ``web/api: 1.0, 1.1``, as many as can be read."""
    tags: dict[str, list[str]] = {}
    for image in images:
        tags.setdefault(repository_of(image), []).append(image.rpartition(":")[2])
    shown = [f"{name}: {_span(found)}" for name, found in list(tags.items())[:_NAMES]]
    more = [f"{len(tags) - _NAMES} more repositories"] if len(tags) > _NAMES else []
    return "; ".join(shown + more)


def _span(tags: Sequence[str]) -> str:
    return ", ".join(tags) if len(tags) <= 4 else f"{tags[0]}, {tags[1]}, … {tags[-1]} ({len(tags)} tags)"
