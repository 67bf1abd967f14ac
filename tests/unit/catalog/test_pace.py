"""The requests to registries are counted, and limited in a minute."""

from __future__ import annotations

import pytest

from layerfarm.worker.catalog import pace as module
from layerfarm.worker.catalog.pace import Pace, requests_in


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_transfer_waits_for_all_requests_of_the_one_before(clock: Clock) -> None:
    pace = Pace(per_minute=60)
    begun = []
    for requests in (["HEAD"], ["GET"] * 10, ["HEAD"], [], ["PUT"]):
        pace.wait()
        begun.append(clock.now - 1000.0)
        pace.sent(requests)
    assert begun == [0.0, 1.0, 11.0, 12.0, 13.0]
    assert pace.counts == {"GET": 10, "HEAD": 2, "PUT": 1}


def test_a_pause_is_not_made_up_for(clock: Clock) -> None:
    pace = Pace(per_minute=60)
    pace.wait()
    clock.now += 100.0
    pace.sent(["GET"] * 3)
    pace.wait()
    assert clock.now == 1102.0


def test_without_a_limit_nothing_waits_and_all_is_counted(clock: Clock) -> None:
    pace = Pace(None)
    for _ in range(3):
        pace.wait()
        pace.sent(["GET", "GET"])
    assert (clock.now, pace.counts) == (1000.0, {"GET": 6})


def test_requests_are_found_in_skopeos_log() -> None:
    log = b"""\
time="2026-11-29T09:42:25Z" level=debug msg="Trying to access \\"h/a:1\\""
time="2026-11-29T09:42:25Z" level=debug msg="GET https://h/v2/"
time="2026-11-29T09:42:25Z" level=debug msg="Ping https://h/v2/ err Get \\"https://h/v2/\\": no TLS (&url.Error{})"
time="2026-11-29T09:42:25Z" level=debug msg="GET http://h/v2/"
time="2026-11-29T09:42:25Z" level=debug msg="Ping http://h/v2/ status 200"
time="2026-11-29T09:42:25Z" level=debug msg="HEAD http://h/v2/a/blobs/sha256:1"
time="2026-11-29T09:42:25Z" level=debug msg="PATCH http://h/v2/a/blobs/uploads/1"
time="2026-11-29T09:42:25Z" level=fatal msg="GET http://h/v2/ is not counted: it is no request"
"""
    assert sorted(requests_in(log)) == ["GET", "HEAD", "PATCH"]
