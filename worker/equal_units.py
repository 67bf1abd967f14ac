"""A unit that other jobs may want done, too: it is done once, by whoever comes first, and the others wait for it.

They wait without a process: who does the work sends for them at its end, and the rescue should he die.
"""

from __future__ import annotations

from typing import Any

import structlog

from jobs.flows.base import Context, Stage
from worker.claims import Claim, Claims
from worker.equal import Known, Subscriber, Works
from worker.heart import Watched
from worker.ledger import Ledger
from worker.messages import Sender
from worker.rescue import wake
from worker.steps import reached
from worker.witness import Witnesses

_log = structlog.get_logger()


class EqualUnits:
    """Runs units, equal ones of different jobs once."""

    def __init__(self, ledger: Ledger, claims: Claims, works: Works, sender: Sender, witnesses: Witnesses) -> None:
        self._ledger = ledger
        self._claims = claims
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
            wake(self._sender, self._ledger, waiting)
        return result

    def _subscribe(self, name: str, claim: Claim) -> None:
        # The unit first: whoever does the work may be done before the next line, and send for it.
        piece = claim.piece
        if self._claims.release(claim, counts=False):
            self._sender.close(piece.job_id)
            return
        _log.info("equal work is being done, waiting for it", work=name[:12])
        self._witnesses.equal("waited")
        if not self._works.subscribe(name, Subscriber.of(piece)):
            wake(self._sender, self._ledger, [Subscriber.of(piece)])
