"""What a job is: a flow of stages, each a list of independent units and a join.

A flow is written once and run by either of two runners (``layerfarm.worker.engine.local`` and
``layerfarm.worker.engine.farm``). What passes between stages is a small JSON document, the *state*; anything
that grows with the image is a file in the job's work directory beside the store, named by a
:class:`FileRef` (DESIGN laws 1 to 3).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from layerfarm.jobs.errors import OutsideAllowedRoots, RequestError, TreeChanged, UnsafePath
from layerfarm.jobs.fs import own_directory
from layerfarm.jobs.store.atomic_file import files_of, make_directory


class Model(BaseModel):
    """A typed message: unknown fields are refused, values are not changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(Model):
    """What a user asks for. Subclasses are the public request types."""

    kind: ClassVar[str] = ""
    """Of the job, and the name of the flow that serves it."""


class Result(Model):
    """What a job gives back: digests, sizes and counts."""


class State(Model):
    """What a flow knows between two stages."""


class FileRef(Model):
    """A file in the job's work directory: what a message carries instead of the bytes."""

    path: str = Field(pattern=r"^[^/\x00]+$")
    """Name in the work directory."""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if path in (".", ".."):
            raise ValueError("not the name of a file")
        return path

    size: int
    """Bytes."""
    sha256: str


class Unit(Model):
    """One independent piece of a stage. It may run twice, at once, anywhere (DESIGN law 2)."""

    params: dict[str, Any]
    """JSON values only, a few hundred bytes."""
    bytes: int = 0
    """Cost: bytes to be read or written; what progress counts."""


class Observer(Protocol):
    """What a unit tells while it runs, and how it learns that it should stop."""

    def advanced(self, nbytes: int) -> None:
        """``nbytes`` more are done. Raises JobCancelled when the job has been cancelled."""


class Silent:
    """An observer that nobody listens to."""

    def advanced(self, nbytes: int) -> None:
        pass


@dataclass(frozen=True)
class Policy:
    """What the operator of this process allows and how it spends its resources.

    ``None`` for roots or stores means no restriction: the local command, where the user is the operator.
    """

    roots: tuple[Path, ...] | None = None
    """Directories below which rootfs and bundles may lie."""
    stores: tuple[Path, ...] | None = None
    """Layouts that may be used, or directories below which layouts may lie."""
    shards: int = 2
    """Into how many shards a tree is cut at most; never changes the resulting bytes."""
    threads: int = 2
    """Threads of one unit that compresses or hashes."""

    def check_root(self, path: Path) -> Path:
        """``path`` resolved, if it lies in an allowed root.

        Raises:
            OutsideAllowedRoots: it does not.
        """
        return self._check(path, self.roots, "path lies outside the worker's allowed roots", "--root")

    def check_resolved(self, path: Path) -> Path:
        """The same for what :meth:`check_root` returned when the job began, and no link has come into since.

        Raises:
            OutsideAllowedRoots: it lies in no allowed root.
            UnsafePath: it leads elsewhere now.
        """
        if self.check_root(path) != path:
            raise UnsafePath("a symbolic link has come into the path since the job began", where=path)
        return path

    def check_store(self, path: Path) -> Path:
        """``path`` resolved, if it is an allowed store or lies below one.

        Raises:
            OutsideAllowedRoots: it is not.
        """
        return self._check(path, self.stores, "store is not one of the worker's allowed stores", "--store")

    @staticmethod
    def _check(path: Path, allowed: tuple[Path, ...] | None, what: str, option: str) -> Path:
        if not path.is_absolute():
            raise RequestError("path must be absolute", where=path)
        # The last component may not exist yet (a bundle to be made): its parent decides.
        resolved = Path(os.path.realpath(path))
        if allowed is not None and not any(resolved.is_relative_to(os.path.realpath(root)) for root in allowed):
            raise OutsideAllowedRoots(
                what, where=path, hint=f"allow it with {option} when starting the worker, see docs/operating.md"
            )
        return resolved


@dataclass(frozen=True)
class Context:
    """Where a unit, a plan or a join runs."""

    job_id: str
    policy: Policy = field(default_factory=Policy)
    observer: Observer = field(default_factory=Silent)
    attempt: int = 1
    """Its number: a retry from the start is the next attempt."""
    fenced: bool = False
    """On a farm: another process may do the same, now or earlier, and its effect has to happen once."""

    @property
    def work(self) -> str:
        """Name of the attempt's own directory."""
        return self.job_id if self.attempt <= 1 else f"{self.job_id}_{self.attempt}"

    @property
    def commit(self) -> str:
        """Under which name the attempt gives its tag, once; empty where nobody else can do the same."""
        return self.work if self.fenced else ""


StateT = TypeVar("StateT", bound=State)


@dataclass(frozen=True)
class Equal:
    """How equal work of different jobs is told, so that a farm does it once (DESIGN law 2)."""

    name: Callable[[Context, Unit], str | None]
    """A digest of the operation, its inputs, its parameters and its codec's version: units of one name have
    one result, whichever jobs they belong to. None: this one is like no other."""
    holds: Callable[[Context, Unit, dict[str, Any]], bool]
    """Whether an earlier result can be used: what it speaks of is in the store, and counts as just used."""


