"""Equal work of different jobs, done once across the farm: the first one does it, the others subscribe.

The name of work contains everything that its result depends on (``layerfarm.jobs.flows.base.Equal``). Under that name
Redis holds a claim like a unit's, then the result, and the subscribers. A unit that finds a living claim releases its
own: no process waits for another. The process that does the work sends for the subscribers, or recovery if it dies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import redis
import structlog

from layerfarm.jobs.flows.base import Context, Equal, Stage, Unit
from layerfarm.worker.broker.messages import Sender
from layerfarm.worker.engine import hooks
from layerfarm.worker.engine.failpoints import reached
from layerfarm.worker.engine.heartbeat import Watched
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import Claim, Item, Status
from layerfarm.worker.jobstore.owner import Owner, this_process
from layerfarm.worker.jobstore.scripts import Scripts
from layerfarm.worker.settings import Settings

_WAITS: Final = 600.0
"""Seconds before a waiting unit is sent again; if the working process dies, it is sent long before."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class SingleFlight:
    """Runs units; equal ones of different jobs once."""

    store: JobStore
    cache: ActionCache
    sender: Sender

    def result(self, stage: Stage[Any], context: Context, claim: Claim, observer: Watched) -> dict[str, Any] | None:
        """Return the result of the claimed unit, or of equal work that was done before.

        None: another process is doing it, and the claim was released.

        Raises:
            Exception: any error of the unit; its subscribers are sent for.
        """
        unit = claim.unit
        assert unit is not None
        name = stage.equal.name(context, unit) if stage.equal else None
        if stage.equal is None or name is None:
            return stage.run(context, unit)
        taken = self.cache.take(name)
        while isinstance(taken, Known):
            known = _known(stage.equal, context, unit, taken.text)
            if known is not None:
                _log.info("equal work is already done", work=name[:12])
                hooks.equal.send(None, how="known")
                return known
            self.cache.forget(taken)
            taken = self.cache.take(name)
        if taken is None:
            self._subscribe(name, claim)
            return None
        waiting: list[Item] = []
        work = taken
        observer.keeps(lambda: self.cache.beat(work))
        hooks.equal.send(None, how="executed")
        reached("work.taken")
        try:
            result: dict[str, Any] = stage.run(context, unit)
            waiting = self.cache.end(work, json.dumps(result))
            reached("work.done")
        except BaseException:
            waiting = self.cache.end(work)
            raise
        finally:
            observer.keeps(None)
            wake(self.sender, self.store, waiting)
        return result

    def _subscribe(self, name: str, claim: Claim) -> None:
        # The unit first: the work may be done before the next line, and the unit be sent.
        item = claim.item
        answer = self.store.release(claim, counts=False, waits=_WAITS)
        if answer.due:
            self.sender.send([item.close])
        if answer.due or answer.status is not Status.OK:
            return
        _log.info("waiting for equal work", work=name[:12])
        hooks.equal.send(None, how="waited")
        if not self.cache.subscribe(name, item):
            wake(self.sender, self.store, [item])


def _known(equal: Equal, context: Context, unit: Unit, text: str) -> dict[str, Any] | None:
    """Return a recorded result; None: it holds no longer, or is invalid: no process of layerfarm recorded it."""
    with suppress(ValueError, TypeError, RecursionError):
        result: dict[str, Any] = json.loads(text)
        if equal.holds(context, unit, result):
            return result
    return None


def wake(sender: Sender, store: JobStore, waiting: Iterable[Item]) -> None:
    """Send the units that waited for equal work."""
    for item in waiting:
        sender.send([item], store.traffic(item.job_id))


@dataclass(frozen=True)
class Work:
    """The right to do a piece of work for the whole farm, until the lease ends without a beat."""

    name: str
    token: int
    """Fencing number; also how often the work was begun."""


@dataclass(frozen=True)
class Known:
    """Work that was done before, for this job or another."""

    name: str
    text: str
    """Its result, JSON."""


class ActionCache:
    """Claims, results and subscribers of equal work, in Redis."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._run = Scripts(client, settings).run
        self._lease = int(settings.lease * 1000)
        self._lifetime = max(1, int(settings.result_expires))

    @cached_property
    def _me(self) -> str:
        return str(this_process())

    def take(self, name: str) -> Work | Known | None:
        """Claim the work, also from an owner known to be dead. None: a living process is doing it."""
        what, value = self._take(name, "")
        if what == "busy" and Owner.parse(value).is_known_dead:
            what, value = self._take(name, value)
        if what == "busy":
            return None
        return Work(name, int(value)) if what == "ok" else Known(name, value)

    def _take(self, name: str, dead: str) -> tuple[str, str]:
        what, value = self._run("work_take", args=(name, self._me, self._lease, dead, self._lifetime))
        return what, str(value)

    def beat(self, work: Work) -> bool:
        """Renew the claim; False: it was taken over, which is harmless: equal work gives the same blob."""
        return bool(self._run("work_beat", args=(work.name, work.token, self._lease)))

    def end(self, work: Work, result: str = "") -> list[Item]:
        """Release the claim, with the result if it is done; return the subscribers."""
        return _units(self._run("work_end", args=(work.name, work.token, result, self._lifetime)))

    def subscribe(self, name: str, item: Item) -> bool:
        """Send the unit when the work is done. False: it is done, or no process is doing it."""
        subscriber = f"{item.job_id}:{item.attempt}:{item.stage}:{item.index}"
        return bool(self._run("work_subscribe", args=(name, subscriber, self._lifetime)))

    def forget(self, known: Known) -> None:
        """Remove a result that is no longer valid."""
        self._run("work_forget", args=(known.name, known.text))

    def abandoned(self) -> list[Item]:
        """Return the subscribers of work whose holder has died."""
        return _units(self._run("work_abandoned", args=("",)))


def _units(subscribers: Iterable[str]) -> list[Item]:
    fields = [text.split(":") for text in subscribers]
    return [Item(job_id, int(attempt), "unit", int(stage), int(index)) for job_id, attempt, stage, index in fields]
