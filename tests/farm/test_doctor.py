"""``layerfarm doctor``: a healthy farm is called so, and each thing that is wrong is found and named."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ground import Ground, until
from shim import Shim
from trial import small_disk

from layerfarm.jobs.flows.base import FORMAT, Policy
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.probe import locks_exclude, probe_file, rename_fault
from layerfarm.worker.doctor import Finding, Level, examine, worst
from layerfarm.worker.doctor.store_checks import examine_store
from layerfarm.worker.doctor.views import Question, view_of
from layerfarm.worker.doctor.worker_checks import examine_workers
from layerfarm.worker.jobstore.keys import Keys
from tests.ordinary_user import ordinary_user

KEYS = Keys()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ExitStack() as stack:
        ground = Ground(tmp_path_factory.mktemp("farm"), stack, durable=True)
        Layout.create(ground.allowed / "store")
        ground.farm().client.config_set("maxmemory", "256mb")
        ground.start_worker(stores=ground.allowed / "store", sandbox="auto")
        yield ground


def said(findings: list[Finding], level: Level) -> str:
    return "\n".join(f"{finding.topic}: {finding.what}" for finding in findings if finding.level is level)


def test_healthy_farm_is_all_ok(healthy: Ground) -> None:
    findings = list(examine(healthy.farm(), ()))
    # Free space and speed of this machine's disk are not tested here.
    bad = [f for f in findings if f.level is not Level.OK and "free" not in f.what and "durable" not in f.what]
    assert bad == []
    (worker,) = healthy.farm().workers()
    for what in (
        "redis: version",
        "maxmemory-policy is noeviction",
        "keeps an append-only file",
        "is reached by a socket",
        f"worker {worker.name}: version",
        "fcntl locks work between processes",
        "a rename replaces a file in one step",
        f"is the same at worker {worker.name}, locks included",
    ):
        assert what in said(findings, Level.OK)
    assert not (healthy.allowed / "store" / ".layerfarm" / "doctor").exists()


def test_a_directory_of_layouts_is_as_good_as_a_layout(tmp_path: Path) -> None:
    Layout.create(tmp_path / "store")
    assert "is a directory for layouts" in said(list(examine_store(tmp_path)), Level.OK)


def test_a_directory_without_a_layout_may_be_an_unmounted_disk_and_stays_empty(tmp_path: Path) -> None:
    findings = list(examine_store(tmp_path))
    assert "has no layout" in said(findings, Level.WARN) and worst(findings) is not Level.FAIL
    assert list(tmp_path.iterdir()) == []


def test_command_prints_each_line_with_what_to_do_and_fails_if_something_failed(healthy: Ground) -> None:
    command = [sys.executable, "-m", "layerfarm.worker.cli", "doctor", "--farm", healthy.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith(("ok ", "warn ", "      ")) for line in done.stdout.splitlines())

    absent = [*command, "--store", str(healthy.directory / "absent"), "--json"]
    done = subprocess.run(absent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    (failed,) = [finding for finding in json.loads(done.stdout) if finding["level"] == "fail"]
    assert failed["what"] == "is not a directory here"
    assert failed["advice"].startswith("mount it")


def test_command_without_a_farm_or_a_store_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAYERFARM_FARM", raising=False)
    done = subprocess.run([sys.executable, "-m", "layerfarm.worker.cli", "doctor"], capture_output=True, check=False)
    assert done.returncode == 2


def test_redis_that_may_lose_jobs_is_found(ground: Ground) -> None:
    farm = ground.farm()
    farm.client.config_set("maxmemory-policy", "allkeys-lru")
    farm.client.set(KEYS.refused, 7)
    findings = list(examine(farm, ()))
    assert "maxmemory-policy is allkeys-lru" in said(findings, Level.FAIL)
    assert "workers: none is listening" in said(findings, Level.FAIL)
    assert "keeps no append-only file" in said(findings, Level.WARN)
    assert "maxmemory is not set" in said(findings, Level.WARN)
    assert "refused messages that a layerfarm client does not send: 7" in said(findings, Level.WARN)
    assert worst(findings) is Level.FAIL
    assert all(finding.advice for finding in findings if finding.level is not Level.OK)

    farm.client.config_set("maxmemory", int(farm.client.info()["used_memory"] * 1.1))
    assert "% of maxmemory are used" in said(list(examine(farm, ())), Level.WARN)
    farm.client.config_set("maxmemory", 0)
    with ExitStack() as stack:
        farm.client.replicaof("127.0.0.1", 1)  # type: ignore[no-untyped-call]
        stack.callback(farm.client.replicaof, "NO", "ONE")
        assert "is a replica" in said(list(examine(farm, ())), Level.FAIL)


@pytest.mark.usefixtures("as_root")
def test_workers_that_are_not_alike_are_found(ground: Ground) -> None:
    store = Layout.create(ground.allowed / "store").path
    shim = Shim(ground.directory)
    ground.start_worker(stores=store, roots=ground.directory / "gone", extra=shim.clock(300))
    # Another host, on which another disk is mounted where the store should be.
    script = 'mount -t tmpfs other "$0" && exec "$@"'
    ground.start_worker(at=("unshare", "--mount", "sh", "-c", script, str(store)), stores=store)
    ground.start_worker(stores=ground.directory)
    findings = list(examine(ground.farm(), [store]))
    failed, warned = said(findings, Level.FAIL), said(findings, Level.WARN)
    assert f"has no directory {ground.directory}/gone" in failed
    assert "roots or stores do not exist here" in ground.log(), "the worker itself warns of them when it starts"
    assert failed.count("is not the same disk at worker") == 1
    assert "its clock differs from that of Redis by +300 s" in warned
    assert "differ in their roots" in warned
    assert "differ in their stores" in warned
    assert said(findings, Level.OK).count("is the same at worker") == 2


def test_workers_of_other_versions_are_found(healthy: Ground) -> None:
    farm = healthy.farm()
    (worker,) = farm.workers()
    for update, level, what in (
        ({"format": FORMAT - 1}, Level.FAIL, f"reads jobs of format {FORMAT - 1}, this machine writes {FORMAT}"),
        ({"format": FORMAT + 2}, Level.FAIL, f"reads jobs of format {FORMAT + 2}, this machine writes {FORMAT}"),
        ({"format": FORMAT + 1, "version": "9"}, Level.WARN, "is version 9"),
        ({"version": "0.0.1"}, Level.WARN, "is version 0.0.1"),
    ):
        assert what in said(list(examine_workers([worker.model_copy(update=update)])), level)


# --- stores --------------------------------------------------------------------------------------------


def test_store_that_is_full_or_read_only_is_found(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = Layout.create(disk / "store").path
        (disk / "ballast").write_bytes(b"\1" * (15 << 20 | 1 << 19))
        findings = list(examine_store(store))
        assert "of 16 MiB are free" in said(findings, Level.WARN)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "cannot be written, Read-only file system" in said(list(examine_store(store)), Level.FAIL)


@pytest.mark.usefixtures("as_root")
def test_user_who_may_not_write_to_a_store_is_advised_to_become_the_workers_user() -> None:
    with ordinary_user() as user:
        store = Layout.create(user.home / "store").path
        findings = user.call(lambda: list(examine_store(store)))
    (failed,) = [finding for finding in findings if finding.level is Level.FAIL]
    assert failed.what == "this user cannot write to it, Permission denied"
    assert "as the worker's user" in failed.advice


def test_locks_without_effect_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with probe_file(tmp_path) as probe:
        assert locks_exclude(probe)
        # As on an NFS mount with local locks, seen from another host: our own lock is not there.
        monkeypatch.setattr(fcntl, "fcntl", lambda *args: b"")
        assert not locks_exclude(probe)


def test_renames_that_are_not_one_step_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copies(source: Path, target: Path) -> None:
        with target.open("wb") as file:
            file.write(source.read_bytes())
            time.sleep(0.002)
        source.unlink()

    with probe_file(tmp_path) as probe:
        assert rename_fault(probe) == ""
        monkeypatch.setattr(Path, "rename", copies)
        assert rename_fault(probe) == "an incomplete file"


def test_worker_reports_nothing_about_paths_that_it_does_not_allow(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for directory in (allowed, other):
        directory.mkdir()
    policy = Policy(roots=(), stores=(allowed,))
    with probe_file(other) as probe:
        question = Question(name=probe.name, store=str(other), sha256="0" * 64)
        assert view_of(question, policy) == "forbidden"
    with probe_file(allowed) as probe:
        question = Question(name=probe.name, store=str(allowed), sha256="0" * 64)
        assert view_of(question, policy) == "other"
        probe.unlink()
        probe.symlink_to("/etc/passwd")
        assert view_of(question, policy) == "other"
        probe.unlink()
        assert view_of(question, policy) == "absent"
        probe.touch()


def test_lock_that_does_not_reach_a_worker_is_found(healthy: Ground) -> None:
    """The doctor's own lock is let go, as one that the server does not know of."""
    store = healthy.allowed / "store"
    with probe_file(store) as probe:
        digest = hashlib.sha256(probe.read_bytes()).hexdigest()
        question = Question(name=probe.name, store=str(store), sha256=digest)
        client = healthy.farm().client
        client.set(KEYS.probe, question.model_dump_json(), ex=30)
        (worker,) = healthy.farm().workers()
        until(lambda: client.hget(f"{KEYS.probe}:{probe.name}", worker.name) == "unlocked")
