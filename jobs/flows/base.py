"""A kind of job as a flow of stages, each a list of independent units and a join.

A flow is run by either of two runners (``layerfarm.worker.engine.local`` and ``layerfarm.worker.engine.farm``). The
*state* passed between stages is a small JSON document; everything that grows with the image is a file in the
job's work directory beside the store, named by a :class:`FileRef` (laws 1 to 3, docs/architecture.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from layerfarm.jobs.errors import OutsideAllowedRoots, RequestError, TreeChanged, UnsafePath
from layerfarm.jobs.fs import own_directory
from layerfarm.jobs.fs.names import rename
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.atomic_file import files_of, make_directory

__all__ = ["Policy", "Request", "Result"]

FORMAT: Final = 3
"""Version of jobs: of their records and messages, and of the states and units in them. A worker reads this version and
the one before, and continues a job in the version in which it was submitted, for workers that read no other."""


class Model(BaseModel):
    """A typed message: unknown fields are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(Model):
    """Parameters of a job. Subclasses are the public request types."""

    kind: ClassVar[str] = ""
    """The kind of job, which is the name of its flow."""


class Result(Model):
    """Result of a job: digests, sizes and counts."""


class State(Model):
    """State of a job between two stages."""


class FileRef(Model):
    """A file in the job's work directory: a message carries this instead of the bytes."""

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
    """Empty: not computed, of a file as large as an image."""


class Unit(Model):
    """One independent piece of a stage. It may run twice, at once, anywhere (law 2, docs/architecture.md)."""

    params: dict[str, Any]
    """JSON values only, a few hundred bytes."""
    bytes: int = 0
    """Bytes to read or write: the cost, and the measure of progress."""


class Observer(Protocol):
    """Receives the progress of a unit while it runs, and cancels it."""

    def advanced(self, nbytes: int) -> None:
        """Report that ``nbytes`` more are done. Raises JobCancelled after the job was cancelled."""


class Silent:
    """An observer that ignores progress and never cancels."""

    def advanced(self, nbytes: int) -> None:
        pass


@dataclass(frozen=True)
class Policy:
    """Directories that the operator of this process allows, and limits of its resources.

    ``None`` for roots or stores: no restriction, as in the local command, where the user is the operator.
    """

    roots: tuple[Path, ...] | None = None
    """Directories that may hold rootfs and bundles."""
    stores: tuple[Path, ...] | None = None
    """Layouts that may be used, or directories that may hold layouts."""
    shards: int = 2
    """Most shards of a tree; never changes the resulting bytes."""
    threads: int = 2
    """Threads of one unit that compresses or hashes."""

    def check_root(self, path: Path) -> Path:
        """Return ``path`` resolved.

        Raises:
            OutsideAllowedRoots: it is not in an allowed root.
        """
        return self._check(path, self.roots, "path is outside the worker's allowed roots", "--root")

    def check_resolved(self, path: Path) -> Path:
        """Check again a path that :meth:`check_root` returned when the job began.

        Raises:
            OutsideAllowedRoots: it is not in an allowed root.
            UnsafePath: a link in it now leads elsewhere.
        """
        if self.check_root(path) != path:
            raise UnsafePath("path was replaced by a symbolic link since the job began", where=path)
        return path

    def check_store(self, path: Path) -> Path:
        """Return ``path`` resolved.

        Raises:
            OutsideAllowedRoots: it is neither an allowed store nor below one.
        """
        return self._check(path, self.stores, "store is not one of the worker's allowed stores", "--store")

    @staticmethod
    def _check(path: Path, allowed: tuple[Path, ...] | None, what: str, option: str) -> Path:
        if not path.is_absolute():
            raise RequestError("path must be absolute", where=path)
        # The last component may not exist yet (a bundle to be created): its parent decides.
        resolved = os.path.realpath(path)
        if allowed is not None and path not in allowed:
            # Without pathlib: a small job checks a dozen paths.
            tops = map(os.path.realpath, allowed)
            if not any(resolved == top or resolved.startswith(top.rstrip("/") + "/") for top in tops):
                raise OutsideAllowedRoots(
                    what, where=path, hint=f"allow it with {option} when starting the worker, see docs/operating.md"
                )
        return path if os.fspath(path) == resolved else Path(resolved)


