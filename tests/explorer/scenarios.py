"""Requests of clients while anything may go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .farm import Farm
from .schedule import Schedule
from .world import Violation, World


def one_build(farm: Farm) -> None:
    farm.client_does("client", lambda: farm.submit("a"))


def two_builds_of_one_tag(farm: Farm) -> None:
    def body() -> None:
        farm.submit("a")
        farm.until_ended("a")
        farm.submit("b")

    farm.client_does("client", body)


def cancelled(farm: Farm) -> None:
    farm.client_does("client 1", lambda: farm.submit("a"))

    def submitted_or_dead() -> bool:
        return "a" in farm.submitted or all(process.name != "client 1" for process in farm.world.processes)

    def body() -> None:
        farm.world.wait("until a is submitted", submitted_or_dead)
        farm.cancel("a")

    farm.client_does("client 2", body)


def retried(farm: Farm, restart: bool, kept: float = 1000) -> None:
    """While messages of the attempt that failed are left, and a restart with fewer shards."""
    farm.retry_for = kept
    farm.disk.shards = lambda plan: 3 if plan == 1 else 2
    farm.disk.breaks = [1]

    def body() -> None:
        farm.submit("a")
        farm.until_ended("a")
        farm.retry("a", restart)

    farm.client_does("client", body)


def retried_anew(farm: Farm) -> None:
    retried(farm, True)


def retried_on(farm: Farm) -> None:
    retried(farm, False)


def full_queue(farm: Farm) -> None:
    farm.client_does("client", lambda: farm.submit("a", most=1))


def redis_goes_back(farm: Farm) -> None:
    farm.redis_goes_back()
    two_builds_of_one_tag(farm)


def redis_is_away(farm: Farm) -> None:
    farm.redis_is_away(2)
    one_build(farm)


def clock_is_set_back(farm: Farm) -> None:
    farm.clock_is_set_back()
    one_build(farm)


SCENARIOS: Final[dict[str, Callable[[Farm], None]]] = {
    each.__name__: each
    for each in (
        one_build,
        two_builds_of_one_tag,
        cancelled,
        retried_anew,
        retried_on,
        full_queue,
        redis_goes_back,
        redis_is_away,
        clock_is_set_back,
    )
}


def run(scenario: str, schedule: Schedule) -> tuple[Violation | None, World]:
    world = World(schedule)
    farm = Farm(world)
    SCENARIOS[scenario](farm)
    try:
        world.live()
        farm.check()
    except Violation as violation:
        return violation, world
    finally:
        world.end()
    return None, world
