"""Workers, clients and the recovery of a farm, as processes of a :class:`World`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, ClassVar

from layerfarm.jobs.errors import JobNotFound, RequestError
from layerfarm.jobs.flows.base import Context, Policy, Request
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.engine.admission import Admission
from layerfarm.worker.engine.farm import CeleryRunner
from layerfarm.worker.engine.heartbeat import Watched
from layerfarm.worker.engine.outcomes import Journal
from layerfarm.worker.engine.recovery import Backlog, Recovery
from layerfarm.worker.engine.single_flight import ActionCache
from layerfarm.worker.jobstore.model import Claim, Item, Status
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.model import Ending, JobState

from . import flow
from .memory_store import MemoryJobStore
from .world import Process, Violation, World

DELIVERIES = 8
"""More than the explorer kills in one run: else a healthy job may well be poison."""


class WhoLives(Owner):
    """A process of the one host, all of which see each other."""

    dead: ClassVar[set[int]] = set()

    @property
    def is_known_dead(self) -> bool:
        return self.pid in self.dead


class SteppedStore:
    """Each operation is a step; one whose reply is lost is done once more, as every connection of layerfarm does."""

    def __init__(self, world: World, store: MemoryJobStore) -> None:
        self._world = world
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._store, name)

        def step(*args: Any, **options: Any) -> Any:
            loses = self._world.step(name, "lose reply") == "lose reply"
            self._world.until_redis_answers()
            if loses:
                asked = self._store.asked
                operation(*args, **options)
                self._store.asked = asked
            return operation(*args, **options)

        self.__dict__[name] = step
        return step


class Sender:
    """Puts messages on the world's queue."""

    def __init__(self, world: World) -> None:
        self._world = world

    def send(self, items: Iterable[Item], traffic: Traffic = Traffic.INTERACTIVE) -> None:
        for item in items:
            if self._world.step(f"send {item}", "lose message") != "lose message":
                self._world.until_redis_answers()
                self._world.queue.append(item)


class Heart:
    """Beats when the world's clock goes on."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._world = farm.world
        self._store: Any = farm.plain

    @contextmanager
    def watching(self, claim: Claim, outcome: object = None) -> Iterator[Watched]:
        watched = Watched(claim)
        process = self._world.me
        assert process is not None
        process.late, process.claim = False, claim
        process.beat = lambda: self._beat(watched, process)
        try:
            yield watched
        finally:
            process.beat = None

    def _beat(self, watched: Watched, process: Process) -> None:
        if self._world.redis_is_away:
            return
        if not process.late:
            self._farm.check_claim(watched.claim, process)
        watched.tell(self._store)


class StoredOutcomes(Journal):
    """Outcomes of jobs, as the stores keep them."""

    def __init__(self) -> None:
        self._known: dict[str, Ending] = {}

    def remember(self, job_id: str, request: Request, ending: Ending) -> None:
        self._known[job_id] = ending

    def recall(self, job_id: str, request: Request, retries: int) -> Ending | None:
        ending = self._known.get(job_id)
        return ending if ending is not None and ending.retries == retries else None


class NoEqualWork(ActionCache):
    """Nobody else has equal work."""

    def __init__(self) -> None:
        """There is no Redis."""

    def abandoned(self) -> list[Any]:
        return []


class QueueOf(Backlog):
    """The world's queue."""

    def __init__(self, world: World) -> None:
        self._world = world

    def my_turn(self, seconds: float) -> bool:
        return True

    def is_empty(self) -> bool:
        return not self._world.queue

    def has_all_starts(self) -> bool:
        return False


