"""The state of a catalog between two runs: a small file for each image, beside the store.

Each is replaced atomically, so that a run may be killed at any moment. A single file for all would make the bytes
written in a run grow with the square of the catalog.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from layerfarm.jobs.errors import CatalogError, JobFailed, LayerfarmError, UnsafePath
from layerfarm.jobs.flows.transforms import TransformResult
from layerfarm.jobs.store import PRIVATE_DIRECTORY, Descriptor, Layout
from layerfarm.jobs.store.atomic_file import explained, files_of, make_directory, replace_file
from layerfarm.jobs.store.locks import lock_if_free
from layerfarm.worker.catalog.costs import Holding, Pullable, holding_of

LAST_RUN: Final = "last-run.json"
AS_IT_IS: Final = "as it is"
"""Layout of an image that is not rechunked, because that would not save enough."""
_OWNER: Final = "file"
"""In a catalog's directory: the path of its file."""
Act = Literal["fetched", "made", "copied", "pushed", "repaired"]
"""A step of a run that changed something. ``copied``: published unchanged; ``repaired``: pushed again, because the
destination no longer had it."""
Step = Literal["fetch", "analyze", "transform", "push"]


class Publication(BaseModel):
    """A place where the catalog put an image; immutable."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    place: str
    """``docker://HOST/REPOSITORY:TAG`` or ``LAYOUT:TAG``."""
    digest: str
    beside: dict[str, str] = {}
    """Digests of the manifests behind other tags of the registry that hold its referrers alone, by tag."""


class ImageState(BaseModel):
    """One image of a catalog; immutable."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    origin: str = ""
    offer: str | None = None
    """Digest of the origin's manifest or index when it was fetched."""
    old: Descriptor | None = None
    """The fetched image in the store."""
    said: tuple[str, ...] = ()
    """Its referrers at its origin at that time."""
    left: tuple[str, ...] = ()
    """Referrers that could not be fetched, with the reason."""
    manifests: tuple[str, ...] = ()
    """Digests of the manifests behind ``offer``, if the image was copied from a layout byte for byte."""
    kept: bool = False
    """True if the policy was to copy it unchanged when it was fetched."""
    holdings: dict[str, dict[str, Pullable]] = {}
    """By digest of the :attr:`original` and of ``new``: layers and configurations that hosts pull of it."""
    created: str | None = None
    work: str | None = None
    """Digest of everything that determines ``new`` except the plan: the old image, the policy."""
    layout: str | None = None
    """Digest of the planned layers of a rechunked image, or :data:`AS_IT_IS`."""
    new: Descriptor | None = None
    result: TransformResult | None = None
    pushed: str | None = None
    """Key of the last push: image and destination."""
    refused: tuple[str, ...] = ()
    """Its proofs and referrers that the destination refused in that push, with the reason."""
    beside: tuple[str, ...] = ()
    """Tags of its referrers that were pushed with it."""
    published: tuple[Publication, ...] = ()
    """Places of the image and of its earlier versions, each once."""
    gone: bool = False
    """True: it left the catalog, and is known only for what of it remains."""
    job: str | None = None
    """Id of the last job on a farm, for ``job_work``."""
    job_work: str | None = None
    error: str | None = None
    """Why it failed; None: it is done, or was not tried."""
    error_type: str | None = None
    """Class name of that error."""
    failed_in: Step | None = None
    """The step that ended with ``error``."""
    run: str | None = None
    """:attr:`LastRun.began` of the last run that did something with the image."""
    acts: tuple[Act, ...] = ()
    """The steps of that run."""
    note: str | None = None
    """Why its policy does not apply to it: without ``old`` it is left out, else copied unchanged."""

    @property
    def is_changed(self) -> bool:
        """Return True if the new image differs from the old one."""
        return self.old is not None and self.new is not None and self.old.digest != self.new.digest

    @property
    def is_proved(self) -> bool:
        """Return True if there is a proof of every change; a catalog may keep none."""
        changes = self.result.images if self.result is not None else []
        return all(change.proof is not None or change.new == change.old for change in changes)

    @property
    def is_ready(self) -> bool:
        """Return True if there is a new image, and the last step did not fail."""
        return self.error is None and self.new is not None

    def publish(self, new: Publication) -> ImageState:
        """Return the state with a publication, in the place of an earlier one there."""
        return self.but(published=(*(one for one in self.published if one.place != new.place), new))

    def failed(self, error: LayerfarmError, step: Step) -> ImageState:
        """Return the state with the error that ended a step."""
        kind = error.error_type if isinstance(error, JobFailed) else None
        return self.but(error=error_text(error), error_type=kind or type(error).__name__, failed_in=step)

    @property
    def original(self) -> str | None:
        """Return the digest of the original at its source; that of ``old`` differs if it was converted."""
        return None if self.old is None else self.offer or self.old.digest

    def held_before(self, store: Layout) -> Holding | None:
        """Return the holding of the original, which is read in the store only if it is unknown; None: not fetched.

        Raises as :func:`~layerfarm.worker.catalog.costs.holding_of`.
        """
        return None if self.old is None else self._held(store, self.old, self.original or "")

    def held_after(self, layout: Layout, new: Descriptor) -> Holding:
        """Return the holding of the new image; as :meth:`held_before`."""
        return self._held(layout, new, new.digest)

    def _held(self, layout: Layout, image: Descriptor, digest: str) -> Holding:
        return self.holdings.get(digest) or holding_of(layout, image)

    def holdings_of(self, digest: str | None) -> dict[str, dict[str, Pullable]]:
        """Return the entry of :attr:`holdings` with a digest, if there is one."""
        return {digest: self.holdings[digest]} if digest is not None and digest in self.holdings else {}

    def but(self, **changes: object) -> ImageState:
        """Return the state with changes; itself if nothing changes."""
        same = all(getattr(self, name) == value for name, value in changes.items())
        return self if same else self.model_copy(update=changes)


