"""The command with a real Redis and real workers: up, build, detach, jobs, Ctrl-C, demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

LAYERFARM = str(Path(sys.executable).with_name("layerfarm"))


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def layerfarm(tmp_path: Path) -> Run:
    """``layerfarm(*args, farm=URL)`` in a directory with a store and a small tree."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"file{number}").write_text(f"{number}\n" * 1000)

    def run(*args: str, farm: str | None = None) -> Ran:
        done = subprocess.run(
            [LAYERFARM, *args],
            cwd=tmp_path,
            env=environment(farm),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    assert run("init", "--layout", "store") == Ran(0, "", "")
    return run


def environment(farm: str | None = None) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}
    return plain if farm is None else plain | {"LAYERFARM_FARM": farm}


def children_of(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def all_gone(pids: set[int], within: float = 60.0) -> bool:
    deadline = time.monotonic() + within
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def up(layerfarm: Run, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``layerfarm up`` for that directory, and the address that it prints."""
    process = subprocess.Popen(
        [LAYERFARM, "up", "--root", ".", "--store", "store", "--concurrency=2"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.fullmatch(r"export LAYERFARM_FARM=(unix:///\S+/redis\.sock)\n", line)
    assert address is not None, line
    yield process, address[1]
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


@pytest.mark.usefixtures("as_root")
def test_the_farm_builds_what_the_local_command_builds(
    layerfarm: Run, up: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    _, farm = up
    here = layerfarm("build", "--rootfs=tree", "--image=store:here", "--shards=7")
    there = layerfarm("build", "--rootfs=tree", "--image=store:there", farm=farm)
    assert (here.code, there.code, here.err) == (0, 0, "")
    job = there.out.splitlines()[0].removeprefix("job: ").removesuffix(" succeeded")
    assert there.err == f"layerfarm: submitted job {job}\n"
    lines = here.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["job", "layer", "diff_id", "manifest"]
    assert lines[0] == "job: local succeeded"
    assert there.out.splitlines()[1:] == lines[1:]

    assert layerfarm("unpack", "--image=store:there", "bundle", farm=farm)[:2] == (0, "")
    (tmp_path / "bundle" / "rootfs" / "new").write_text("new")
    assert layerfarm("repack", "--image=store:changed", "bundle", farm=farm)[:2] == (0, "")
    assert layerfarm("repack", "--image=store:local", "bundle") == Ran(0, "", "")
    manifests = [
        json.loads(layerfarm("stat", "--json", f"--image=store:{tag}").out)["manifest"]["descriptor"]["digest"]
        for tag in ("changed", "local")
    ]
    assert manifests[0] == manifests[1]


def test_a_detached_job_is_watched_by_its_id(layerfarm: Run, up: tuple[subprocess.Popen[str], str]) -> None:
    _, farm = up
    detached = layerfarm("build", "--detach", "--rootfs=tree", "--image=store:v1", farm=farm)
    job = detached.out.strip()
    assert (detached.code, detached.err) == (0, "")
    watched = layerfarm("jobs", "watch", job, farm=farm)
    assert watched.code == 0
    assert watched.out.startswith(f"job: {job} succeeded\nlayer: sha256:")
    listed = [json.loads(line) for line in layerfarm("jobs", "ls", "--json", farm=farm).out.splitlines()]
    assert [(record["id"], record["state"]) for record in listed] == [(job, "succeeded")]
    assert f"job: {job}\nkind: build\nstate: succeeded\n" in layerfarm("jobs", "show", job, farm=farm).out
    late = layerfarm("jobs", "cancel", job, farm=farm)
    assert late == Ran(0, "", f"layerfarm: warning: job {job} has already ended: succeeded\n")
    unknown = layerfarm("jobs", "show", "0123456789ab", farm=farm)
    assert (unknown.code, unknown.out, unknown.err.count("\n")) == (1, "", 1)


def test_paths_outside_the_workers_roots_are_refused_in_one_line(
    layerfarm: Run, up: tuple[subprocess.Popen[str], str]
) -> None:
    done = layerfarm("build", "--rootfs=/etc", "--image=store:v1", farm=up[1])
    submitted, refused = done.err.splitlines()
    assert (done.code, done.out, submitted.startswith("layerfarm: submitted job ")) == (1, "", True)
    assert "outside the worker's allowed roots" in refused
    assert layerfarm("ls", "--layout=store").out == ""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["ctrl-c", "sigterm", "sighup"],
)
def test_up_stops_everything_that_it_started(
    up: tuple[subprocess.Popen[str], str], number: signal.Signals, code: int
) -> None:
    process, farm = up
    started = children_of(process.pid)
    assert len(started) >= 4  # redis, the worker, its two processes
    process.send_signal(number)
    assert process.wait(timeout=90) == code
    assert all_gone(started)
    assert not Path(farm.removeprefix("unix://")).parent.exists()


def test_up_ends_when_redis_dies(up: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = up
    started = children_of(process.pid)
    (redis,) = [pid for pid in started if b"-server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(redis, signal.SIGKILL)
    assert process.wait(timeout=90) == 1
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[-1].startswith("layerfarm: redis or the worker has died")
    assert all_gone(started)


def test_waiting_without_a_worker_is_reported_and_an_interrupt_cancels(
    layerfarm: Run, up: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, farm = up
    (worker,) = [
        pid
        for pid in children_of(process.pid)
        if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        and Path(f"/proc/{pid}/stat").read_text().split()[3] == str(process.pid)
    ]
    process.send_signal(signal.SIGSTOP)  # or it would end the farm when its worker goes
    os.kill(worker, signal.SIGKILL)
    waiting = subprocess.Popen(
        [LAYERFARM, "build", "--rootfs=tree", "--image=store:v1"],
        cwd=tmp_path,
        env=environment(farm),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    submitted = waiting.stderr.readline()
    assert waiting.stderr.readline().startswith("layerfarm: no worker is listening at unix://")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=90) == 130
    job = submitted.removeprefix("layerfarm: submitted job ")
    assert waiting.stderr.read().startswith(f"layerfarm: interrupted: cancelling job {job}")
    (record,) = [json.loads(line) for line in layerfarm("jobs", "ls", "--json", farm=farm).out.splitlines()]
    assert "cancelled" in (record["state"], record["ending"])
    process.send_signal(signal.SIGCONT)
    process.wait(timeout=90)


def test_demo_builds_unpacks_and_compares(layerfarm: Run, tmp_path: Path) -> None:
    done = layerfarm("demo", "--rootfs=tree", "--store=fresh", "--tag=t")
    assert done.code == 0, done.err
    digest = r"sha256:[0-9a-f]{64}"
    assert re.fullmatch(
        rf"job: \w+ succeeded\nlayer: {digest}\ndiff_id: {digest}\nmanifest: {digest}\n"
        rf"job: \w+ succeeded: 21 entries unpacked\ntrees agree: tree and the unpacked bundle\n"
        r"next:\n  \S+ build --rootfs DIR --image fresh:mine .*\n  \S+ stat --image fresh:t .*\n  \S+ worker .*\n",
        done.out,
    )
    assert layerfarm("ls", "--layout=fresh").out == "t\n"
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "store", "fresh"}


def test_a_demo_that_is_terminated_leaves_nothing_behind(layerfarm: Run, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [LAYERFARM, "demo", f"--rootfs={sysconfig.get_path('stdlib')}", "--store=store"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "hash" not in process.stderr.readline():
        assert process.poll() is None
    started = children_of(process.pid)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert all_gone(started)
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "store"}
    assert layerfarm("ls", "--layout=store").out == ""
    assert not list((tmp_path / "store" / ".layerfarm" / "work").iterdir())