@dataclass(frozen=True)
class Context:
    """The job and the process in which a unit, a plan or a join runs."""

    job_id: str
    policy: Policy = field(default_factory=Policy)
    observer: Observer = field(default_factory=Silent)
    attempt: int = 1
    """Number of the attempt: a retry from the start is the next one."""
    fenced: bool = False
    """On a farm: other processes may do the same work, and its effect must happen once."""
    format: int = FORMAT
    """Version of the job; workers that read no newer one may continue it."""

    @property
    def work(self) -> str:
        """Name of the attempt's work directory."""
        return self.job_id if self.attempt <= 1 else f"{self.job_id}_{self.attempt}"

    @property
    def commit(self) -> str:
        """Name under which the attempt sets its tag once; empty if no other process can set it."""
        return self.work if self.fenced else ""

    def store(self, path: Path) -> Layout:
        """Open a store that this worker may use.

        Raises:
            OutsideAllowedRoots: the operator does not allow it.
            NotALayout: there is none.
        """
        return Layout.open(self.policy.check_store(path))


StateT = TypeVar("StateT", bound=State)
RecordT = TypeVar("RecordT", bound=BaseModel)


@dataclass(frozen=True)
class Equal:
    """Identification of equal work of different jobs, which a farm does once (law 2, docs/architecture.md)."""

    name: Callable[[Context, Unit], str | None]
    """A digest of the operation, its inputs, its parameters and its codec's version: units with the same name have the
    same result. None: never deduplicated."""
    holds: Callable[[Context, Unit, dict[str, Any]], bool]
    """Returns True if an earlier result is still valid: its blobs are in the store, and are marked as just used."""


@dataclass(frozen=True)
class Stage(Generic[StateT]):
    """One step of a flow.

    ``plan`` computes the units from the state, ``run`` does one of them and returns a small JSON object, and
    ``join`` computes the next state from the results, in the order of the units. ``plan`` and ``join`` may run
    again after a crash, so they must be repeatable; ``run`` may run twice at once. A stage without units is joined
    at once.
    """

    name: str
    plan: Callable[[Context, StateT], Sequence[Unit]]
    run: Callable[[Context, Unit], dict[str, Any]]
    join: Callable[[Context, StateT, list[dict[str, Any]]], StateT]
    equal: Equal | None = None
    commits: bool = False
    """Its units make the job's effect visible, such as a tag: after one is claimed, a cancel is too late."""


def nothing_staged(ctx: Context, request: Any, succeeded: bool) -> None:
    """Do nothing: :attr:`Flow.clean` of a flow that stages nothing."""


@dataclass(frozen=True)
class Flow(Generic[StateT]):
    """A kind of job."""

    request: type[Request]
    state: type[StateT]
    stages: tuple[Stage[StateT], ...]
    begin: Callable[[Context, Any], StateT]
    """Creates the first state from the validated request; checks the policy (law 7) and the input."""
    finish: Callable[[Context, StateT], Result]
    """Creates the result from the last state; must be repeatable."""
    clean: Callable[[Context, Any, bool], None] = nothing_staged
    """Removes staged files, given the request and whether the job succeeded. Called when the job ends in any way, and
    again if interrupted; never raises for missing files."""
    result: type[Result] = Result
    """Type of the result, used by clients to parse the job's record."""

    @property
    def name(self) -> str:
        """The kind of job."""
        return self.request.kind


