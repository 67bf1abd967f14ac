"""The job store: every operation that changes a job, each atomic.

An operation under a claim is fenced by the claim's token, one without by the attempt: one that comes too late returns
``stale`` and changes nothing. Each may run twice, as when its reply was lost, and then returns the same. Three that
release a claim can also claim the item that follows, ``then``, for the same owner: one request instead of two.

Two stores implement this, in Redis (``in_redis``) and, for the explorer, in memory; ``tests/unit/jobstore`` tests both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from layerfarm.jobs.flows.base import State, Unit
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.model import Answer, Claim, Item, JobView, Lost, Refused, Retried, Status
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.model import JobError, JobRecord, JobState


class JobStore(Protocol):
    """The jobs of a farm. Times are those of the store's clock."""

    # --- begin ----------------------------------------------------------------------------------------

    def submit(
        self,
        job_id: str,
        kind: str,
        request: str,
        stages: int,
        *,
        traffic: Traffic = Traffic.INTERACTIVE,
        submitter: str = "",
        most_queued: int = 0,
        version: int = ...,
        signature: str = "",
    ) -> bool:
        """Accept a new job; False: ``most_queued`` jobs (0: no limit) are already waiting."""

    def next(self, job_id: str, attempt: int, owner: Owner) -> tuple[str, int]:
        """Return the job and attempt that ``owner`` begins, having received the first message of ``job_id``."""

    def admit(self, job_id: str) -> tuple[int, bool]:
        """Return the time (ms), and True if the job's signature has not opened a job before."""

    # --- work -----------------------------------------------------------------------------------------

    def claim(self, item: Item, owner: Owner) -> Claim | Refused:
        """Claim ``item`` for ``owner``, also from an owner that is known to be dead.

        Raises:
            RecordDamaged: the store's record of the job is corrupt.
        """

    def beat(self, claim: Claim, nbytes: int) -> Status:
        """Renew the claim; ``nbytes`` were done under it. Returns OK, or why to stop: OVER, STALE, GONE."""

    def release(self, claim: Claim, *, counts: bool = True, waits: float = 0) -> Answer:
        """Release the claim.

        Parameters:
            counts: count it as one of the deliveries after which an item is poison.
            waits: seconds for which the unit waits for equal work, and is not sent again for being quiet.
        """

    def record_result(self, claim: Claim, result: dict[str, Any], *, then: Item | None = None) -> Answer:
        """Record the result of a unit and release the claim. ``then``: the join, claimed if the stage is complete."""

    def open_stage(
        self,
        claim: Claim,
        position: int,
        name: str,
        state: State,
        units: Sequence[Unit],
        *,
        commits: bool = False,
        then: Item | None = None,
    ) -> Answer:
        """Make stage ``position`` the current one.

        Parameters:
            commits: once a unit of it is claimed, a cancel is too late.
            then: the only unit, which the holder claims: nothing is sent, and the claim is released as by :meth:`sent`.
        """

    def pending(self, claim: Claim) -> tuple[int, list[int]] | None:
        """Return the current stage and its units that are neither done nor in progress. None: the claim is stale."""

    def sent(self, claim: Claim, position: int) -> Answer:
        """Record that the units of stage ``position`` are on the queue; release the claim to advance."""

    # --- end ------------------------------------------------------------------------------------------

    def finish(
        self,
        claim: Claim,
        ending: JobState,
        *,
        error: JobError | None = None,
        result: str = "",
        then: Item | None = None,
    ) -> Answer:
        """Decide how the job ends, by the holder of ``claim``, which is released.

        ``then``: the close, claimed if no other process works on the job.
        """

    def end(
        self, job_id: str, ending: JobState, *, error: JobError | None = None, attempt: int = 0, forced: bool = False
    ) -> Answer:
        """Decide how the job ends, from outside. Returns OK, ENDED, or why not: OVER, LATE, STALE, GONE.

        Parameters:
            attempt: only this one; 0: the current one.
            forced: also when the job commits.
        """

    def keep(self, claim: Claim, seconds: float) -> Status:
        """Publish that the job failed, and keep the results of its units. OVER: there is nothing worth keeping."""

    def closed(self, claim: Claim, *, clean: bool = True) -> Status:
        """Publish the final state of the job. ``clean``: staged files are removed; else retried every minute."""

    def give_up_closing(self, item: Item) -> Status:
        """Do as :meth:`closed`, without a claim, after cleaning has failed too often."""

    def condemn(self, job_id: str, error: JobError) -> int:
        """End a job with a corrupt record. Returns the attempt to close; 0: the record is sound."""

    # --- a failed job that may be retried ---------------------------------------------------------------

    def discard(self, job_id: str) -> int:
        """Release the kept work of a failed job. Returns the attempt to close; 0: nothing is kept."""

    def overdue(self) -> list[Item]:
        """Return closings of failed jobs whose retention has ended, at most 100 at once, each once a minute."""

    def retry(self, job_id: str, *, restart: bool) -> Retried:
        """Let a failed job continue, or begin again.

        Raises:
            JobNotFound: the record has expired.
            RequestError: the job has not failed.
        """

    # --- recovery -------------------------------------------------------------------------------------

    def holders(self, job_id: str) -> list[Owner]:
        """Owners of claims of the job, alive or not."""

    def hand_back(self, job_id: str, owners: Sequence[Owner], *, counts: bool = False) -> Lost:
        """Release the claims of ``owners``, which were stopped or are dead (``counts``: count a delivery)."""

    def look(self, job_id: str, quiet: float, all_queued: bool = False, longest: float = 0) -> Lost:
        """Return items that must be sent again.

        Parameters:
            quiet: seconds after which a job without a worker counts as stuck; longer after each attempt in vain.
            all_queued: every queued job has a first message.
            longest: seconds that a job may take (0: no limit); no item of a job that took more is sent.
        """

    def prune(self) -> None:
        """Remove jobs with expired records from the list of all: some of the oldest ones at a time."""

    def active(self, *, begun: bool = False) -> list[str]:
        """Return the ids of the jobs that have not ended; ``begun``: without those that wait to begin."""

    # --- reading --------------------------------------------------------------------------------------

    def view(self, job_id: str) -> JobView:
        """Return the fields that the engine needs.

        Raises:
            JobNotFound: the record has expired.
            RecordDamaged: it is corrupt.
        """

    def job(self, job_id: str) -> JobRecord:
        """Return the record.

        Raises:
            JobNotFound: there was never such a job, or its record has expired.
            RecordDamaged: it is corrupt.
        """

    def traffic(self, job_id: str) -> Traffic:
        """Return the class of the job, also if its record has expired."""
