"""A farm in one process, step by step: what its processes do next is chosen, and its clock is not the machine's.

A process is a greenlet that runs the farm's own code. Before each operation on the job store, each message and each
effect of a unit it hands over to the world, which continues it or another process, or lets something go
wrong: the process is paused, past its lease or not so long, or killed, its reply is lost, its message comes twice,
late, or never.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

from .schedule import Schedule

TICK: Final = 2.0
"""Seconds that pass at once when no process has anything to do."""
LONGEST: Final = 1200.0
"""Seconds of the world's clock within which every job has to end, whatever happened."""
MOST_STEPS: Final = 20_000


class Violation(BaseException):
    """An invariant is broken. Not an Exception, because the farm's code must not handle it as the job's."""


@dataclass(eq=False)
class Process:
    name: str
    body: Callable[[], None]
    daemon: bool = False
    """Does not count as having something to do."""
    run: greenlet | None = None
    ready: Callable[[], bool] = bool
    label: str = "begin"
    kinds: tuple[str, ...] = ()
    """Faults that are possible at its next step."""
    kinds_if_late: tuple[str, ...] = ()
    paused_at: float | None = None
    late: bool = False
    """It was paused past its lease."""
    dead: bool = False
    ended: bool = False
    beat: Callable[[], None] | None = None
    message: Any = None
    claim: Any = None
    owner: Any = None

    def __str__(self) -> str:
        return self.name


@dataclass
class World:
    schedule: Schedule
    lease: float = 10.0
    now: float = 1_700_000_000.0
    began: float = 1_700_000_000.0
    processes: list[Process] = field(default_factory=list)
    queue: list[Any] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    tick: Callable[[], None] = lambda: None
    """Runs every ``TICK``."""
    over: Callable[[], bool] = bool
    """Return True if everything that was requested has ended."""
    killed: Callable[[Process], None] = lambda process: None
    redis_is_away: bool = False
    """Nothing that needs Redis goes on."""
    steps: int = 0
    woken: int = 0
    """Number of processes that were paused past their lease and woke."""
    _running: dict[greenlet, Process] = field(default_factory=dict)

    def note(self, line: str) -> None:
        self.trace.append(line)

    # --- for the processes ----------------------------------------------------------------------------

    def start(self, name: str, body: Callable[[], None], *, daemon: bool = False) -> Process:
        process = Process(name, body, daemon)
        process.ready = lambda: True
        self.processes.append(process)
        return process

    @property
    def me(self) -> Process | None:
        return self._running.get(getcurrent())

    def step(self, label: str, *kinds: str, late: tuple[str, ...] = ()) -> str:
        """Before something is done; ``kinds`` of trouble that it can meet, ``late`` if it was paused past its lease.

        Returns what it is to meet, or ``go``.
        """
        process = self.me
        if process is None:
            return "go"
        if process.dead:
            raise GreenletExit
        process.label, process.kinds, process.ready = label, kinds, lambda: True
        process.kinds_if_late = late
        if process.late:
            process.kinds += late
        answer: str = self._hub.switch()
        return answer

    def wait(self, label: str, ready: Callable[[], bool]) -> None:
        """Until ``ready``."""
        process = self.me
        assert process is not None
        process.label, process.kinds, process.ready = label, (), ready
        self._hub.switch()

    def until_redis_answers(self) -> None:
        if self.redis_is_away and self.me is not None:
            self.wait("until Redis answers", lambda: not self.redis_is_away)

    # --- the world itself -----------------------------------------------------------------------------

    def live(self) -> None:
        """Run until everything has ended and no process has anything to do.

        Raises:
            Violation: something must not happen, or never ends.
        """
        self._hub = getcurrent()
        current: Process | None = None
        while True:
            self.steps += 1
            if self.steps > MOST_STEPS or self.now - self.began > LONGEST:
                raise Violation("not all jobs end")
            ready = [p for p in self.processes if p.paused_at is None and p.ready()]
            if not ready:
                if not self._pass_time():
                    return
                continue
            current = current if current in ready else ready[0]
            current = self._go_on(current, ready)

    def _go_on(self, process: Process, ready: list[Process]) -> Process:
        choice = self.schedule.choose("go", lambda: self._others(process, ready))
        if choice != "go":
            self.trace.append(f"  -- {self.schedule.asked - 1}: {process}: {choice}, before {process.label}")
        if choice.startswith("run "):
            process = next(other for other in ready if other.name == choice[4:])
            choice = "go"
        if choice.startswith("wake "):
            process = next(p for p in self._asleep() if p.name == choice[5:])
            self._wake(process)
            return process
        if choice == "pause":
            process.paused_at = self.now
            return process
        if choice == "kill":
            self._kill(process)
            return process
        self.trace.append(f"{process}: {process.label}")
        process.kinds = ()
        if process.run is None:
            process.run = greenlet(lambda _: self._run(process))
            self._running[process.run] = process
        process.run.switch(choice)
        return process

    def _others(self, process: Process, ready: list[Process]) -> list[str]:
        """Events that may replace the step of ``process``."""
        wrong = [] if process.label == "begin" else ["pause", "kill", *process.kinds]
        if process.daemon:
            wrong = [each for each in wrong if each != "pause"]
        running = [f"run {other}" for other in ready if other is not process]
        return [*running, *(f"wake {p}" for p in self._asleep()), *wrong]

    def _asleep(self) -> list[Process]:
        """Paused processes that may wake: past their lease, or before."""
        return [process for process in self.processes if process.paused_at is not None and process.ready()]

    def _run(self, process: Process) -> None:
        process.body()
        process.ended = True
        self.processes.remove(process)
        del self._running[getcurrent()]

    def end(self) -> None:
        """Release the greenlets that are left: one that hangs keeps its whole world in memory."""
        for process in self.processes:
            process.dead = True
            self._unwind(process)
        self.processes.clear()

    def _kill(self, process: Process) -> None:
        process.dead = True
        self.processes.remove(process)
        self.killed(process)
        self._unwind(process)

    def _unwind(self, process: Process) -> None:
        # Letting go of the greenlet unwinds it; what it does then is not done (``step``).
        dead, process.run = process.run, None
        if dead is not None:
            dead.throw()
            del self._running[dead]

    def _wake(self, process: Process) -> None:
        assert process.paused_at is not None
        if self.now - process.paused_at >= self.lease:
            process.late = True
            self.woken += 1
            process.kinds += process.kinds_if_late
        process.paused_at = None
        self.trace.append(f"{process}: wakes, before {process.label}")

    def _pass_time(self) -> bool:
        paused = [process for process in self.processes if process.paused_at is not None]
        late = [process for process in paused if self.now - (process.paused_at or 0) > 2 * self.lease]
        if late and (self.over() or self.now - (late[0].paused_at or 0) > 5 * self.lease):
            self._wake(late[0])
            return True
        if self.over() and not paused and not self.queue:
            return False
        self.now += TICK
        for process in self.processes:
            if process.paused_at is None and process.beat is not None:
                process.beat()
        self.tick()
        return True
