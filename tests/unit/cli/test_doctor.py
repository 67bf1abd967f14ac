"""``layerfarm doctor``: how findings are printed, and errors told apart. See also ``tests/farm/test_doctor.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from layerfarm.jobs.errors import FarmUnreachable
from layerfarm.worker import doctor
from layerfarm.worker.broker.address import Address
from layerfarm.worker.cli import output
from layerfarm.worker.doctor.finding import Finding, ok
from tests.unit.cli.conftest import Run


class Farm:
    """A farm without workers."""

    address = Address("redis://queue/0")
    client = keys = None

    def workers(self) -> list[object]:
        return []

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def test_advice_is_a_line_of_its_own(layerfarm: Run, tmp_path: Path) -> None:
    ran = layerfarm("doctor", "--store", "none\nsuch")
    first, second, *_ = ran.out.splitlines()
    assert ran.code == 1 and first.startswith(f"fail  store {tmp_path}/none\\nsuch: ") and second.startswith("      ")


@pytest.mark.parametrize(("error", "code"), [(BrokenPipeError(), 141), (OSError(5, "Input/output error"), 1)])
def test_error_of_stdout_is_not_that_of_redis(
    layerfarm: Run, monkeypatch: pytest.MonkeyPatch, error: OSError, code: int
) -> None:
    def say(text: str) -> None:
        raise error

    monkeypatch.setattr("layerfarm.worker.client.Farm", lambda url: Farm())
    monkeypatch.setattr(doctor, "examine_redis", lambda *_: iter([ok("redis", "answers")]))
    monkeypatch.setattr(output, "say", say)
    ran = layerfarm("doctor", "--farm", "redis://queue/0")
    assert ran.code == code and "Redis" not in ran.err


def test_error_of_redis_is_that_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    def redis_checks(*_: object) -> Iterator[Finding]:
        raise redis.ConnectionError("gone")
        yield

    monkeypatch.setattr(doctor, "examine_redis", redis_checks)
    with pytest.raises(FarmUnreachable, match="gone"):
        list(doctor.examine(Farm(), []))  # type: ignore[arg-type]
