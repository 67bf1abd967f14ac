"""Run a catalog from its sources to its destination, whole or in part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from layerfarm.worker.catalog.document import CatalogFile
from layerfarm.worker.catalog.part import Names
from layerfarm.worker.catalog.sources import CatalogImage, place_in, repository_below
from layerfarm.worker.catalog.work import Work


def carry_out(work: Work, names: Names | None = None, *, replan: bool = False) -> list[CatalogImage]:
    """Fetch, plan, transform and push all images, or only those of ``names``; return these.

    A part of which no image needs a transform is not planned.

    Raises:
        LayerfarmError: the run as a whole failed; an image that fails is recorded.
    """
    images = work.fetch(names)
    if names is None:
        concerned, planned = images, True
    else:
        concerned = [image for image in images if image.name in names]
        with work.steady():
            planned = any(work.is_due(image) for image in concerned)
    if planned:
        work.plan(images, replan=replan)
        work.transform(concerned)
    work.push(concerned, among=images)
    work.finish()
    return concerned


def failures(work: Work, images: Sequence[CatalogImage], names: Iterable[str]) -> dict[str, str]:
    """Return why images of the last run failed, by name.

    ``names``: names as in :class:`Names` that the run was for. Each is in the result, too, if an image of it failed, or
    a repository or registry that may hold one could not be listed.
    """
    failed = {image.name: error for image in images if (error := work.states[image.name].error) is not None}
    missed = {one.where: one.error for one in work.states.last_run().missed}
    asked: dict[str, str] = {}
    for name in names:
        one = Names(frozenset([name]))
        reasons = [error for image, error in failed.items() if image in one]
        reasons += [missed[where] for where in _places_of(work.catalog, name) if where in missed]
        if reasons:
            asked[name] = reasons[0]
    return failed | asked


def _places_of(catalog: CatalogFile, name: str) -> Iterator[str]:
    """Yield the places in registries that may hold images of a name, and the registries that list these places."""
    repository = name.rpartition(":")[0]
    for source in catalog.sources:
        found = repository_below(source, repository.removeprefix(source.prefix))
        if found is not None:
            assert source.registry is not None
            yield place_in(source, found).where
            yield source.registry
