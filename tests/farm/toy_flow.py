"""A flow for the farm's tests: sums numbers in many units, and misbehaves on request."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, Literal

from layerfarm.jobs.errors import JobCancelled, RequestError, TreeChanged
from layerfarm.jobs.flows import FLOWS
from layerfarm.jobs.flows.base import Context, Equal, Flow, Request, Result, Stage, State, Unit, name_of_work

Trouble = Literal[
    "none",
    "error",
    "error-until-repaired",
    "changed-until-repaired",
    "wait-until-repaired",
    "escape",
    "greedy",
    "connect",
    "bug",
    "crash-once",
    "crash",
    "crash-until-repaired",
    "begin-error",
    "finish-bug",
    "clean-bug",
]
"""``…-until-repaired``: until there is a file ``repaired`` in the directory. ``escape``: a directory becomes a link to
``outside`` between its check and its use. ``connect``: to the port that is named in a file of ``outside``."""


class ToyRequest(Request):
    """Sum the numbers below ``numbers``, ``times`` stages after one another."""

    kind = "toy"

    directory: Path
    """Directory in which executions leave their marks; must be in an allowed root."""
    numbers: int = 4
    rounds: int = 3
    trouble: Trouble = "none"
    sleep: float = 0.0
    """Seconds that each unit takes, telling its progress every 20 ms."""
    deaf: float = 0.0
    """Seconds that each unit takes without a word."""
    unit_bytes: int = 0
    shared: str = ""
    """Units of the first stage are equal in all jobs of the same, not empty, word."""
    outside: Path | None = None
    """A directory that the worker does not allow, or of which it knows nothing."""
    marks: Path | None = None
    """Directory in which executions of units are marked, instead of ``directory``: to count those of several jobs."""


class ToyState(State):
    request: ToyRequest
    total: int = 0


class ToyResult(Result):
    total: int


def _begin(ctx: Context, request: ToyRequest) -> ToyState:
    directory = ctx.policy.check_root(request.directory)
    if request.trouble == "begin-error":
        raise RequestError("toy refuses", where="begin")
    (directory / "staged").touch()
    _mark(directory, "begin")
    return ToyState(request=request)


def _plan(ctx: Context, state: ToyState) -> list[Unit]:
    return [
        Unit(
            params={"number": number, "request": state.request.model_dump(mode="json")}, bytes=state.request.unit_bytes
        )
        for number in range(state.request.numbers)
    ]


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    request = ToyRequest.model_validate(unit.params["request"])
    directory = ctx.policy.check_root(request.directory)
    number = unit.params["number"]
    _mark(request.marks or directory, f"run-{number}")
    if number == 1 or request.numbers == 1:
        _misbehave(request, directory)
    try:
        if request.trouble == "wait-until-repaired" and number == min(1, request.numbers - 1):
            _wait(ctx, directory)
        _work(ctx, request)
    except JobCancelled:
        _mark(directory, "stopped")
        raise
    return {"value": number}


def _name(ctx: Context, unit: Unit) -> str | None:
    request = ToyRequest.model_validate(unit.params["request"])
    return name_of_work("toy", request.shared, unit.params["number"]) if request.shared else None


def _holds(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    return not (ToyRequest.model_validate(unit.params["request"]).directory / "lost").exists()


def _work(ctx: Context, request: ToyRequest) -> None:
    time.sleep(request.deaf)
    steps = int(request.sleep / 0.02)
    for _ in range(steps):
        time.sleep(0.02)
        ctx.observer.advanced(request.unit_bytes // steps)


def _wait_for_the_first(marks: Path) -> None:
    """Until unit 0 has begun: a busy machine may take its time, and what fails is to find it running."""
    deadline = time.monotonic() + 60
    while not list(marks.glob("run-0.*")) and time.monotonic() < deadline:
        time.sleep(0.02)


def _misbehave(request: ToyRequest, directory: Path) -> None:
    if request.trouble == "error":
        _wait_for_the_first(request.marks or directory)
        raise RequestError("number one is odd", where="unit 1")
    repaired = _repaired(directory)
    if request.trouble == "error-until-repaired" and not repaired:
        raise RequestError("number one is not repaired", where="unit 1")
    if request.trouble == "changed-until-repaired" and not repaired:
        raise TreeChanged("number one has changed", where="unit 1")
    if request.trouble == "crash-until-repaired" and not repaired:
        os.kill(os.getpid(), signal.SIGKILL)
    if request.trouble == "bug":
        raise ZeroDivisionError("secret detail")
    if request.trouble == "escape":
        _escape(request, directory)
    if request.trouble == "greedy":
        _ = [bytes(1 << 20) for _ in range(2000)]
    if request.trouble == "connect":
        assert request.outside is not None
        socket.create_connection(("127.0.0.1", int(request.outside.name))).close()
    if request.trouble == "crash" or (request.trouble == "crash-once" and _first(directory)):
        os.kill(os.getpid(), signal.SIGKILL)


def _wait(ctx: Context, directory: Path) -> None:
    while not _repaired(directory):
        time.sleep(0.02)
        ctx.observer.advanced(0)


def _repaired(directory: Path) -> bool:
    return (directory / "repaired").exists()


def _escape(request: ToyRequest, directory: Path) -> None:
    """Changes by another user with write access to an allowed root, just after the worker's check."""
    assert request.outside is not None
    (directory / "inner").symlink_to(request.outside)
    (directory / "inner" / "escaped").write_text((directory / "inner" / "secret").read_text())


def _join(ctx: Context, state: ToyState, results: list[dict[str, Any]]) -> ToyState:
    _mark(Path(state.request.directory), "join")
    return state.model_copy(update={"total": state.total + sum(result["value"] for result in results)})


def _plan_later(round_number: int) -> Any:
    return lambda ctx, state: _plan(ctx, state) if round_number < state.request.rounds else []


def _finish(ctx: Context, state: ToyState) -> ToyResult:
    if state.request.trouble == "finish-bug":
        raise KeyError("finish")
    return ToyResult(total=state.total)


def _clean(ctx: Context, request: ToyRequest, succeeded: bool) -> None:
    directory = ctx.policy.check_root(request.directory)
    (directory / "staged").unlink(missing_ok=True)
    _mark(directory, f"clean-{succeeded}")
    if request.trouble == "clean-bug":
        raise KeyError("clean")


def _mark(directory: Path, name: str) -> None:
    """One file per execution, so that a test can count them."""
    (directory / f"{name}.{os.urandom(6).hex()}").touch()


def _first(directory: Path) -> bool:
    try:
        (directory / "crashed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


TOY: Flow[ToyState] = Flow(
    request=ToyRequest,
    state=ToyState,
    stages=(
        Stage("first", _plan, _run, _join, Equal(_name, _holds)),
        Stage("second", _plan_later(1), _run, _join),
        Stage("third", _plan_later(2), _run, _join),
    ),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=ToyResult,
)
FLOWS.setdefault(TOY.name, TOY)
