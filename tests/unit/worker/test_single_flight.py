"""Equal work whose recorded result is invalid is done again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from layerfarm.jobs.flows.base import Model, Unit
from layerfarm.worker.engine.single_flight import ActionCache, SingleFlight
from layerfarm.worker.settings import Settings


class _Result(Model):
    n: int


@pytest.mark.parametrize("recorded", ["", "{", "1", "[]", '{"no": "field"}', "[" * 100_000])
def test_invalid_result_is_forgotten(recorded: str) -> None:
    def holds(_context: Any, _unit: Any, result: dict[str, Any]) -> bool:
        return _Result.model_validate(result).n == 7

    stage: Any = SimpleNamespace(equal=SimpleNamespace(name=lambda *_: "name", holds=holds), run=lambda *_: {"n": 7})
    claim: Any = SimpleNamespace(unit=Unit(params={}))
    observer: Any = SimpleNamespace(keeps=lambda _: None)
    nothing: Any = None
    with fakeredis.FakeRedis(decode_responses=True) as client:
        cache = ActionCache(client, Settings())
        work: Any = cache.take("name")
        cache.end(work, recorded)
        flight = SingleFlight(nothing, cache, nothing)
        assert flight.result(stage, nothing, claim, observer) == {"n": 7}
        assert cache.take("name").text == '{"n": 7}'  # type: ignore[union-attr]
