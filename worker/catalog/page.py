"""A report as one self-contained HTML page.

It needs no script and nothing from outside. Everything is escaped: names come from registries and images. Long lists
are cut, with a note: the JSON form has all rows.
"""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final, NamedTuple

from layerfarm.worker.catalog import plot
from layerfarm.worker.catalog.duplicates import FileRow
from layerfarm.worker.catalog.outcomes import MEANING
from layerfarm.worker.catalog.quantities import percent, requests_text, size_text
from layerfarm.worker.catalog.report import Report, by_repository
from layerfarm.worker.catalog.series import split_name

MOST: Final = {
    "repositories": 30,
    "tags": 20,
    "layers": 30,
    "sets of images": 15,
    "duplicates": 20,
    "failures": 100,
    "warnings": 100,
    "policies": 50,
    "losses": 50,
}
"""Rows of each list."""
_NAMES: Final = 6
"""Repositories named in one row."""


class _Cut(NamedTuple):
    """The first rows of a list."""

    rows: Sequence[Any]
    total: int
    what: str

    @property
    def is_cut(self) -> bool:
        return len(self.rows) < self.total


class _Repository(NamedTuple):
    name: str
    images: _Cut
    pulls: int
    """Number of its tags that have a preceding one."""
    pull_before: int
    pull_after: int
    plot: plot.Plot | None


class _Bars(NamedTuple):
    """One quantity in the states of a catalog."""

    rows: list[tuple[str, str, int]]
    """Class, label, bytes."""

    @property
    def most(self) -> int:
        return max([1, *(value for _, _, value in self.rows)])


def page(report: Report) -> str:
    """Return the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("layerfarm.worker.catalog", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("report.css").render()
    repositories = _repositories(report)
    layers = _cut(report.layers, "layers")
    return environment.get_template("report.html").render(
        report=report,
        style=style,
        style_digest=b64encode(sha256(style.encode()).digest()).decode(),
        meaning=MEANING,
        repositories=_cut(repositories, "repositories"),
        stored=_bars(report, "stored"),
        pulled=_bars(report, "pulled"),
        in_part=_in_part(report),
        layers=layers,
        most=max([layer.bytes for layer in layers.rows], default=1),
        segments=plot.segments_of,
        plot=plot,
        cut=_cut,
        warnings=_cut([(image.name, text) for image in report.images for text in image.warnings], "warnings"),
        size=size_text,
        count="{:,}".format,
        percent=percent,
        requests=requests_text,
        change=_known,
        named=_named,
        few=_few,
        rule=_rule,
        tag=lambda name: split_name(name)[1] or name,
        command=partial(_command, report),
    )


def _cut(rows: Sequence[Any], what: str) -> _Cut:
    return _Cut(rows[: MOST[what]], len(rows), what)


def _repositories(report: Report) -> list[_Repository]:
    """Return the repositories, those with the most bytes to pull first."""
    found = []
    for name, images in by_repository(report.images).items():
        after = [row.pull_after if report.after else row.pull_planned for row in images]
        newest = _Cut(images[-MOST["tags"] :], len(images), "tags")
        before = [row.pull_before for row in images if row.pull_before is not None]
        found.append(_Repository(name, newest, len(before), sum(before), _sum(after), plot.plot_of(images)))
    return sorted(found, key=lambda each: -each.pull_before)


def _sum(values: Iterable[int | None]) -> int:
    return sum(value for value in values if value is not None)


def _bars(report: Report, what: str) -> _Bars:
    states = (
        ("before", "before", report.before),
        ("planned", "predicted", report.planned),
        ("after", "now", report.after),
    )
    values = [(kind, label, getattr(totals, what)) for kind, label, totals in states if totals is not None]
    return _Bars([each for each in values if each[2] is not None])


def _in_part(report: Report) -> _Bars:
    """Return the pulls in part, after those of whole layers; empty if no layer can be pulled in part."""
    bars = _bars(report, "pulled_in_part")
    return _Bars([("before", "whole", report.before.pulled), *bars.rows]) if bars.rows else bars


def _command(report: Report, name: str, *flags: str) -> str:
    """Return a command line about the catalog."""
    return shlex.join(["layerfarm", "catalog", name, report.file or "FILE", *flags])


def _known(*values: int | None) -> str:
    """Return the first known number."""
    return next((f"{value:,}" for value in values if value is not None), "-")


def _few(texts: Sequence[str], what: str) -> str:
    """Return the first of some texts, and their number."""
    return ", ".join(texts) if len(texts) <= 3 else f"{', '.join(texts[:3])}, … ({len(texts)} {what})"


def _rule(row: FileRow) -> str:
    """Return the key of a policy that makes a file a component of its own, as YAML."""
    path = row.paths[0]
    name = path.rpartition("/")[2]
    # JSON is YAML; the brackets keep shell patterns in a name from matching others.
    pattern = re.sub(r"([*?[])", r"[\1]", path)
    return f"components:\n  - {{name: {json.dumps(name)}, paths: [{json.dumps(pattern)}]}}"


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