class WorkDirectory:
    """The files of one attempt at a job beside the store: ``<store>/.layerfarm/work/<name>/``."""

    def __init__(self, store: Path, name: str) -> None:
        """``name``: see :attr:`Context.work`."""
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise RequestError("not the name of a work directory", where=name)
        self._store = store
        self.path = store.joinpath(".layerfarm", "work", name)

    def create(self) -> None:
        """Create the directory.

        Raises:
            FileNotFoundError: the store does not exist.
            UnsafePath: a link is in the path.
        """
        make_directory(self.path, self._store, durable=False)

    def remove(self) -> None:
        with suppress(OSError, UnsafePath):
            files_of(self._store).remove(self.path)

    def publish(self, name: str, write: Callable[[Path], None], *, digest: bool = True) -> FileRef:
        """Let ``write`` fill a temporary file, then rename it to ``name``; without ``digest``, do not read it again.

        Two copies of one unit write two temporary files; one of them remains, whole.
        """
        (ref,) = self.publish_all((name,), lambda paths: write(paths[0]), digest=digest)
        return ref

    def publish_all(
        self, names: Sequence[str], write: Callable[[list[Path]], None], *, digest: bool = True
    ) -> list[FileRef]:
        """:meth:`publish` of several files that are written together."""
        unique = f"{os.getpid()}.{os.urandom(4).hex()}"
        temporaries = [self.path / f".{name}.{unique}" for name in names]
        try:
            write(temporaries)
            refs = []
            for name, temporary in zip(names, temporaries, strict=True):
                sha256 = _digest(temporary) if digest else ""
                refs.append(FileRef(path=name, size=temporary.stat().st_size, sha256=sha256))
                rename(temporary, self.path / name)
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
        return refs

    def open(self, ref: FileRef) -> Path:
        """Return the path of a published file, its size checked.

        Raises:
            TreeChanged: it was removed or changed.
        """
        path = self.path / ref.path
        try:
            fd = files_of(self._store).open(path)
        except FileNotFoundError as error:
            raise TreeChanged("work file of the job was removed", where=path) from error
        except UnsafePath as error:
            raise TreeChanged("work file of the job is no longer a regular file", where=path) from error
        try:
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if size != ref.size:
            raise TreeChanged(f"work file of the job has {size} bytes, not {ref.size}", where=path)
        return path

    def keep(self, name: str, records: Mapping[str, RecordT], kind: type[RecordT]) -> FileRef:
        """Publish records by key, such as a digest: a job's state, which passes through Redis, stays small (law 3)."""
        content = _records_of(kind).dump_json(dict(records), by_alias=True)
        return self.publish(name, lambda path: _write(path, content))

    def kept(self, file: FileRef | None, kind: type[RecordT]) -> dict[str, RecordT]:
        """Return the records in the order in which they were written; none without a file.

        Raises:
            TreeChanged: the file was removed.
        """
        if file is None:
            return {}
        return _records_of(kind).validate_json(self.open(file).read_bytes())


@cache
def _records_of(kind: type[RecordT]) -> TypeAdapter[dict[str, RecordT]]:
    # Making one takes 1 ms.
    return TypeAdapter(dict[str, kind])  # type: ignore[valid-type]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def staging_name(work: str) -> str:
    """Return the name of a job's staging directory beside its output; ``work``: :attr:`Context.work`.

    It does not contain the output's name, which may have the maximum length.
    """
    return f".layerfarm-{work}"


class WorkBeside(WorkDirectory):
    """A work directory beside the output, if that is not in a store or the store is read-only."""

    def __init__(self, output: Path, name: str) -> None:
        super().__init__(output.parent, name)
        self.path = output.with_name(staging_name(name))

    def create(self) -> None:
        """Create the directory.

        Raises:
            UnsafePath: another user created it in a world-writable directory.
        """
        own_directory(self.path)


def work_directory(ctx: Context, store: Path) -> WorkDirectory:
    """Return the job's work directory in a store that this worker may use.

    Raises:
        OutsideAllowedRoots: the operator does not allow the store.
    """
    return WorkDirectory(ctx.policy.check_store(store), ctx.work)


def unit_of(params: Model, nbytes: int = 0) -> Unit:
    """Return a unit with ``params`` that reads or writes about ``nbytes``."""
    return Unit(params=params.model_dump(mode="json"), bytes=nbytes)


_BYTES: Final = 2
"""Incremented when equal inputs give other layers than in the last release, whose results a farm then does not use.

2: the entries of hard links repeat the metadata of their file, and merged layers have the order of a walk.
"""

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def name_of_work(*parts: Any) -> str:
    """Return the digest of JSON values and of :data:`_BYTES`: the name for :class:`Equal`."""
    return hashlib.sha256(_canonical([_BYTES, *parts]).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
