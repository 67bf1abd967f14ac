"""The log of the farm's client is never among the results on stdout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from layerfarm.worker.cli import output


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    level = output.level()
    yield
    output.set_level(level)


def test_events_are_lines_on_stderr_as_many_as_the_level_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    output.take_logs()
    log = structlog.get_logger()
    output.set_level("warn")
    log.warning("job was stuck, sending again", job="a1", messages=1)
    log.info("looked")
    output.set_level("info")
    log.info("looked", job="a1")
    output.set_level("error")
    log.warning("not asked for")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "layerfarm: warning: job was stuck, sending again job=a1 messages=1",
        "layerfarm: looked job=a1",
    ]
