"""Runs of catalogs whose sources are layouts: no registry and no farm is needed."""

from __future__ import annotations

from pathlib import Path

from layerfarm.jobs.flows.base import Policy
from layerfarm.worker.catalog.backends import Local
from layerfarm.worker.catalog.document import CatalogFile, parse_catalog
from layerfarm.worker.catalog.report import Report, report_of
from layerfarm.worker.catalog.sources import Place, places_of
from layerfarm.worker.catalog.work import Work


class Seen:
    """A view that remembers the number of images in each step, and the notices."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.notices: list[str] = []

    def step(self, name: str, total: int) -> None:
        self.steps[name] = total

    def working(self, name: str, what: str) -> None:
        pass

    def ended(self, name: str, error: str | None, nbytes: int = 0) -> None:
        pass

    def notice(self, text: str) -> None:
        self.notices.append(text)


def catalog_file(directory: Path, policy: str = "{transform: rechunk}", more: str = "", name: str = "c.yaml") -> Path:
    """A catalog of the layout ``images`` beside it, with one policy."""
    path = directory / name
    path.write_text(f"store: store\nsources: [{{layout: images}}]\npolicies: [{{match: '*', do: {policy}}}]\n{more}")
    return path


def work_on(path: Path, view: Seen | None = None) -> Work:
    """A run of the catalog file, in this process."""
    catalog = parse_catalog(path.read_bytes(), path)
    return Work.begin(path, catalog, Local(Policy(shards=1, threads=1), 1), view or Seen())


def planned(path: Path) -> Report:
    """The report of ``layerfarm catalog plan``."""
    work = work_on(path)
    images = work.fetch(kind="plan")
    work.plan(images, keep=False)
    work.finish()
    return report_of(work, images)


def ran(path: Path, view: Seen | None = None, *, replan: bool = False) -> Report:
    """The report of ``layerfarm catalog run``, without a push."""
    work = work_on(path, view)
    images = work.fetch()
    work.plan(images, replan=replan)
    work.transform(images)
    work.finish()
    return report_of(work, images)


def places(catalog: CatalogFile) -> list[Place]:
    """Repositories if no source has patterns of them."""
    return [place for source in catalog.sources for place in places_of(source)]


def costs(report: Report) -> Report:
    """The report without what the run did: a run with nothing to do gives the same."""
    images = tuple(row.model_copy(update={"outcome": "unchanged"}) for row in report.images)
    return report.model_copy(update={"images": images, "run": None, "created": ""})
