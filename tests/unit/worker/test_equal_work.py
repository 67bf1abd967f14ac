"""Claims and results of equal work: an operation is repeated if its reply was lost, and answers the same.

An invalid result is forgotten.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from layerfarm.jobs.flows.base import Model, Unit
from layerfarm.worker.engine.single_flight import ActionCache, Known, SingleFlight, Work
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.settings import Settings

UNITS = [Item("job", 1, "unit", 0, index) for index in range(2)]


class Numbered(Model):
    n: int


@pytest.fixture
def cache(client: fakeredis.FakeRedis) -> ActionCache:
    return ActionCache(client, Settings())


def taken(cache: ActionCache) -> Work:
    work = cache.take("name")
    assert isinstance(work, Work)
    return work


def test_work_that_is_taken_again_by_its_holder_is_the_same(cache: ActionCache, client: fakeredis.FakeRedis) -> None:
    work = taken(cache)
    assert cache.take("name") == work
    assert cache.beat(work)
    other = ActionCache(client, Settings())
    other.__dict__["_me"] = "another-host/1/1"
    assert other.take("name") is None


@pytest.mark.parametrize("result", ['{"digest": "x"}', ""], ids=["done", "failed"])
def test_end_of_work_that_is_repeated_returns_the_same_subscribers(cache: ActionCache, result: str) -> None:
    work = taken(cache)
    for unit in UNITS:
        assert cache.subscribe("name", unit)
    for _ in range(2):
        assert set(cache.end(work, result)) == set(UNITS)
    after = cache.take("name")
    assert after == (Known("name", result) if result else Work("name", work.token + 1))


def test_late_end_leaves_the_work_of_the_next_holder(cache: ActionCache, client: fakeredis.FakeRedis) -> None:
    late = taken(cache)
    assert cache.subscribe("name", UNITS[0])
    client.hdel(Keys().work + "name", "claim")  # as if its lease had ended
    work = taken(cache)
    assert cache.end(late, '{"digest": "late"}') == []
    assert cache.take("name") == work
    assert cache.end(work, '{"digest": "x"}') == UNITS[:1]
    assert cache.take("name") == Known("name", '{"digest": "x"}')


@pytest.mark.parametrize("recorded", ["", "{", "1", "[]", '{"no": "field"}', "[" * 100_000])
def test_invalid_result_is_forgotten(cache: ActionCache, recorded: str) -> None:
    def holds(_context: Any, _unit: Any, result: dict[str, Any]) -> bool:
        return Numbered.model_validate(result).n == 7

    stage: Any = SimpleNamespace(equal=SimpleNamespace(name=lambda *_: "name", holds=holds), run=lambda *_: {"n": 7})
    claim: Any = SimpleNamespace(unit=Unit(params={}))
    observer: Any = SimpleNamespace(keeps=lambda _: None)
    nothing: Any = None
    cache.end(taken(cache), recorded)
    assert SingleFlight(nothing, cache, nothing).result(stage, nothing, claim, observer) == {"n": 7}
    assert cache.take("name") == Known("name", '{"n": 7}')
