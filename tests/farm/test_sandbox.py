"""A unit can reach the worker's roots and stores, Redis, and nothing else, whatever happens to the names."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import psutil
import pytest
from ground import Ground
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobFailed, RequestError
from layerfarm.worker.security import landlock
from layerfarm.worker.security.sandbox import sandbox
from layerfarm.worker.worker_main import run_worker


@pytest.fixture
def confined() -> None:
    if landlock.version() < 1:
        pytest.skip("this kernel has no Landlock")


@pytest.fixture
def outside(ground: Ground) -> Path:
    directory = ground.directory / "outside"
    directory.mkdir()
    (directory / "secret").write_text("secret")
    return directory


def test_directory_exchanged_after_its_check_leads_nowhere(confined: None, ground: Ground, outside: Path) -> None:
    ground.start_worker(sandbox="require")
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, rounds=1, trouble="escape", outside=outside))
    with pytest.raises(JobFailed, match="Permission denied"):
        job.result(90)
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert ground.farm().submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)


def test_without_a_sandbox_it_would(ground: Ground, outside: Path) -> None:
    """The test above can fail: nothing but the sandbox stands between that unit and the outside."""
    ground.start_worker(sandbox="off")
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, rounds=1, trouble="escape", outside=outside))
    assert job.result(90) == ToyResult(total=6)
    assert (outside / "escaped").read_text() == "secret"


@pytest.mark.parametrize("mode", ["require", "off"])
def test_unit_reaches_no_network(confined: None, ground: Ground, mode: str) -> None:
    if landlock.version() < 4:
        pytest.skip("this kernel's Landlock knows nothing of TCP")
    ground.start_worker(sandbox=mode)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = Path("/", str(server.getsockname()[1]))
        job = ground.farm().submit(ToyRequest(directory=ground.allowed, rounds=1, trouble="connect", outside=port))
        if mode == "off":
            assert job.result(90) == ToyResult(total=6)
        else:
            with pytest.raises(JobFailed, match="Permission denied"):
                job.result(90)


def status(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_root_keeps_only_the_capabilities_that_layers_need(as_root: None, ground: Ground) -> None:
    worker = ground.start_worker(sandbox="auto")
    for process in psutil.Process(worker.pid).children():
        found = status(process)
        names = {0: "chown", 1: "dac_override", 3: "fowner", 4: "fsetid", 21: "sys_admin", 27: "mknod", 31: "setfcap"}
        for mask in ("CapEff", "CapPrm", "CapBnd"):
            assert {bit for bit in range(64) if int(found[mask], 16) >> bit & 1} <= set(names)
        assert int(found["CapEff"], 16) & 1
        assert found["NoNewPrivs"] == "1"
        assert int(found["CapInh"], 16) == 0


def test_worker_of_root_works_as_another_user(ground: Ground) -> None:
    """Its main process stays root; what is done, that user does."""
    nobody = pwd.getpwnam("nobody")
    for directory in (ground.directory, *ground.directory.parents):
        if directory.owner() == pwd.getpwuid(os.getuid()).pw_name and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    os.chown(ground.allowed, nobody.pw_uid, nobody.pw_gid)
    (ground.directory / "redis.sock").chmod(0o777)
    worker = ground.start_worker(user="nobody")
    assert ground.farm().submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in ground.allowed.iterdir()}
    assert owners == {(nobody.pw_uid, nobody.pw_gid)}
    for process in psutil.Process(worker.pid).children():
        assert set(status(process)["Uid"].split()) == {str(nobody.pw_uid)}
        assert int(status(process)["CapEff"], 16) == int(status(process)["CapBnd"], 16) == 0
    # They end with their main process all the same.
    children = psutil.Process(worker.pid).children()
    worker.kill()
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_missing_user_is_reported(ground: Ground) -> None:
    with pytest.raises(RequestError, match="user does not exist: nobody-of-this-name"):
        run_worker(ground.settings(user="nobody-of-this-name"))


def test_required_sandbox_that_is_missing_is_reported(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(RequestError, match="no Landlock"):
        run_worker(ground.settings(sandbox="require"))
    with sandbox(ground.settings()) as place:
        assert not place.confined
    assert not place.temporary.exists()


def test_sandbox_that_cannot_be_entered_stops_the_worker_at_its_start(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(1, "Landlock: Operation not permitted")

    monkeypatch.setattr(landlock, "restrict", refuses)
    monkeypatch.setattr(landlock, "version", lambda: 4)
    with pytest.raises(RequestError, match=r"cannot be entered: .*Operation not permitted"):
        run_worker(ground.settings(sandbox="require"))


def test_workers_say_whether_their_units_are_confined(confined: None, ground: Ground) -> None:
    ground.start_worker(sandbox="auto")
    ground.start_worker(sandbox="off")
    assert sorted(worker.confined for worker in ground.farm().workers()) == [False, True]
    assert "units run without a sandbox" in ground.log()
