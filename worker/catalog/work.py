"""A catalog's run, step by step: fetch, plan, make over, push. Each step can be interrupted and begun anew."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jobs.catalog.document import DOCKER, CatalogFile
from jobs.catalog.pull import copy_in, named, push, reachable_blobs
from jobs.catalog.registry import Skopeo
from jobs.catalog.sources import CatalogImage, policy_for
from jobs.errors import LayerfarmError
from jobs.flows.requests import ImageRef
from jobs.flows.transforms import TransformRequest, TransformResult
from jobs.flows.verify import VerifyRequest
from jobs.store import Layout
from worker.catalog.backends import Backend, Task, explain
from worker.catalog.fetching import Fetcher, discover
from worker.catalog.requests import fingerprint, request_for, target_of
from worker.catalog.state import ImageState, States
from worker.progress import Progress


class View(Protocol):
    """Shown what happens. Called from any thread."""

    def step(self, name: str, total: int) -> None:
        """A step begins, of so many images."""

    def working(self, name: str, what: str) -> None:
        """An image is being worked on."""

    def ended(self, name: str, error: str | None, nbytes: int = 0) -> None:
        """An image has ended this step; ``nbytes`` were fetched, written or sent for it."""

    def notice(self, text: str) -> None:
        """Something the user should know."""


@dataclass(frozen=True)
class Work:
    """A catalog being worked on."""

    name: str
    catalog: CatalogFile
    store: Layout
    states: States
    skopeo: Skopeo
    backend: Backend
    view: View

    @classmethod
    def begin(cls, name: str, catalog: CatalogFile, backend: Backend, view: View) -> Work:
        """Make the catalog's store and destination if they are not there.

        Raises:
            StoreError: they cannot be.
        """
        store = layout_at(Path(catalog.store))
        if catalog.destination.layout is not None:
            layout_at(Path(catalog.destination.layout))
        return cls(name, catalog, store, States(store, name), Skopeo(catalog.access, view.notice), backend, view)

    # --- the steps -------------------------------------------------------------------------------

    def fetch(self) -> list[CatalogImage]:
        """Discover the images and bring them into the store; those that could not be had have an error."""
        images = discover(self.catalog, self.skopeo)
        self.states.forget_others(image.name for image in images)
        self.view.step("fetch", len(images))
        fetcher = Fetcher(self.store, self.states, self.skopeo)
        fetcher.fetch(
            images,
            self.catalog.access.parallel,
            lambda state, nbytes: self.view.ended(state.name, state.error, nbytes),
        )
        return images

    def make_over(self, images: Sequence[CatalogImage]) -> None:
        """Make every image over that is not yet, as one job each; prove it and tag it."""
        due = [image for image in images if self.states[image.name].error is None and not self.is_made(image)]
        self.view.step("make over", len(due))
        tasks = []
        for image in due:
            state = self.states[image.name]
            try:
                request = self.request(image)
            except LayerfarmError as error:
                self._end(state.but(error=str(error)), 0)
                continue
            if request is None:
                self._keep(image)
                continue
            job = state.job if state.job_work == self.work_of(image) else None
            tasks.append(Task(image.name, request, job))
        by_name = {image.name: image for image in due}
        self.backend.run(
            tasks, lambda task, result, error: self._made(by_name[task.name], result, error), _Watcher(self, by_name)
        )

    def push(self, images: Sequence[CatalogImage]) -> None:
        """Bring what is new to the destination's registry, if there is one, with the proofs."""
        if self.catalog.destination.registry is None:
            return
        due = [image for image in images if self._is_to_push(self.states[image.name])]
        self.view.step("push", len(due))
        with ThreadPoolExecutor(self.catalog.access.parallel, thread_name_prefix="push") as pool:
            list(pool.map(self._push, due))

    def verify(self, images: Sequence[CatalogImage]) -> list[tuple[str, str]]:
        """Check the proofs of all images that are done again; returns the faults, by image."""
        done = [image for image in images if self.is_made(image) and image.policy.do.transform != "keep"]
        self.view.step("verify", len(done))
        faults: list[tuple[str, str]] = []

        def ended(task: Task, result: Any, error: LayerfarmError | None) -> None:
            found = [explain(error)] if error is not None else list(result.errors)
            if error is None and not result.proofs and self.states[task.name].is_changed:
                found.append("the image has no proof any more")
            faults.extend((task.name, fault) for fault in found)
            self.view.ended(task.name, "; ".join(found) or None, 0 if error else result.bytes_read)

        tasks = [Task(image.name, VerifyRequest(image=self.target(image))) for image in done]
        self.backend.run(tasks, ended, _Shower(self.view))
        return faults

    def outlook(self) -> list[tuple[str, str]]:
        """By image, what a run would do with it. Asks the registries, and fetches nothing."""
        fetcher = Fetcher(self.store, self.states, self.skopeo)
        found = []
        for image in discover(self.catalog, self.skopeo):
            state = self.states[image.name]
            steps = []
            if not fetcher.is_current(image):
                steps.append("fetch")
            if steps or not self.is_made(image):
                steps.append(image.policy.do.transform)
            if self.catalog.destination.registry and (steps or self._is_to_push(state)):
                steps.append("push")
            found.append((image.name, ", ".join(steps) or "nothing"))
        return found

    def known(self) -> list[CatalogImage]:
        """The images of the last run, without asking any registry."""
        return [
            CatalogImage(state.name, state.origin, state.origin.startswith(DOCKER), policy)
            for state in self.states.all()
            if (policy := policy_for(self.catalog, state.name)) is not None
        ]

    # --- one image -------------------------------------------------------------------------------

    def target(self, image: CatalogImage) -> ImageRef:
        return target_of(self.store.path, self.catalog.destination.layout, image.name)

    def request(self, image: CatalogImage) -> TransformRequest | None:
        """What is to be asked for the image, None where it stays as it is."""
        return request_for(image.policy.do, ImageRef(store=self.store.path, tag=image.name), self.target(image))

    def work_of(self, image: CatalogImage) -> str:
        """What the new image follows from; see :attr:`ImageState.work`."""
        old = self.states[image.name].old
        assert old is not None
        return fingerprint(old.digest, image.policy.do, self.target(image))

    def is_made(self, image: CatalogImage) -> bool:
        """True if the new image is there, made of the old one as it is now, by the policy as it is now."""
        state = self.states[image.name]
        if state.old is None or state.new is None or state.work != self.work_of(image):
            return False
        target = self.target(image)
        found = Layout.open(target.store).find(target.tag)
        return len(found) == 1 and found[0].digest == state.new.digest

    def _keep(self, image: CatalogImage) -> None:
        state = self.states[image.name]
        target = self.target(image)
        try:
            top = copy_in(self.store, image.name, Layout.open(target.store), target.tag)
        except LayerfarmError as error:
            self._end(state.but(error=str(error)), 0)
        else:
            self._end(state.but(new=top, work=self.work_of(image), result=None), top.size)

    def _made(self, image: CatalogImage, result: Any, error: LayerfarmError | None) -> None:
        state = self.states[image.name].but(job=None, job_work=None)
        if error is not None:
            self._end(state.but(error=explain(error)), 0)
            return
        assert isinstance(result, TransformResult)
        target = self.target(image)
        new = named(Layout.open(target.store), target.tag)
        self._end(state.but(new=new, work=self.work_of(image), result=result), result.bytes_after)

    def _end(self, state: ImageState, nbytes: int) -> None:
        self.states.put(state)
        self.view.ended(state.name, state.error, nbytes)

    def _is_to_push(self, state: ImageState) -> bool:
        return state.error is None and state.new is not None and state.pushed != self._pushed(state)

    def _pushed(self, state: ImageState) -> str:
        assert state.new is not None
        return f"{state.new.digest} {self._reference(state.name)}"

    def _reference(self, name: str) -> str:
        assert self.catalog.destination.registry is not None
        return f"{self.catalog.destination.registry.rstrip('/')}/{name}"

    def _push(self, image: CatalogImage) -> None:
        state = self.states[image.name]
        assert state.new is not None
        layout = Layout.open(self.target(image).store)
        self.view.working(image.name, "push")
        try:
            push(self.skopeo, layout, state.new, self._reference(image.name))
            nbytes = sum(blob.size for blob in reachable_blobs(layout, state.new))
        except LayerfarmError as error:
            self._end(state.but(error=str(error)), 0)
        else:
            self._end(state.but(pushed=self._pushed(state)), nbytes)


class _Shower:
    """Shows what jobs do."""

    def __init__(self, view: View) -> None:
        self._view = view

    def submitted(self, task: Task, job: str) -> None:
        self._view.working(task.name, "queued")

    def progress(self, task: Task, progress: Progress) -> None:
        if progress.notice:
            self._view.notice(progress.notice)
        if progress.stage:
            self._view.working(task.name, f"{progress.stage} {progress.units_done}/{progress.units_total}")


class _Watcher(_Shower):
    """Also remembers which job works on what, so that a run that is killed finds it again."""

    def __init__(self, work: Work, images: dict[str, CatalogImage]) -> None:
        super().__init__(work.view)
        self._work = work
        self._images = images

    def submitted(self, task: Task, job: str) -> None:
        state = self._work.states[task.name]
        self._work.states.put(state.but(job=job, job_work=self._work.work_of(self._images[task.name])))
        super().submitted(task, job)


def layout_at(path: Path) -> Layout:
    """The layout at ``path``, made if nothing is there."""
    return Layout.open(path) if path.exists() else Layout.create(path)