class Missed(BaseModel):
    """A source that could not be listed, or an image in it whose name cannot be used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str
    error: str
    error_type: str = CatalogError.__name__
    """Class name of the error."""


class Loss(BaseModel):
    """A repository, or some images of one, that stays unchanged: the plan would not save enough of its pulls."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: str
    images: int
    pull_before: int
    """Bytes of all pulls from tag to tag."""
    pull_planned: int
    wanted: float
    """Percentage that the policy requires to be saved."""


class LastRun(BaseModel):
    """The last run of a catalog as a whole, or the last plan."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["plan", "run"] = "run"
    began: str | None = None
    """Time in UTC, RFC 3339; it identifies the run."""
    ended: str | None = None
    """None: it was interrupted, or is running."""
    missed: tuple[Missed, ...] = ()
    losses: tuple[Loss, ...] = ()
    referrers: frozenset[str] = frozenset()
    """:attr:`layerfarm.worker.catalog.discovery.Found.referrers` of the fetch."""
    requests: dict[str, int] = {}
    """Requests to registries, by method."""


class States:
    """The states of one catalog file; in a directory beside its store."""

    def __init__(self, store: Layout, catalog: Path) -> None:
        """``catalog``: the catalog file."""
        self.run: str | None = None
        """:attr:`LastRun.began` of the current run."""
        self._store = store
        self._known: dict[str, ImageState] = {}
        self.directory = state_directory(store, catalog)
        for name, content in files_of(store.path).contents(self.directory / "images"):
            # An image whose state is corrupt is processed like a new one.
            with suppress(ValidationError):
                if name.endswith(".json"):
                    state = ImageState.model_validate_json(content)
                    self._known[state.name] = state

    def __getitem__(self, name: str) -> ImageState:
        """Return the state of an image; one that left the catalog and returns has its earlier state."""
        state = self._known.get(name)
        if state is None:
            return ImageState(name=name)
        return state.but(gone=False) if state.gone else state

    def all(self) -> list[ImageState]:
        """Return the states of the images in the catalog, by name."""
        return [state for _, state in sorted(self._known.items()) if not state.gone]

    def gone(self) -> list[ImageState]:
        """Return the states of the images that left the catalog, by name."""
        return [state for _, state in sorted(self._known.items()) if state.gone]

    def forget_others(self, names: Iterable[str]) -> None:
        """Mark the images that left the catalog. What of them is in the store and at the destination stays."""
        for name in self._known.keys() - set(names):
            if not self._known[name].gone:
                self.put(self[name].but(gone=True, error=None, note=None, job=None, job_work=None))

    def others_have(self, name: str) -> bool:
        """Return True if another catalog file that shares the store has an image of this name."""
        file = Path("images") / f"{_file_name(name)}.json"
        others = (place for place in self.directory.parent.iterdir() if place != self.directory)
        return any((other / file).exists() for other in others)

    def remove(self, name: str) -> None:
        """Remove the state of an image of which nothing remains."""
        with suppress(FileNotFoundError):
            files_of(self._store.path).unlink(self.directory / "images" / f"{_file_name(name)}.json")
        self._known.pop(name, None)

    def acted(self, state: ImageState, act: Act) -> ImageState:
        """Return the state with one more step of the current run."""
        earlier = state.acts if state.run == self.run else ()
        return state.but(run=self.run, acts=(*earlier, act))

    def put(self, state: ImageState) -> ImageState:
        """Record a state, durably. Different threads may put different images."""
        known = self._known.get(state.name)
        if known is not state and known != state:
            self.write(Path("images") / f"{_file_name(state.name)}.json", state.model_dump_json().encode())
            self._known[state.name] = state
        return state

    def last_run(self) -> LastRun:
        """Return the record of the last run; empty if there is none."""
        try:
            return LastRun.model_validate_json(files_of(self._store.path).read(self.directory / LAST_RUN))
        except (OSError, UnsafePath, ValidationError):
            return LastRun()

    def has_run(self) -> bool:
        """Return True if the catalog was run, not only planned."""
        last = self.last_run()
        return (last.kind == "run" and last.began is not None) or any(state.new for state in self._known.values())

    def begin(self, kind: Literal["plan", "run"], *, part: bool, **found: Any) -> None:
        """Record the begin of a run or a plan, with ``found``; ``part``: with everything else of the last one."""
        self.run = utc_now()
        last = self.last_run() if part else LastRun()
        self._put_last_run(last.model_copy(update={"kind": kind, "began": self.run, "ended": None, **found}))

    def note(self, **changes: Any) -> None:
        """Change the record of the last run, durably."""
        self._put_last_run(self.last_run().model_copy(update=changes))

    def _put_last_run(self, run: LastRun) -> None:
        self.write(LAST_RUN, run.model_dump_json().encode())

    def write(self, name: Path | str, content: bytes) -> Path:
        """Replace a file of the catalog's state."""
        path = self.directory / name
        with explained("catalog state cannot be written", path):
            replace_file(path, content, self._store.path)
        return path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other runs of the catalog.

        Raises:
            CatalogError: another run holds the lock.
        """
        with explained("catalog cannot be locked", self.directory):
            lock = lock_if_free(self.directory / "lock", self._store.path)
        if lock is None:
            raise CatalogError("another run of this catalog is running", where=self.directory)
        with lock:
            yield


def state_directory(store: Layout, catalog: Path) -> Path:
    """Return the directory for the state of a catalog file, created if missing.

    Raises:
        StoreError: it cannot be created.
    """
    place = store.path / PRIVATE_DIRECTORY / "catalog"
    with explained("catalog state cannot be stored", place):
        directory = _directory_for(catalog.resolve(), place, store.path)
        make_directory(directory / "images", store.path)
    return directory


def utc_now() -> str:
    """Return the time in UTC as RFC 3339, with milliseconds."""
    return f"{datetime.now(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def _directory_for(catalog: Path, place: Path, store: Path) -> Path:
    """Return the directory in ``place`` for the state of a catalog file.

    It has the name of the file, and contains the file's path. A second file of that name has a directory with a digest
    of its path. A moved file finds its state, because nothing is at its old path.
    """
    own = place / f"{catalog.stem}-{_file_name(os.fsdecode(catalog))[:12]}"
    files = files_of(store)
    if files.is_directory(own):
        return own
    first = place / catalog.stem
    owner = b""
    with suppress(FileNotFoundError):
        owner = files.read(first / _OWNER)
    path = os.fsencode(catalog)
    if owner == path:
        return first
    if owner and _exists(owner):
        return own
    make_directory(first, store)
    replace_file(first / _OWNER, path, store)
    return first


def _exists(path: bytes) -> bool:
    """Return False if nothing is there; an inaccessible path may exist."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def _file_name(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def error_text(error: LayerfarmError) -> str:
    """Return an error in one line; of a job on a farm, the error of its unit."""
    return str(error) if not isinstance(error, JobFailed) else error.what
