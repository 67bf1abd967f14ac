"""A catalog's run, step by step: fetch, plan, transform, push. Each step can be interrupted and repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from layerfarm.jobs.errors import LayerfarmError, StoreError
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import TransformResult
from layerfarm.jobs.relayer.rechunk import put_plan
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.tag_group import in_groups
from layerfarm.worker.catalog.backends import Backend, Task, Watcher
from layerfarm.worker.catalog.connections import check_connections, of_destination, of_sources
from layerfarm.worker.catalog.costs import Holding
from layerfarm.worker.catalog.discovery import Found
from layerfarm.worker.catalog.document import DOCKER, CatalogFile
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.members import members_of
from layerfarm.worker.catalog.offers import tagged
from layerfarm.worker.catalog.part import Names, discover_part
from layerfarm.worker.catalog.places import layout_at, target_of
from layerfarm.worker.catalog.planning import (
    PLAN,
    Joint,
    analysis_for,
    fingerprint,
    for_other_systems,
    previous_plan,
    request_for,
)
from layerfarm.worker.catalog.policies import Rechunk
from layerfarm.worker.catalog.published import differences
from layerfarm.worker.catalog.pull import copy_in
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.savings import plan_what_saves
from layerfarm.worker.catalog.sizes import fail_large
from layerfarm.worker.catalog.sources import CatalogImage, policy_for
from layerfarm.worker.catalog.state import AS_IT_IS, ImageState, Loss, Missed, Publication, States, utc_now
from layerfarm.worker.catalog.transfer import Fetcher, Pusher, is_pushed
from layerfarm.worker.catalog.views import Shower, View


@dataclass
class Work:
    """The run of a catalog."""

    file: Path
    """The catalog file."""
    catalog: CatalogFile
    store: Layout
    states: States
    skopeo: Skopeo
    """Reads the sources."""
    publisher: Skopeo
    """Reads and writes the destination."""
    backend: Backend
    view: View
    joint: Joint | None = None
    """The plan of the rechunked images, after :meth:`plan`."""
    losses: Sequence[Loss] = ()
    """Repositories that the plan leaves unchanged, after :meth:`plan`."""
    _reader: Known = field(init=False)
    """Reads the sources, after a discovery."""
    _layouts: dict[str, str] = field(default_factory=dict)
    """By image to rechunk, a digest of its planned layers, or :data:`AS_IT_IS`."""
    _targets: dict[str, ImageRef] = field(default_factory=dict)
    """By image, :meth:`target`."""
    _works: dict[str, tuple[ImageState, str]] = field(default_factory=dict)
    """By image, :meth:`work_of` of a state."""
    _different: dict[str, str] = field(default_factory=dict)
    """Images that the destination's registry no longer has as they were pushed, with the difference."""

    @classmethod
    def begin(cls, file: Path, catalog: CatalogFile, backend: Backend, view: View) -> Work:
        """Create the catalog's store and destination if they are missing. ``file``: the catalog's.

        Raises:
            StoreError: they cannot be created.
            CatalogError: certificates that the file names are missing.
        """
        check_connections(catalog)
        store = layout_at(Path(catalog.store))
        if catalog.destination.layout is not None:
            layout_at(Path(catalog.destination.layout))
        skopeo = Skopeo(catalog.access, view.notice, connection_of=of_sources(catalog))
        publisher = skopeo.connected(of_destination(catalog))
        return cls(file.absolute(), catalog, store, States(store, file), skopeo, publisher, backend, view)

    @property
    def name(self) -> str:
        return self.file.stem

    # --- the steps -------------------------------------------------------------------------------

    def fetch(self, names: Names | None = None, kind: Literal["plan", "run"] = "run") -> list[CatalogImage]:
        """Begin a run, or only a plan: discover the images and fetch them, and record an error for those that fail.

        ``names``: only images of these names are looked for and fetched; the others stay as they are.
        """
        found = self.discover(names)
        self.states.begin(kind, part=names is not None, missed=tuple(found.missed), referrers=found.referrers)
        self.states.forget_others(image.name for image in found.images)
        self.view.step("fetch", len(found.listed))
        fetcher = self.fetcher()
        fetcher.fetch(found.listed, self.catalog.access.parallel, self._fetched)
        if names is None:  # another image may have the platform
            self._miss(fetcher.lacking(found.listed))
        self._record()
        return found.images

    def _miss(self, missed: Sequence[Missed]) -> None:
        """Report and record more that was missed."""
        for one in missed:
            self.view.notice(f"{one.where}: {one.error}")
        self.states.note(missed=(*self.states.last_run().missed, *missed))

    def finish(self) -> None:
        """Record the end of the run."""
        self._record(ended=utc_now())

    def _record(self, **changes: str) -> None:
        """Record the requests sent so far, and other changes."""
        self.states.note(requests=self.skopeo.pace.counts, **changes)

    def discover(self, names: Names | None = None) -> Found:
        """List the sources; show what cannot be listed. ``names``: as :meth:`fetch`."""
        self._reader = Known(self.skopeo, self.store)
        last = self.states.last_run()
        found = discover_part(self.catalog, self.skopeo, self._reader, self.known(), last, names)
        for text in (*(one.error for one in found.missed), *found.notices):
            self.view.notice(text)
        return found

    def fetcher(self) -> Fetcher:
        """Return a fetcher of images; call it after :meth:`discover`."""
        return Fetcher(self.store, self.states, self.skopeo, self._reader, self.catalog.destination)

    def _fetched(self, state: ImageState, nbytes: int) -> None:
        if state.note is not None:
            self.view.notice(f"{state.name}: {state.note}")
        self.view.ended(state.name, state.error, nbytes)

    def plan(self, images: Sequence[CatalogImage], *, replan: bool = False, keep: bool = True) -> None:
        """Analyze the images to rechunk, and plan them together; record an error for those that cannot be analyzed.

        The last run's plan is kept, unless ``replan``. Repositories for which it would not save enough stay unchanged
        (:mod:`layerfarm.worker.catalog.savings`). ``keep``: save the plan for the next run.
        """
        fail_large(self.store, self.states, images, self.catalog.destination.largest)
        images = [image for image in images if self.states[image.name].error is None]
        members, unknown = members_of(self.store, self.states, images)
        if unknown:
            self._analyze(unknown)
        more, failed = members_of(self.store, self.states, unknown)
        members += more
        for image in failed:
            if self.states[image.name].error is None:
                unwritable = StoreError("the analysis cannot be stored: is the store writable?")
                self.states.put(self.states[image.name].failed(unwritable, "analyze"))
        if not members:
            return
        created = {image.name: self.states[image.name].created for image in images}
        previous = None if replan else previous_plan(self.states)
        rechunked = () if replan else self._rechunked(images)
        largest = self.catalog.destination.largest
        self.joint, self.losses = plan_what_saves(members, created, self.catalog.order, previous, rechunked, largest)
        for name, error in self.joint.failed.items() if self.joint is not None else ():
            self.states.put(self.states[name].failed(error, "analyze"))
        self._layouts = dict.fromkeys((member.name for member in members), AS_IT_IS)
        if self.joint is not None:
            self._layouts |= self.joint.layouts()
        if keep:
            self.states.note(losses=tuple(self.losses))
            if self.joint is not None:
                self.states.write(PLAN, self.joint.plan.encode())

    def _rechunked(self, images: Sequence[CatalogImage]) -> list[str]:
        """Return the images that an earlier run rechunked."""
        states = [self.states[image.name] for image in images if isinstance(image.policy.do, Rechunk)]
        return [state.name for state in states if state.layout not in (None, AS_IT_IS)]

    def plan_again(self) -> None:
        """Load the plan of the last run, for images with a stored analysis; nothing is analyzed."""
        plan = previous_plan(self.states)
        if plan is not None:
            images = [image for image in self.known() if self.states[image.name].layout != AS_IT_IS]
            members, _ = members_of(self.store, self.states, images)
            self.joint = Joint.of(plan, members) if members else None
        self.losses = self.states.last_run().losses

    def _analyze(self, images: Sequence[CatalogImage]) -> None:
        self.view.step("analyze", len(images))

        def ended(task: Task, result: Any, error: LayerfarmError | None) -> None:
            if error is not None:
                self.states.put(self.states[task.name].failed(error, "analyze"))
            self.view.ended(
                task.name, self.states[task.name].error, 0 if error else sum(each.bytes for each in result.images)
            )

        tasks = []
        for image in images:
            assert isinstance(image.policy.do, Rechunk)
            tasks.append(Task(image.name, analysis_for(image.policy.do, self.source(image))))
        self.backend.run(tasks, ended, self.shower())

    def transform(self, images: Sequence[CatalogImage]) -> None:
        """Transform, verify and tag every image that is due, one job each. Call it after ``plan``."""
        with self.steady():
            due = [image for image in images if self.is_due(image)]
        self.view.step("transform", len(due))
        planned = any(self._layouts.get(image.name, AS_IT_IS) != AS_IT_IS for image in due)
        plan = self._put_plan() if planned else None
        tasks, kept = [], []
        for image in due:
            request, others = None, for_other_systems(self.store, image.policy.do, self.states[image.name].old)
            if self._layouts.get(image.name) != AS_IT_IS:
                proof = self.catalog.proofs != "off"
                request = request_for(image.policy.do, self.source(image), self.target(image), plan, proof=proof)
            if request is None or others:
                kept.append((image, others))
                continue
            state = self.states[image.name]
            job = state.job if state.job_work == self.job_work(image) else None
            tasks.append(Task(image.name, request, job))
        with self.steady():
            in_groups(kept, self.destination.path, self._keep, self._kept)
        by_name = {image.name: image for image in due}

        def submitted(task: Task, job: str) -> None:
            self.states.put(self.states[task.name].but(job=job, job_work=self.job_work(by_name[task.name])))

        def ended(task: Task, result: Any, error: LayerfarmError | None) -> None:
            self._made(by_name[task.name], result, error)

        self.backend.run(tasks, ended, Shower(self.view, submitted))

    def push(self, images: Sequence[CatalogImage], among: Sequence[CatalogImage] | None = None) -> None:
        """Push new images and their proofs to the destination's registry, if there is one.

        ``among``: all images of the catalog, if ``images`` are only some of them.
        """
        if self.catalog.destination.registry is None:
            return
        due = self.to_push([image for image in images if self.states[image.name].is_ready])
        self.view.step("push", len(due))
        names = [image.name for image in among or images]
        pusher = Pusher(self.publisher, self.catalog.destination, names, self.catalog.proofs, self.view.notice)

        def push(image: CatalogImage) -> None:
            self.view.working(image.name, "push")
            state, nbytes = pusher.push(self.states[image.name], self.destination)
            if state.error is None:
                state = self.states.acted(state, "repaired" if image.name in self._different else "pushed")
            self._end(state, nbytes)

        with ThreadPoolExecutor(self.catalog.access.parallel, thread_name_prefix="push") as pool:
            list(pool.map(push, due))
        self._record()

    def to_push(self, images: Sequence[CatalogImage]) -> list[CatalogImage]:
        """Return those of finished images that are not in the destination's registry in their current form."""
        destination = self.catalog.destination
        if destination.registry is None:
            return []
        states = [self.states[image.name] for image in images]
        pushed = [state for state in states if is_pushed(state, destination, self.catalog.proofs)]
        self._different = differences(self.publisher, destination, pushed, self.catalog.access.parallel)
        for text in self._different.values():
            self.view.notice(f"{text}; pushing it again")
        there = {state.name for state in pushed}.difference(self._different)
        return [image for image in images if image.name not in there]

    def shower(self) -> Watcher:
        """Return a display of the jobs' progress."""
        return Shower(self.view)

    def known(self) -> list[CatalogImage]:
        """Return the images of the last run, without querying any registry."""
        return [
            CatalogImage(state.name, state.origin, state.origin.startswith(DOCKER), policy)
            for state in self.states.all()
            if (policy := policy_for(self.catalog, state.name)) is not None
        ]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Let this thread read the indexes of the store and of the destination's layout once, to look at all images."""
        with self.store.steady(), self.destination.steady():
            yield

    @cached_property
    def destination(self) -> Layout:
        """The layout of the new images: the destination's, or the store."""
        layout = self.catalog.destination.layout
        return self.store if layout is None else Layout.open(Path(layout))

    # --- one image -------------------------------------------------------------------------------

    def target(self, image: CatalogImage) -> ImageRef:
        """Return the place of the new image."""
        found = self._targets.get(image.name)
        if found is None:
            found = self._targets[image.name] = target_of(self.store.path, self.catalog.destination, image.name)
        return found

    def source(self, image: CatalogImage) -> ImageRef:
        """Return the fetched image."""
        return ImageRef(store=self.store.path, tag=image.name)

    def work_of(self, image: CatalogImage, state: ImageState) -> str:
        """Return :attr:`ImageState.work` of an image in this state."""
        known = self._works.get(image.name)
        if known is None or known[0] is not state:
            assert state.old is not None
            work = fingerprint(state.old.digest, image.policy.do, self.target(image), *state.said)
            known = self._works[image.name] = (state, work)
        return known[1]

    def is_made(self, image: CatalogImage) -> bool:
        """Return True if the new image exists, made from the current old image, policy and plan."""
        state = self.states[image.name]
        return self.is_finished(image, state) and self.is_there(image, state)

    def is_finished(self, image: CatalogImage, state: ImageState) -> bool:
        """Return True if, by its state, the new image was made from the current old image, policy and plan."""
        if state.old is None or state.new is None or state.work != self.work_of(image, state):
            return False
        if self.catalog.proofs != "off" and not state.is_proved:
            return False
        return state.layout == self._layouts.get(image.name, state.layout)

    def is_there(self, image: CatalogImage, state: ImageState) -> bool:
        """Return True if the destination's layout, or the store, has the new image."""
        return state.new is not None and self.destination.names_only(self.target(image).tag, state.new.digest)

    def is_due(self, image: CatalogImage) -> bool:
        """Return True if the new image must be made, and can be."""
        state = self.states[image.name]
        return state.error is None and state.old is not None and not self.is_made(image)

    def _put_plan(self) -> str:
        """Store the plan for the jobs, in the store of the new images; return its digest."""
        assert self.joint is not None
        return put_plan(self.destination, self.joint.plan)

    def job_work(self, image: CatalogImage) -> str:
        """Return the key of the job that the image needs now."""
        without = " without proof" if self.catalog.proofs == "off" else ""
        return f"{self.work_of(image, self.states[image.name])} {self._layouts.get(image.name, '')}{without}"

    def _keep(self, image_and_note: tuple[CatalogImage, str | None]) -> ImageState:
        """Copy an image unchanged; ``note`` says why its policy does not apply."""
        image, note = image_and_note
        state = self.states[image.name]
        if note is not None:
            self.view.notice(f"{image.name}: {note}")
        try:
            top = copy_in(self.store, image.name, self.destination, self.target(image).tag)
        except LayerfarmError as error:
            return state.failed(error, "transform")
        return self.states.acted(self._with(image, top, None, note), "copied")

    def _with(
        self, image: CatalogImage, new: Descriptor, result: TransformResult | None, note: str | None
    ) -> ImageState:
        """Return the state of an image with a new image at the destination."""
        state = self.states[image.name]
        state = state.but(new=new, result=result, note=note, work=self.work_of(image, state))
        holdings: dict[str, Holding] = {**state.holdings_of(state.original)}
        with suppress(LayerfarmError):  # the report reads it again, and tells
            holdings[new.digest] = state.held_after(self.destination, new)
        state = state.but(layout=self._layouts.get(image.name), holdings=holdings)
        return state.publish(Publication(place=str(self.target(image)), digest=new.digest))

    def _kept(
        self, image_and_note: tuple[CatalogImage, str | None], state: ImageState, error: LayerfarmError | None
    ) -> None:
        if error is not None:
            state = self.states[state.name].failed(error, "transform")
        self._end(state, state.new.size if state.is_ready and state.new is not None else 0)

    def _made(self, image: CatalogImage, result: Any, error: LayerfarmError | None) -> None:
        if error is not None:
            state = self.states[image.name].but(job=None, job_work=None, note=None)
            self._end(state.failed(error, "transform"), 0)
            return
        assert isinstance(result, TransformResult)
        new = tagged(self.destination, self.target(image).tag)
        done = self._with(image, new, result, None).but(job=None, job_work=None)
        self._end(self.states.acted(done, "made" if done.is_changed else "copied"), result.bytes_after)

    def _end(self, state: ImageState, nbytes: int) -> None:
        self.states.put(state)
        self.view.ended(state.name, state.error, nbytes)
