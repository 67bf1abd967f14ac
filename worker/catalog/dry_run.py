"""The steps that a run of a catalog would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.worker.catalog.sources import CatalogImage
from layerfarm.worker.catalog.state import Missed

if TYPE_CHECKING:
    from layerfarm.worker.catalog.work import Work


def outlook(work: Work) -> tuple[list[tuple[str, str]], Sequence[Missed]]:
    """Return, by image, the steps that a run would take; and the sources and images that cannot be read.

    Queries the registries, and fetches nothing.
    """
    discovered = work.discover()
    fetcher = work.fetcher()
    found, missed = [], list(discovered.missed)
    # The error of the last run is no obstacle to the next.
    made = [image for image in discovered.listed if work.states[image.name].new is not None]
    to_push = {image.name for image in work.to_push(made)}
    with work.steady():
        for image in discovered.listed:
            try:
                first, left_out = fetcher.outlook(image)
                steps = f"nothing, {left_out}" if left_out else _steps(work, image, first, image.name in to_push)
                found.append((image.name, steps))
            except LayerfarmError as error:
                work.view.notice(f"{image.name}: {error}")
                missed.append(Missed(where=image.name, error=str(error), error_type=type(error).__name__))
    for one in (lacking := fetcher.lacking(discovered.listed)):
        work.view.notice(f"{one.where}: {one.error}")
    return found, [*missed, *lacking]


def _steps(work: Work, image: CatalogImage, first: str, to_push: bool) -> str:
    steps = [first] if first else []
    if steps or not work.is_made(image):
        steps.append(image.policy.do.transform)
    if work.catalog.destination.registry is not None and (steps or to_push):
        steps.append("push")
    return ", ".join(steps) or "nothing"