@dataclass(frozen=True)
class Stage(Generic[StateT]):
    """One step of a flow.

    ``plan`` computes the units from the state, ``run`` does one of them and returns a small JSON
    object, ``join`` folds the results, in the units' order, into the next state. ``plan`` and ``join``
    may run again after a crash, so their effects must be repeatable; ``run`` may run twice at once.
    A stage whose plan is empty is joined at once.
    """

    name: str
    plan: Callable[[Context, StateT], Sequence[Unit]]
    run: Callable[[Context, Unit], dict[str, Any]]
    join: Callable[[Context, StateT, list[dict[str, Any]]], StateT]
    equal: Equal | None = None
    commits: bool = False
    """Its units make the job's effect visible, a tag say: once one is claimed, a cancel comes too late."""


@dataclass(frozen=True)
class Flow(Generic[StateT]):
    """A kind of job."""

    request: type[Request]
    state: type[StateT]
    stages: tuple[Stage[StateT], ...]
    begin: Callable[[Context, Any], StateT]
    """From the validated request to the first state; checks the policy (law 7) and the input."""
    finish: Callable[[Context, StateT], Result]
    """From the last state to the result; must be repeatable."""
    clean: Callable[[Context, Any, bool], None]
    """Remove what the job staged. Given the request and whether the job succeeded; runs exactly when
    the job ends, in whatever way, and again if that was interrupted; never raises for what is gone."""
    result: type[Result] = Result
    """What ``finish`` returns: a client reads the record of the job back as this."""

    @property
    def name(self) -> str:
        """The kind of job that it does."""
        return self.request.kind


class WorkDirectory:
    """The files of one attempt at a job beside the store: ``<store>/.layerfarm/work/<name>/``."""

    def __init__(self, store: Path, name: str) -> None:
        """``name``: see :attr:`Context.work`."""
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise RequestError("not the name of a work directory", where=name)
        self._store = store
        self.path = store / ".layerfarm" / "work" / name

    def create(self) -> None:
        """
        Raises:
            FileNotFoundError: the store is not there.
            UnsafePath: a link stands in the way.
        """
        make_directory(self.path, self._store)

    def remove(self) -> None:
        with suppress(OSError, UnsafePath):
            files_of(self._store).remove(self.path)

    def publish(self, name: str, write: Callable[[Path], None]) -> FileRef:
        """Let ``write`` fill a temporary file, then give it ``name`` in one step.

        Two copies of one unit write two temporary files; the renames leave one whole file.
        """
        (ref,) = self.publish_all((name,), lambda paths: write(paths[0]))
        return ref

    def publish_all(self, names: Sequence[str], write: Callable[[list[Path]], None]) -> list[FileRef]:
        """:meth:`publish` of several files that are written together."""
        unique = f"{os.getpid()}.{os.urandom(4).hex()}"
        temporaries = [self.path / f".{name}.{unique}" for name in names]
        try:
            write(temporaries)
            refs = []
            for name, temporary in zip(names, temporaries, strict=True):
                refs.append(FileRef(path=name, size=temporary.stat().st_size, sha256=_digest(temporary)))
                temporary.rename(self.path / name)
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
        return refs

    def open(self, ref: FileRef) -> Path:
        """The path of a published file, its size checked.

        Raises:
            TreeChanged: somebody removed or changed it.
        """
        path = self.path / ref.path
        try:
            fd = files_of(self._store).open(path)
        except FileNotFoundError as error:
            raise TreeChanged("a work file of the job is gone", where=path) from error
        except UnsafePath as error:
            raise TreeChanged("a work file of the job is no file any more", where=path) from error
        try:
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if size != ref.size:
            raise TreeChanged(f"a work file of the job has {size} bytes, not {ref.size}", where=path)
        return path


def staging_name(work: str) -> str:
    """The name of what a job stages beside its output (:attr:`Context.work`).

    Not made of the output's name: that may have all the bytes that a name can have.
    """
    return f".layerfarm-{work}"


class WorkBeside(WorkDirectory):
    """The same beside what the job makes, where that belongs to no store or the store is only read."""

    def __init__(self, output: Path, name: str) -> None:
        super().__init__(output.parent, name)
        self.path = output.with_name(staging_name(name))

    def create(self) -> None:
        """
        Raises:
            UnsafePath: somebody else has made it, where everybody may.
        """
        own_directory(self.path)


def work_directory(ctx: Context, store: Path) -> WorkDirectory:
    """The job's work directory in a store that this worker may use.

    Raises:
        OutsideAllowedRoots: the operator does not allow the store.
    """
    return WorkDirectory(ctx.policy.check_store(store), ctx.work)


def unit_of(params: Model, nbytes: int = 0) -> Unit:
    """A unit that is given ``params`` and reads or writes about ``nbytes``."""
    return Unit(params=params.model_dump(mode="json"), bytes=nbytes)


_BYTES: Final = 2
"""Raised when equal inputs give other layers than the release before, so that a farm takes none of its results.

2: the entries of hard links repeat the metadata of their file, and merged layers have the order of a walk.
"""


def name_of_work(*parts: Any) -> str:
    """A digest of JSON values, and of what this release makes of them: the name for :class:`Equal`."""
    text = json.dumps([_BYTES, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
