"""The same flow without a farm: a pool of processes, and nothing left however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ground import HERE, Ground, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import FarmError, OutsideAllowedRoots, RequestError
from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.worker.engine.local import run
from layerfarm.worker.model import JobState, Progress


def marks(directory: Path, name: str) -> int:
    return len(list(directory.glob(f"{name}.*")))


@pytest.mark.parametrize("processes", [1, 2, 7])
def test_job_goes_through_its_stages_to_the_result(tmp_path: Path, processes: int) -> None:
    assert run(ToyRequest(directory=tmp_path, numbers=10), processes=processes) == ToyResult(total=3 * 45)
    assert [marks(tmp_path, name) for name in ("begin", "join", "clean-True", "clean-False")] == [1, 3, 1, 0]
    assert [marks(tmp_path, f"run-{number}") for number in range(10)] == [3] * 10
    assert multiprocessing.active_children() == []


def test_both_runners_give_the_same_result(shared: Ground, allowed: Path) -> None:
    request = ToyRequest(directory=allowed, numbers=9)
    assert run(request) == shared.farm().submit(request).result(90)


def test_units_run_beside_one_another(tmp_path: Path) -> None:
    """One waits for the others, of which two come after it."""

    def repair(progress: Progress) -> None:
        if progress.units_done == 3:
            (tmp_path / "repaired").touch()

    request = ToyRequest(directory=tmp_path, numbers=4, rounds=1, trouble="wait-until-repaired")
    assert run(request, processes=2, on_progress=repair) == ToyResult(total=6)


def test_single_unit_runs_in_the_calling_process(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run(ToyRequest(directory=tmp_path, numbers=1, trouble="bug"))
    assert caught.traceback[-1].name == "_misbehave"


@pytest.mark.parametrize("numbers", [1, 3])
def test_progress_shows_units_and_bytes_up_to_the_end(tmp_path: Path, numbers: int) -> None:
    seen: list[Progress] = []
    request = ToyRequest(directory=tmp_path, numbers=numbers, rounds=2, sleep=0.6, unit_bytes=6000)
    run(request, on_progress=seen.append)

    assert seen[-1].state is JobState.SUCCEEDED
    first = [p for p in seen if p.stage == "first"]
    assert {(p.units_total, p.bytes_total, p.stages, p.stage_number) for p in first} == {
        (numbers, 6000 * numbers, 3, 1)
    }
    assert [p.bytes_done for p in first] == sorted(p.bytes_done for p in first)
    assert (first[-1].units_done, first[-1].bytes_done) == (numbers, 6000 * numbers)
    assert any(0 < p.bytes_done < 6000 for p in first)


@pytest.mark.parametrize("numbers", [1, 4])
def test_error_of_a_unit_is_raised_as_it_was(tmp_path: Path, numbers: int) -> None:
    with pytest.raises(RequestError, match="number one is odd: unit 1"):
        run(ToyRequest(directory=tmp_path, numbers=numbers, trouble="error"))
    assert marks(tmp_path, "clean-False") == 1
    assert not (tmp_path / "staged").exists()
    assert multiprocessing.active_children() == []


def test_failed_unit_stops_the_others(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(RequestError):
        run(ToyRequest(directory=tmp_path, numbers=2, trouble="error", sleep=100))
    assert time.monotonic() - begun < 60, "it waited for the other unit to end"
    assert marks(tmp_path, "stopped") == 1


def test_unit_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(RequestError):
        run(ToyRequest(directory=tmp_path, numbers=2, trouble="error", deaf=100))
    assert time.monotonic() - begun < 60, "it waited for the other unit to end"
    assert multiprocessing.active_children() == []


def test_killed_process_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FarmError, match="a process was killed during stage 'first'"):
        run(ToyRequest(directory=tmp_path, trouble="crash"))
    assert marks(tmp_path, "clean-False") == 1


@pytest.mark.parametrize("trouble", ["begin-error", "finish-bug"])
def test_error_outside_the_units_cleans_up(tmp_path: Path, trouble: str) -> None:
    with pytest.raises((RequestError, KeyError)):
        run(ToyRequest(directory=tmp_path, trouble=trouble))
    assert not (tmp_path / "staged").exists()


def test_policy_is_enforced(tmp_path: Path) -> None:
    with pytest.raises(OutsideAllowedRoots):
        run(ToyRequest(directory=tmp_path), Policy(roots=(tmp_path / "other",)))
    assert list(tmp_path.iterdir()) == []


class Unknown(Request):
    """A request that no flow serves."""


def test_request_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(RequestError, match="no flow serves"):
        run(Unknown())


@pytest.mark.parametrize("numbers", [1, 2])
@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGINT, -signal.SIGINT),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
    ],
)
def test_ctrl_c_sigterm_and_sighup_leave_nothing(tmp_path: Path, signum: int, code: int, numbers: int) -> None:
    program = subprocess.Popen(
        [sys.executable, str(HERE / "local_script.py"), str(tmp_path), str(numbers)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: len(list(tmp_path.glob("run-*"))) == numbers)
        children = psutil.Process(program.pid).children(recursive=True)
        # A terminal sends its signals to all processes of the program.
        program.terminate() if signum == signal.SIGTERM else os.killpg(program.pid, signum)
        assert program.wait(50) == code  # less than its units take
    finally:
        program.kill()
        program.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert marks(tmp_path, "clean-False") == 1
    assert not (tmp_path / "staged").exists()


def test_processes_die_with_a_killed_program(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, str(HERE / "local_script.py"), str(tmp_path), "2"])
    until(lambda: len(list(tmp_path.glob("run-*"))) == 2)
    children = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    program.wait()
    assert len(children) == 2
    assert psutil.wait_procs(children, timeout=60)[1] == []