class Farm:
    """The farm that lives in a world, and what has to hold of it at the end."""

    def __init__(self, world: World, workers: int = 2) -> None:
        self.world = world
        self.clock = 0.0
        """Seconds by which the store's clock is ahead of the world's."""
        self.plain = MemoryJobStore(lambda: world.now + self.clock, world.lease, DELIVERIES)
        self.went_back = False
        """The store has forgotten its newest writes."""
        self.journal = StoredOutcomes()
        self.store: Any = SteppedStore(world, self.plain)
        self.sender: Any = Sender(world)
        self.retry_for = 0.0
        self.disk = flow.Disk(world)
        self.disk.publish = self._publish
        self.disk.broken = self._broken
        self.disk.done = self._done
        self.committed: set[str] = set()
        flow.use(self.disk)
        self.submitted: set[str] = set()
        self.refused: set[str] = set()
        self.cancelled: set[str] = set()
        self.may_fail: set[str] = set()
        self.for_the_janitor: set[str] = set()
        """Jobs one of whose processes woke too late and was killed then."""
        WhoLives.dead.clear()
        world.killed = self._killed
        world.over = self._over
        world.tick = self._tick
        self._births = 0
        self._looking = False
        self.recovery = Recovery(self.store, NoEqualWork(), self.sender, QueueOf(world), every=5)
        for _ in range(workers):
            self._start_worker()

    # --- processes ---------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self._births += 1
        owner = WhoLives("host", self._births, 1)
        name = f"worker {self._births}"
        self.world.start(name, lambda: self._work(owner))

    def _work(self, owner: Owner) -> None:
        heart: Any = Heart(self)
        # Every other one sends by message what it might have gone on with.
        young = inf if self._births % 2 else 0.0
        runner = CeleryRunner(
            self.store,
            owner,
            NoEqualWork(),
            heart,
            self.sender,
            self.recovery,
            Policy(),
            Admission(self.store),
            self.retry_for,
            young=young,
        )
        runner._journal = self.journal
        process = self.world.me
        assert process is not None
        process.owner = owner
        while True:
            self.world.wait("take a message", lambda: bool(self.world.queue) and not self.world.redis_is_away)
            item = self._take(process)
            process.message = item
            runner.do(item)
            process.message = process.claim = None

    def _take(self, process: Process) -> Item:
        queue = self.world.queue
        others = [f"take {index}" for index in range(1, min(3, len(queue)))]
        choice = self.world.schedule.choose("take 0", lambda: (*others, "take a copy"))
        index = 0 if choice == "take a copy" else int(choice[5:])
        item: Item = queue[index]
        if choice != "take a copy":
            del queue[index]
        self.world.note(f"{process}: takes {item}{' and leaves a copy' if choice == 'take a copy' else ''}")
        return item

    def _killed(self, process: Process) -> None:
        if process.owner is not None:
            WhoLives.dead.add(process.owner.pid)
        if process.message is not None:
            self.world.queue.append(process.message)
        if process.late and process.claim is not None:
            self.for_the_janitor.add(process.claim.item.job_id)
        if process.name.startswith("worker"):
            self._start_worker()
        if process.name == "redis":
            self.world.redis_is_away = False
        if process.name == "recovery":
            self._looking = False

    def _tick(self) -> None:
        if not self._looking:
            self._looking = True
            self.world.start("recovery", self._look, daemon=True)

    def _look(self) -> None:
        self.recovery.look_at_all()
        self._looking = False

    # --- what clients do ---------------------------------------------------------------------------------

    def client_does(self, name: str, body: Callable[[], object]) -> None:
        self.world.start(name, lambda: body() and None)

    def submit(self, job_id: str, tag: str = "t", most: int = 0) -> None:
        request = flow.ExploredRequest(tag=tag)
        if not self.store.submit(job_id, "explored", request.model_dump_json(), 2, most_queued=most):
            self.refused.add(job_id)
            return
        self.submitted.add(job_id)
        self.sender.send([Item(job_id, 1, "advance")])

    def cancel(self, job_id: str) -> None:
        answer = self.store.end(job_id, JobState.CANCELLED)
        if answer.status in (Status.OK, Status.ENDED):
            self.cancelled.add(job_id)
        if answer.due:
            self.sender.send([Item(job_id, self.store.job(job_id).attempt, "close")])

    def retry(self, job_id: str, restart: bool) -> None:
        try:
            self.store.retry(job_id, restart=restart)
        except RequestError:
            return
        self.may_fail.discard(job_id)
        self.sender.send(self.store.look(job_id, -1).items)

    def redis_goes_back(self) -> None:
        """To a snapshot from some steps before, as after a power cut."""

        def body() -> None:
            self.world.step("take a snapshot")
            jobs, queue = copy.deepcopy(self.plain.__dict__ | {"_clock": None}), list(self.world.queue)
            self.world.step("go back to the snapshot")
            self.went_back = True
            self.plain.__dict__.update(jobs | {"_clock": self.plain._clock})
            self.world.queue[:] = queue

        self.world.start("redis", body)

    def redis_is_away(self, times: int) -> None:
        """For longer than a lease, while a unit is worked on that takes longer than that."""
        left = times

        def body() -> None:
            nonlocal left
            while left:
                self.world.wait("until a claim is held", lambda: any(each.beat for each in self.world.processes))
                self.world.step("go away")
                self.world.redis_is_away = True
                self._until(self.world.now + self.world.lease + 4)
                self.world.redis_is_away = False
                left -= 1
                self._until(self.world.now + 6)

        outages = self.world.start("redis", body)
        self.disk.works = lambda: self.world.wait("work for long", lambda: left == 0 or outages.dead)

    def _until(self, then: float) -> None:
        self.world.wait("until some time has passed", lambda: self.world.now >= then)

    def clock_is_set_back(self) -> None:
        def body() -> None:
            self.world.step("set the clock back")
            self.clock = -3600.0

        self.world.start("clock", body)

    def has_ended(self, job_id: str) -> bool:
        return self._final(job_id) or (self.went_back and self._state(job_id) is None)

    def until_ended(self, job_id: str) -> None:
        self.world.wait(f"until {job_id} has ended", lambda: self.has_ended(job_id))

    # --- what has to hold --------------------------------------------------------------------------------

    def _state(self, job_id: str) -> JobState | None:
        try:
            return self.plain._found(job_id).state
        except JobNotFound:
            return None

    def _final(self, job_id: str) -> bool:
        state = self._state(job_id)
        return state is not None and state.final

    def _over(self) -> bool:
        clients = [p for p in self.world.processes if p.name.startswith("client")]
        return not clients and not self.plain.active()

    def _done(self, job_id: str) -> None:
        """Whoever works for a job that has ended comes too late, for a clock that was set back perhaps."""
        if self.world.me is not None and self._final(job_id):
            self.world.me.late = True

    def _broken(self) -> None:
        """The job may fail of it if its claim was not taken over."""
        claim = self.world.me.claim if self.world.me is not None else None
        job = None if claim is None else self.plain._jobs.get(claim.item.job_id)
        if claim is not None and job is not None and job.holds(claim):
            self.may_fail.add(job.id)

    def _publish(self, context: Context, tag: str) -> None:
        """As ``layerfarm.jobs.store.retention`` has it."""
        if context.commit not in self.committed:
            self.committed.add(context.commit)
            self.disk.moves.append((context.job_id, tag))

    def check_claim(self, claim: Claim, process: Process) -> None:
        """Raises:
        Violation: the process was not silent for as long as its lease, and another has its work.
        """
        job = self.plain._jobs.get(claim.item.job_id)
        if self.went_back or self.clock or job is None or job.ending is not None or job.state.final:
            return
        if job.attempt == claim.item.attempt and not job.holds(claim):
            raise Violation(f"{job.id} was taken away from {process} while it worked: {claim.item}")

    def check(self) -> None:
        """Raises:
        Violation: something does not hold.
        """
        movers = [mover for mover, _ in self.disk.moves]
        for job_id in self.submitted:
            state = self._state(job_id)
            if state is None and self.went_back:
                continue
            if state is None:
                raise Violation(f"{job_id} was accepted and is gone")
            record = self.plain.job(job_id)
            if not state.final:
                raise Violation(f"{job_id} is {state} at the end")
            if job_id in self.cancelled and not self.went_back:
                if state is not JobState.CANCELLED:
                    raise Violation(f"{job_id} was cancelled and is {state}")
                if job_id in movers:
                    raise Violation(f"{job_id} was cancelled and has given its tag")
            elif state is JobState.FAILED and job_id not in self.may_fail:
                raise Violation(f"{job_id} was healthy and failed: {record.error}")
            elif state is JobState.SUCCEEDED and job_id not in movers:
                raise Violation(f"{job_id} succeeded and has not given its tag")
            left = self.disk.staged_of(job_id) and record.kept is None
            if left and job_id not in self.for_the_janitor and not (state is JobState.FAILED and self.world.woken):
                raise Violation(f"{job_id} has ended and left what it staged")
        for job_id in self.refused:
            if self._state(job_id) is not None:
                raise Violation(f"{job_id} was refused and is {self._state(job_id)}")
        for tag in {tag for _, tag in self.disk.moves}:
            moved = [mover for mover, moved in self.disk.moves if moved == tag]
            merged = [mover for number, mover in enumerate(moved) if number == 0 or moved[number - 1] != mover]
            if len(set(merged)) != len(merged):
                raise Violation(f"tag {tag} went back: {moved}")
