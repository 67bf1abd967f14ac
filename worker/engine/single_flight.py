"""A unit that other jobs may want done, too: it is done once, by whoever comes first, and the others wait for it.

They wait without a process: who does the work sends for them at its end, and recovery should he die.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

from layerfarm.jobs.flows.base import Context, Stage
from layerfarm.worker.broker.messages import Sender
from layerfarm.worker.engine.action_cache import Known, Subscriber, Works
from layerfarm.worker.engine.failpoints import reached
from layerfarm.worker.engine.heartbeat import Watched
from layerfarm.worker.engine.hooks import Witnesses
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import Claim, Item, Status

_WAITS = 600.0
"""Seconds for which a unit that waits is left alone; it is sent long before if whoever does the work has vanished."""

_log = structlog.get_logger()


class EqualUnits:
    """Runs units, equal ones of different jobs once."""

    def __init__(self, store: JobStore, works: Works, sender: Sender, witnesses: Witnesses) -> None:
        self._store = store
        self._works = works
        self._sender = sender
        self._witnesses = witnesses

    def result(self, stage: Stage[Any], context: Context, claim: Claim, observer: Watched) -> dict[str, Any] | None:
        """What the claimed unit gives, or gave when equal work was done before.

        None: another process is at it. The claim is given back then.

        Raises:
            Exception: whatever the unit raises; those who wait for it are woken.
        """
        unit = claim.unit
        assert unit is not None
        name = stage.equal.name(context, unit) if stage.equal else None
        if stage.equal is None or name is None:
            return stage.run(context, unit)
        taken = self._works.take(name)
        while isinstance(taken, Known):
            if stage.equal.holds(context, unit, taken.result):
                _log.info("equal work is done already", work=name[:12])
                self._witnesses.equal("known")
                return taken.result
            self._works.forget(taken)
            taken = self._works.take(name)
        if taken is None:
            self._subscribe(name, claim)
            return None
        waiting: list[Subscriber] = []
        work = taken
        observer.keeps(lambda: self._works.beat(work))
        self._witnesses.equal("executed")
        reached("work.taken")
        try:
            result = stage.run(context, unit)
            waiting = self._works.done(work, result)
            reached("work.done")
        except BaseException:
            waiting = self._works.give_up(work)
            raise
        finally:
            observer.keeps(None)
            wake(self._sender, self._store, waiting)
        return result

    def _subscribe(self, name: str, claim: Claim) -> None:
        # The unit first: whoever does the work may be done before the next line, and send for it.
        item = claim.item
        answer = self._store.release(claim, counts=False, waits=_WAITS)
        if answer.due:
            self._sender.send([Item(item.job_id, item.attempt, "close")])
        if answer.due or answer.status is not Status.OK:
            return
        _log.info("equal work is being done, waiting for it", work=name[:12])
        self._witnesses.equal("waited")
        if not self._works.subscribe(name, Subscriber(item)):
            wake(self._sender, self._store, [Subscriber(item)])


def wake(sender: Sender, store: JobStore, waiting: Iterable[Subscriber]) -> None:
    """Send the units that waited for equal work."""
    for subscriber in waiting:
        sender.send([subscriber.item], store.traffic(subscriber.item.job_id))
