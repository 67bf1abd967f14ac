"""The job store: every operation by which a job is changed, each one step that happens whole or not at all.

An operation under a claim is fenced by the claim's token, one without by the attempt: one that comes too late answers
``stale`` and changes nothing. Each may run twice, as when its reply was lost, and then answers the same. Two stores
keep to this, in Redis (``in_redis``) and, for the explorer, in memory; ``tests/unit/jobstore`` holds them to it.
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
        """Accept a new job. False: ``most_queued`` jobs (0: any number) wait already."""

    def next(self, job_id: str, attempt: int, owner: Owner) -> tuple[str, int]:
        """The job and attempt that ``owner`` is to begin now that it has the first message of ``job_id``."""

    def admit(self, job_id: str) -> tuple[int, bool]:
        """The time (ms), and whether the job's signature has not opened a job before."""

    # --- work -----------------------------------------------------------------------------------------

    def claim(self, item: Item, owner: Owner) -> Claim | Refused:
        """Claim ``item`` for ``owner``, also from an owner that is known to be dead.

        Raises:
            RecordDamaged: what the store holds of the job is not what a farm writes.
        """

    def beat(self, claim: Claim, nbytes: int) -> Status:
        """Keep the claim; ``nbytes`` are done since it was given. OK, or why to stop: OVER, STALE, GONE."""

    def release(self, claim: Claim, *, counts: bool = True, waits: float = 0) -> Answer:
        """Give the claim back.

        Parameters:
            counts: as one of the deliveries that an item has before it is taken for poison.
            waits: seconds for which the unit waits for equal work, and is not sent again for being quiet.
        """

    def record_result(self, claim: Claim, result: dict[str, Any]) -> Answer:
        """Record the result of a unit and give the claim back."""

    def open_stage(
        self, claim: Claim, position: int, name: str, state: State, units: Sequence[Unit], *, commits: bool = False
    ) -> Status:
        """Make stage ``position`` the current one. ``commits``: once a unit of it is claimed, a cancel is too late."""

    def pending(self, claim: Claim) -> tuple[int, list[int]] | None:
        """The current stage, and which of its units are neither done nor being done. None: the claim is stale."""

    def sent(self, claim: Claim, position: int) -> Answer:
        """The units of stage ``position`` are on the queue; gives the claim to advance back."""

    # --- end ------------------------------------------------------------------------------------------

    def finish(self, claim: Claim, ending: JobState, *, error: JobError | None = None, result: str = "") -> Answer:
        """Decide how the job ends, by whoever holds ``claim``, which is given back."""

    def end(
        self, job_id: str, ending: JobState, *, error: JobError | None = None, attempt: int = 0, forced: bool = False
    ) -> Answer:
        """Decide how the job ends, from outside: OK, ENDED, or why not: OVER, LATE, STALE, GONE.

        Parameters:
            attempt: only this one; 0: whichever it is.
            forced: also when the job commits.
        """

    def keep(self, claim: Claim, seconds: float) -> Status:
        """Show that the job failed, and keep what its units did. OVER: there is nothing worth keeping."""

    def closed(self, claim: Claim, *, clean: bool = True) -> Status:
        """Show the final state of the job. ``clean``: what it staged is gone; else that is tried again every minute."""

    def give_up_closing(self, item: Item) -> Status:
        """As :meth:`closed`, without a claim: cleaning was tried often enough."""

    def condemn(self, job_id: str, error: JobError) -> int:
        """End a job whose record somebody made unsound. The attempt that is to be closed; 0: the record is sound."""

    # --- a failed job that may be retried ---------------------------------------------------------------

    def discard(self, job_id: str) -> int:
        """Release what was kept of a failed job. The attempt that is to be closed; 0: nothing is kept."""

    def overdue(self) -> list[Item]:
        """Closings of failed jobs that were kept for long enough, at most 100 at once, each once a minute."""

    def retry(self, job_id: str, *, anew: bool) -> Retried:
        """Let a failed job go on, or begin anew.

        Raises:
            JobNotFound: the record has expired.
            RequestError: the job has not failed.
        """

    # --- recovery -------------------------------------------------------------------------------------

    def holders(self, job_id: str) -> list[Owner]:
        """Owners of claims of the job, alive or not."""

    def hand_back(self, job_id: str, owners: Sequence[Owner], *, counts: bool = False) -> Lost:
        """Take the claims of ``owners``, which were stopped, or are dead (``counts``: as a delivery in vain)."""

    def look(self, job_id: str, quiet: float, all_queued: bool = False, longest: float = 0) -> Lost:
        """Items that have to be sent again.

        Parameters:
            quiet: seconds after which a job that nobody works on is taken for stuck; longer each time in vain.
            all_queued: there is a first message for every job that waits for its beginning.
            longest: seconds that a job may take (0: any number); nothing of one that took more is sent.
        """

    def prune(self) -> None:
        """Leave jobs out of the list of all whose records have expired: some of the oldest ones at a time."""

    def active(self) -> list[str]:
        """The ids of the jobs that have not ended."""

    # --- reading --------------------------------------------------------------------------------------

    def view(self, job_id: str) -> JobView:
        """
        Raises:
            JobNotFound: the record has expired.
            RecordDamaged: somebody edited it.
        """

    def job(self, job_id: str) -> JobRecord:
        """
        Raises:
            JobNotFound: there never was such a job, or its record has expired.
            RecordDamaged: somebody edited it.
        """

    def traffic(self, job_id: str) -> Traffic:
        """The class of the job, also of one whose record has expired."""
