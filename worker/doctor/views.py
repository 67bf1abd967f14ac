"""Checks that the workers see the same store as this machine, locks included.

The doctor leaves a file in the store, holds its lock and asks through Redis; each worker answers for itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerfarm.jobs.errors import RequestError, UnsafePath
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.store.atomic_file import PRIVATE_DIRECTORY, files_of
from layerfarm.jobs.store.locks import exclusive
from layerfarm.jobs.store.probe import probe_file
from layerfarm.worker.background.registry import WorkerInfo
from layerfarm.worker.doctor.finding import Finding, fail, ok, warn
from layerfarm.worker.jobstore.keys import Keys

_EXPIRES: Final = 30
"""Seconds for which a question is valid."""
_PATIENCE: Final = 8.0
"""Seconds to wait for answers: workers check for questions every 2 s."""
_LARGEST: Final = 4096
"""Bytes of a question."""
_NAME: Final = re.compile(r"[0-9a-f]{32}")

View = Literal["same", "unlocked", "absent", "other", "forbidden"]
"""``same``: that file, and its lock is held. ``forbidden``: the worker does not allow this store."""


class Question(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=_NAME.pattern)
    """Name of the file and of the question."""
    store: str = Field(max_length=4096)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of its content. A worker reports only whether it found that, so a question cannot read files."""


def examine_views(client: redis.Redis, keys: Keys, store: Path, workers: Sequence[WorkerInfo]) -> Iterator[Finding]:
    """Ask all workers about a store."""
    topic = f"store {store}"
    try:
        with probe_file(store) as probe:
            # Read before locking: a process that closes a file releases all its locks on it (fcntl(2)).
            digest = hashlib.sha256(probe.read_bytes()).hexdigest()
            question = Question(name=probe.name, store=str(store), sha256=digest)
            with exclusive(probe, probe.parent):
                client.set(keys.probe, question.model_dump_json(), ex=_EXPIRES)
                views = _answers(client, keys, question, {worker.name for worker in workers})
    except OSError:
        return  # already reported for the store itself
    for worker in workers:
        yield _finding(topic, worker, views.get(worker.name))


def _answers(client: redis.Redis, keys: Keys, question: Question, names: set[str]) -> dict[str, str]:
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = cast("dict[str, str]", client.hgetall(_key(keys, question)))
        if names <= set(found) or time.monotonic() >= deadline:
            return found
        time.sleep(0.1)


def _finding(topic: str, worker: WorkerInfo, view: str | None) -> Finding:
    match view:
        case "same":
            return ok(topic, f"is the same at worker {worker.name}, locks included")
        case "unlocked":
            advice = "mount it so that fcntl locks reach all hosts (NFSv4); without them tags are lost"
            return fail(topic, f"a lock taken here has no effect at worker {worker.name}", advice)
        case "forbidden":
            return warn(
                topic, f"is not allowed by worker {worker.name}", "start it with the same --store as the others"
            )
        case "absent" | "other":
            advice = "mount the same disk at the same path on all hosts"
            return fail(topic, f"is not the same disk at worker {worker.name}", advice)
    return warn(topic, f"worker {worker.name} did not answer", "is it of an older version, or stuck?")


# --- the worker's side -------------------------------------------------------------------------------


@dataclass
class Views:
    """Answers the doctor's questions for one worker."""

    client: redis.Redis
    keys: Keys
    name: str
    policy: Policy
    _answered: str = ""

    def answer(self) -> None:
        """Answer the question in Redis, if it is a new one."""
        text = cast("str | None", self.client.get(self.keys.probe))
        if text is None or len(text) > _LARGEST or text == self._answered:
            return
        self._answered = text
        try:
            question = Question.model_validate_json(text)
        except ValidationError:
            return  # not from a doctor
        with self.client.pipeline() as pipe:
            pipe.hset(_key(self.keys, question), self.name, view_of(question, self.policy))
            pipe.expire(_key(self.keys, question), _EXPIRES)
            pipe.execute()


def view_of(question: Question, policy: Policy) -> View:
    """Return the question's file, as this process sees it."""
    try:
        store = policy.check_store(Path(question.store))
    except RequestError:
        return "forbidden"
    path = store / PRIVATE_DIRECTORY / "doctor" / question.name
    try:
        fd = files_of(store).open(path, os.O_RDWR)
    except OSError:
        return "absent"
    except UnsafePath:
        return "other"
    try:
        if hashlib.sha256(os.read(fd, _LARGEST)).hexdigest() != question.sha256:
            return "other"
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "same"
        return "unlocked"
    finally:
        os.close(fd)


def _key(keys: Keys, question: Question) -> Any:
    return f"{keys.probe}:{question.name}"
