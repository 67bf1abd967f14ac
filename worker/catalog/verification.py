"""Verify a catalog: its proofs, and the images at its destination."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.verify import VerifyRequest
from layerfarm.worker.catalog.backends import Task
from layerfarm.worker.catalog.document import Destination
from layerfarm.worker.catalog.places import reference_at
from layerfarm.worker.catalog.published import ReadBack, differences
from layerfarm.worker.catalog.sources import CatalogImage
from layerfarm.worker.catalog.state import error_text
from layerfarm.worker.catalog.transfer import is_pushed

if TYPE_CHECKING:
    from layerfarm.worker.catalog.work import Work

Faults = list[tuple[str, str]]
"""By image."""


@dataclass(frozen=True)
class Verified:
    """Result of a verification."""

    images: int
    """Images whose proofs were checked."""
    unchanged: int
    """Finished images that equal the originals, so without a proof: their layers were not read."""
    unproved: int
    """Changed images without a proof, because the catalog keeps none: their layers were not read."""
    published: int
    """Images that were read from the destination's registry."""
    faults: Faults


def verify(work: Work, images: Sequence[CatalogImage], *, deep: bool) -> Verified:
    """Check the proofs of all finished images again, and that the destination still has them.

    For a registry, all manifests are read; ``deep``: all blobs too. The next run pushes incomplete images again.
    """
    faults: Faults = []
    done = []
    with work.steady():
        for image in images:
            state = work.states[image.name]
            if not work.is_finished(image, state):
                continue
            if work.is_there(image, state):
                done.append(image)
            else:
                faults.append((image.name, f"no longer there: {work.target(image)}"))
    changed = [image for image in done if work.states[image.name].is_changed]
    proved = [image for image in changed if work.states[image.name].is_proved]
    faults += _proofs(work, proved)
    destination = work.catalog.destination
    published: list[CatalogImage] = []
    if destination.registry is not None:
        for image in done:
            if is_pushed(work.states[image.name], destination, work.catalog.proofs):
                published.append(image)
            else:
                faults.append((image.name, f"the next run pushes it again: {reference_at(destination, image.name)}"))
        faults += _published(work, destination, published, deep)
    unchanged, unproved = len(done) - len(changed), len(changed) - len(proved)
    return Verified(len(proved), unchanged, unproved, len(published), faults)


def _proofs(work: Work, images: Sequence[CatalogImage]) -> Faults:
    faults: Faults = []
    work.view.step("verify", len(images))

    def ended(task: Task, result: Any, error: LayerfarmError | None) -> None:
        found = [error_text(error)] if error is not None else list(result.errors)
        if error is None and not result.proofs:
            found.append("the image no longer has a proof")
        faults.extend((task.name, fault) for fault in found)
        work.view.ended(task.name, "; ".join(found) or None, 0 if error else result.bytes_read)

    tasks = [Task(image.name, VerifyRequest(image=work.target(image))) for image in images]
    work.backend.run(tasks, ended, work.shower())
    return faults


def _published(work: Work, destination: Destination, images: Sequence[CatalogImage], deep: bool) -> Faults:
    parallel = work.catalog.access.parallel
    different = differences(work.publisher, destination, [work.states[image.name] for image in images], parallel)
    back = ReadBack(work.publisher, destination, work.catalog.proofs, deep=deep)
    work.view.step("read the registry", len(images))

    def read(image: CatalogImage) -> Faults:
        work.view.working(image.name, "read")
        found, nbytes = [different[image.name]] if image.name in different else [], 0
        if not found:
            found, nbytes = back.read(work.states[image.name], work.destination)
        if found:
            work.states.put(work.states[image.name].but(pushed=None))
        work.view.ended(image.name, "; ".join(found) or None, nbytes)
        return [(image.name, fault) for fault in found]

    with ThreadPoolExecutor(parallel, thread_name_prefix="read") as pool:
        return [fault for found in pool.map(read, images) for fault in found]
