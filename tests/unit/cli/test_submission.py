"""build, unpack, repack, jobs: requests to the runners, and the output of their answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import layerfarm.worker.client
import layerfarm.worker.engine.local
from layerfarm.jobs.errors import FarmFull, JobFailed, JobTimeout
from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.jobs.flows.requests import (
    BuildRequest,
    HistoryOptions,
    IdMapping,
    ImageRef,
    ImageResult,
    LayerOptions,
    RepackRequest,
    UnpackRequest,
    UnpackResult,
)
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.model import JobError, JobRecord, JobState, Progress
from tests.unit.cli.conftest import Ran, Run

LAYER, DIFF_ID, MANIFEST = (f"sha256:{digit * 64}" for digit in "123")
BUILT = ImageResult(
    image="/s:t",
    manifest=MANIFEST,
    config=MANIFEST,
    layer=LAYER,
    layer_size=5,
    diff_id=DIFF_ID,
    mtree=MANIFEST,
    entries=3,
    deltas=2,
)
SUBMITTED = "layerfarm: submitted job j1\n"
UNPACKED = UnpackResult(bundle="/b", manifest=MANIFEST, layers=1, entries=3, mtree=MANIFEST)
DIGESTS = f"layer: {LAYER}\ndiff_id: {DIFF_ID}\nmanifest: {MANIFEST}\n"


class FakeFarm:
    """One farm with one job, which does what the test wants."""

    urls: list[str] = []
    submitted: list[Request] = []
    classes: list[Traffic | None] = []
    cancelled: list[str] = []
    retried: list[tuple[str, bool]] = []
    discarded: list[str] = []
    steps: list[Progress] = []
    outcome: Any = BUILT

    id = "j1"

    def __init__(self, url: str) -> None:
        self.urls.append(url)

    full = False
    waited: list[float | None] = []
    ended = False
    """The job has ended: it cannot be cancelled, and nothing of it is kept."""

    def submit(
        self, request: Request, *, traffic: Traffic | None = None, block: bool = False, timeout: float | None = None
    ) -> FakeFarm:
        if self.full and not block:
            raise FarmFull("3 jobs are already waiting", hint="try again later")
        if self.full:
            self.waited.append(timeout)
        self.submitted.append(request)
        self.classes.append(traffic)
        return self

    def job(self, job_id: str) -> FakeFarm:
        assert job_id == self.id
        return self

    def jobs(self) -> list[JobRecord]:
        return [record("old", 10.0), record("new", 20.0)]

    def record(self) -> JobRecord:
        return record(self.id, 86400.0)

    def watch(self, *, timeout: float | None = None) -> Iterator[Progress]:
        self.waited.append(timeout)
        yield from self.steps

    def result(self, timeout: float | None) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def cancel(self) -> bool:
        self.cancelled.append(self.id)
        return not self.ended

    def retry(self, *, restart: bool) -> bool:
        self.retried.append((self.id, restart))
        return not restart

    def discard(self) -> bool:
        self.discarded.append(self.id)
        return not self.ended


def record(job_id: str, submitted: float) -> JobRecord:
    return JobRecord(
        id=job_id,
        kind="build",
        traffic="bulk",
        submitter="ci@build-7",
        retries=1,
        kept=submitted + 3600,
        request={"rootfs": "/r"},
        state=JobState.FAILED,
        stage="hash",
        stage_number=2,
        stages=4,
        bytes_done=3_000_000,
        bytes_total=2_000_000,
        submitted=submitted,
        started=submitted + 1,
        error=JobError(type="TreeChanged", message="it moved"),
    )


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> type[FakeFarm]:
    for name in ("urls", "submitted", "classes", "cancelled", "retried", "discarded", "steps", "waited"):
        monkeypatch.setattr(FakeFarm, name, [])
    monkeypatch.setattr(FakeFarm, "outcome", BUILT)
    monkeypatch.setattr(layerfarm.worker.client, "Farm", FakeFarm)
    return FakeFarm


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, Policy, int]]:
    calls: list[tuple[Request, Policy, int]] = []

    def run(request: Request, policy: Policy, processes: int, on_progress: Any) -> Any:
        calls.append((request, policy, processes))
        on_progress(Progress(JobState.RUNNING, "x", stage="s", stage_number=1, stages=1))
        if isinstance(request, UnpackRequest):
            return UNPACKED
        return BUILT.model_copy(update={"warnings": ["socket left out: 'a\nb'"]})

    monkeypatch.setattr(layerfarm.worker.engine.local, "run", run)
    return calls


def test_build_prints_the_digests(layerfarm: Run, here: list[Any], tmp_path: Path) -> None:
    done = layerfarm("build", "--rootfs=tree", "--image=store:v2", "--base", "store:v1", "--mask-path=/tmp")
    assert done == Ran(0, f"job: local succeeded\n{DIGESTS}", "layerfarm: warning: socket left out: 'a b'\n")
    ((request, _, _),) = here
    assert request == BuildRequest(
        rootfs=tmp_path / "tree",
        image=ImageRef(store=tmp_path / "store", tag="v2"),
        base=ImageRef(store=tmp_path / "store", tag="v1"),
        mask_paths=["/tmp"],
    )


def test_build_takes_the_base_for_a_platform(layerfarm: Run, here: list[Any], tmp_path: Path) -> None:
    flags = ("--rootfs=tree", "--image=store:v2")
    layerfarm("build", *flags, "--base=store:v1", "--platform=linux/arm64")
    ((request, _, _),) = here
    assert (request.base, request.platform) == (ImageRef(store=tmp_path / "store", tag="v1"), "linux/arm64")
    done = layerfarm("build", *flags, "--platform=linux/arm64")
    assert done.code == 2 and "--base" in done.err and len(here) == 1


def test_an_unchanged_tree_has_no_layer_to_print(layerfarm: Run, farm: type[FakeFarm]) -> None:
    farm.outcome = BUILT.model_copy(update={"layer": None, "diff_id": None})
    done = layerfarm("--farm=redis://f", "build", "--rootfs=tree", "--image=store:v2")
    assert done.out == f"job: j1 succeeded\nlayer: none\ndiff_id: none\nmanifest: {MANIFEST}\n"


def test_repack_prints_nothing_as_umoci(layerfarm: Run, here: list[Any], tmp_path: Path) -> None:
    flags = ["--mask-path=/a", "--mask-path", "/b", "--no-mask-volumes", "--refresh-bundle", "--compress=zstd"]
    history = ["--history.author=A", "--history.comment=C", "--history.created=2020-01-01T00:00:00Z"]
    done = layerfarm("--log=error", "repack", *flags, *history, "--history.created_by=me", "--image=store", "bundle")
    assert done == Ran(0, "", "")
    ((request, _, _),) = here
    assert request == RepackRequest(
        bundle=tmp_path / "bundle",
        image=ImageRef(store=tmp_path / "store", tag="latest"),
        layer=LayerOptions(
            compress="zstd",
            history=HistoryOptions(author="A", comment="C", created="2020-01-01T00:00:00Z", created_by="me"),
        ),
        mask_paths=["/a", "/b"],
        mask_volumes=False,
        refresh_bundle=True,
    )


@pytest.mark.parametrize("path", ["", "/", "a/.."])
def test_a_request_that_masks_the_root_is_none(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValidationError, match="nothing would be packed"):
        RepackRequest(bundle=tmp_path, image=ImageRef(store=tmp_path), mask_paths=[path])


def test_verbose_and_json_show_the_digests_of_a_repack(layerfarm: Run, here: list[Any]) -> None:
    done = layerfarm("--verbose", "repack", "--image=store", "bundle")
    assert done.out == ""
    assert f"layerfarm: manifest: {MANIFEST}\n" in done.err
    assert json.loads(layerfarm("repack", "--json", "--image=store", "bundle").out)["layer"] == LAYER


def test_unpack_maps_ids(layerfarm: Run, here: list[Any], tmp_path: Path) -> None:
    done = layerfarm(
        "unpack", "--image=s:t", "--uid-map=0:1000:10", "--uid-map", "10:5", "--gid-map=0:7", "b", "--keep-dirlinks"
    )
    assert done == Ran(0, "", "")
    ((request, _, _),) = here
    assert request == UnpackRequest(
        image=ImageRef(store=tmp_path / "s", tag="t"),
        bundle=tmp_path / "b",
        uid_map=[IdMapping(container=0, host=1000, size=10), IdMapping(container=10, host=5, size=1)],
        gid_map=[IdMapping(container=0, host=7, size=1)],
        keep_dirlinks=True,
    )


def test_rootless_maps_root_to_oneself_unless_told_otherwise(
    layerfarm: Run, here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1234)
    monkeypatch.setattr("os.getegid", lambda: 567)
    layerfarm("unpack", "--image=s:t", "--rootless", "--gid-map=0:7", "b")
    ((request, _, _),) = here
    assert request.rootless is True
    assert request.uid_map == [IdMapping(container=0, host=1234)]
    assert request.gid_map == [IdMapping(container=0, host=7)]


def test_the_epoch_is_handed_on(layerfarm: Run, here: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "42")
    layerfarm("repack", "--image=s", "b")
    assert here[0][0].layer.source_date_epoch == 42


def test_processes_and_shards_shape_the_local_run(layerfarm: Run, here: list[Any]) -> None:
    layerfarm("build", "--rootfs=r", "--image=s", "--processes=3", "--shards=7")
    ((_, policy, processes),) = here
    assert (policy.shards, processes, policy.roots, policy.stores) == (7, 3, None, None)


@pytest.mark.parametrize(
    "args",
    [
        ["--farm=redis://f", "unpack", "--image=s", "b"],
        ["unpack", "--farm", "redis://f", "--image=s", "b"],
        ["--farm=redis://other", "unpack", "--farm", "redis://f", "--image=s", "b"],
    ],
    ids=" ".join,
)
def test_a_farm_is_named_globally_or_by_the_command(layerfarm: Run, farm: type[FakeFarm], args: list[str]) -> None:
    farm.outcome = UNPACKED
    done = layerfarm(*args)
    assert done == Ran(0, "", SUBMITTED)
    assert farm.urls == ["redis://f"]


def test_the_settings_file_names_a_farm_and_an_empty_option_takes_it_back(
    layerfarm: Run, here: list[Any], farm: type[FakeFarm], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('farm = "redis://f"')
    monkeypatch.setenv("LAYERFARM_CONFIG", "c.toml")
    farm.outcome = UNPACKED
    assert layerfarm("unpack", "--image=s", "b").code == 0
    assert (farm.urls, here) == (["redis://f"], [])
    assert layerfarm("unpack", "--farm=", "--image=s", "b").code == 0
    assert (farm.urls, len(here)) == (["redis://f"], 1)


def test_the_environment_names_a_farm_and_an_empty_option_takes_it_back(
    layerfarm: Run, farm: type[FakeFarm], here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFARM_FARM", "redis://f")
    assert layerfarm("build", "--rootfs=r", "--image=s").out.startswith("job: j1 succeeded\n")
    assert layerfarm("build", "--rootfs=r", "--image=s", "--farm=").out.startswith("job: local succeeded\n")
    assert (len(farm.submitted), len(here)) == (1, 1)


def test_a_detached_job_is_its_id_on_stdout(layerfarm: Run, farm: type[FakeFarm]) -> None:
    farm.outcome = AssertionError("nobody waits")
    assert layerfarm("--farm=redis://f", "repack", "--detach", "--image=s", "b") == Ran(0, "j1\n", "")


def test_each_notice_is_printed_once(layerfarm: Run, farm: type[FakeFarm]) -> None:
    waiting = Progress(JobState.QUEUED, "build", notice="no worker is listening at redis://f")
    farm.steps.extend([waiting, waiting, Progress(JobState.RUNNING, "build")])
    done = layerfarm("--farm=redis://f", "build", "--rootfs=r", "--image=s")
    assert done.err == SUBMITTED + "layerfarm: no worker is listening at redis://f\n"


def test_plain_progress_is_a_line_for_each_stage(layerfarm: Run, farm: type[FakeFarm]) -> None:
    def step(stage: str, number: int, done: int) -> Progress:
        return Progress(JobState.RUNNING, "build", stage, number, 2, done, 2, 500_000 * done, 1_000_000)

    farm.steps.extend([step("hash", 1, 0), step("hash", 1, 2), step("pack", 2, 0)])
    done = layerfarm("--farm=redis://f", "build", "--progress=plain", "--rootfs=r", "--image=s")
    steps = "layerfarm: build 1/2 hash: 2 units, 1.0 MB\nlayerfarm: build 2/2 pack: 2 units, 1.0 MB\n"
    assert done.err == SUBMITTED + steps


def test_the_bar_shows_the_stage_and_goes_away(
    layerfarm: Run, farm: type[FakeFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerfarm.worker.cli.progress_view._BAR_AFTER", 0.0)
    farm.steps.extend(
        [
            Progress(JobState.QUEUED, "build"),
            Progress(JobState.RUNNING, "build", "hash", 2, 4, 1, 2, 3_000_000, 2_000_000),
            Progress(JobState.SUCCEEDED, "build"),
        ]
    )
    done = layerfarm("--farm=redis://f", "build", "--progress=bar", "--rootfs=r", "--image=s")
    assert done.code == 0
    assert "job: j1 succeeded" in done.out


def test_the_failure_of_a_job_is_the_failure_of_the_command(layerfarm: Run, farm: type[FakeFarm]) -> None:
    farm.outcome = JobFailed("somebody changed the tree: /x")
    done = layerfarm("--farm=redis://f", "repack", "--image=s", "b")
    assert done == Ran(1, "", SUBMITTED + "layerfarm: somebody changed the tree: /x\n")


def test_interrupting_the_wait_cancels_the_job(layerfarm: Run, farm: type[FakeFarm]) -> None:
    farm.outcome = KeyboardInterrupt()
    done = layerfarm("--farm=redis://f", "repack", "--image=s", "b")
    assert done == Ran(130, "", SUBMITTED + "layerfarm: interrupted: cancelling job j1\n")
    assert farm.cancelled == ["j1"]


@pytest.mark.parametrize(
    "line", [("--farm=redis://f", "jobs", "ls"), ("jobs", "--farm=redis://f", "ls"), ("jobs", "ls", "--farm=redis://f")]
)
def test_jobs_take_the_farm_at_every_level(layerfarm: Run, farm: type[FakeFarm], line: tuple[str, ...]) -> None:
    assert layerfarm(*line).code == 0
    assert farm.urls == ["redis://f"]


def test_jobs_are_listed_newest_first(layerfarm: Run, farm: type[FakeFarm]) -> None:
    done = layerfarm("--farm=redis://f", "jobs", "ls")
    assert done.out.splitlines() == [
        "JOB  KIND   CLASS  STATE   STAGE     DONE              SUBMITTED             BY",
        "new  build  bulk   failed  2/4 hash  2.0 MB of 2.0 MB  1970-01-01T00:00:20Z  ci@build-7",
        "old  build  bulk   failed  2/4 hash  2.0 MB of 2.0 MB  1970-01-01T00:00:10Z  ci@build-7",
    ]
    lines = layerfarm("jobs", "--farm=redis://f", "ls", "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["new", "old"]


def test_a_job_is_shown_with_its_error(layerfarm: Run, farm: type[FakeFarm]) -> None:
    done = layerfarm("--farm=redis://f", "jobs", "show", "j1")
    assert done.out.splitlines() == [
        "job: j1",
        "kind: build",
        "state: failed",
        "class: bulk",
        "submitter: ci@build-7",
        "stage: 2/4 hash (2.0 MB of 2.0 MB)",
        "submitted: 1970-01-02T00:00:00Z",
        "started: 1970-01-02T00:00:01Z",
        "kept for a retry until: 1970-01-02T01:00:00Z",
        "retries: 1",
        "error: it moved",
        "request.rootfs: /r",
    ]
    assert json.loads(layerfarm("--farm=redis://f", "jobs", "show", "--json", "j1").out)["error"]["type"]


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        (None, "running"),
        (JobState.CANCELLED, "running, cancel requested"),
        (JobState.FAILED, "running, failing"),
        (JobState.SUCCEEDED, "running, finishing"),
    ],
)
def test_decided_end_of_a_running_job_is_shown(
    layerfarm: Run, farm: type[FakeFarm], monkeypatch: pytest.MonkeyPatch, ending: JobState | None, state: str
) -> None:
    changed = record("j1", 10.0).model_copy(update={"state": JobState.RUNNING, "ending": ending})
    monkeypatch.setattr(farm, "jobs", lambda self: [changed])
    monkeypatch.setattr(farm, "record", lambda self: changed)
    listed = layerfarm("--farm=redis://f", "jobs", "ls").out.splitlines()[1]
    assert f"  {state}  2/4 hash" in listed
    assert f"state: {state}" in layerfarm("--farm=redis://f", "jobs", "show", "j1").out.splitlines()
    assert json.loads(layerfarm("--farm=redis://f", "jobs", "ls", "--json").out)["ending"] == ending


def test_watch_ends_as_the_job_did(layerfarm: Run, farm: type[FakeFarm]) -> None:
    assert layerfarm("--farm=redis://f", "jobs", "watch", "j1").out == f"job: j1 succeeded\n{DIGESTS}"
    farm.outcome = UNPACKED
    assert layerfarm("--farm=redis://f", "jobs", "watch", "j1").out == "job: j1 succeeded\n"
    assert json.loads(layerfarm("--farm=redis://f", "jobs", "watch", "--json", "j1").out)["bundle"] == "/b"
    farm.outcome = JobFailed("it moved")
    assert layerfarm("--farm=redis://f", "jobs", "watch", "j1") == Ran(1, "", "layerfarm: it moved\n")
    farm.outcome = KeyboardInterrupt()
    assert layerfarm("--farm=redis://f", "jobs", "watch", "j1").code == 130
    assert farm.cancelled == []


def test_jobs_are_cancelled(layerfarm: Run, farm: type[FakeFarm]) -> None:
    assert layerfarm("--farm=redis://f", "jobs", "cancel", "j1", "j1") == Ran(0, "", "")
    assert farm.cancelled == ["j1", "j1"]


def test_cancel_and_clean_report_a_job_that_they_do_not_change(
    layerfarm: Run, farm: type[FakeFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "ended", True)
    done = layerfarm("--farm=redis://f", "jobs", "cancel", "j1")
    assert done == Ran(0, "", "layerfarm: warning: job j1 has already ended: failed\n")
    done = layerfarm("--farm=redis://f", "jobs", "clean", "j1")
    assert done == Ran(0, "", "layerfarm: warning: no results of job j1 are kept\n")
    ending = record("j1", 10.0).model_copy(update={"state": JobState.RUNNING, "ending": "cancelled"})
    monkeypatch.setattr(farm, "record", lambda self: ending)
    done = layerfarm("--farm=redis://f", "jobs", "cancel", "j1")
    assert done == Ran(0, "", "layerfarm: warning: job j1 is already ending: running, cancel requested\n")


def test_values_of_a_request_are_shown_as_json(
    layerfarm: Run, farm: type[FakeFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {
        "image": {"store": "/s", "tag": "é"},
        "base": None,
        "mask_volumes": True,
        "mask_paths": [],
        "rootfs": "/r",
    }
    monkeypatch.setattr(farm, "record", lambda self: record("j1", 1.0).model_copy(update={"request": request}))
    lines = layerfarm("--farm=redis://f", "jobs", "show", "j1").out.splitlines()
    assert [line for line in lines if line.startswith("request.")] == [
        'request.image: {"store": "/s", "tag": "é"}',
        "request.base: null",
        "request.mask_volumes: true",
        "request.mask_paths: []",
        "request.rootfs: /r",
    ]


def test_time_to_wait_covers_the_queue_and_the_job(
    layerfarm: Run, farm: type[FakeFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ("build", "--rootfs=r", "--image=s")
    assert layerfarm("--farm=redis://f", *build).code == 0
    monkeypatch.setattr(farm, "full", True)
    assert layerfarm("--farm=redis://f", *build, "--timeout=1h").code == 0
    assert layerfarm("--farm=redis://f", "jobs", "watch", "j1", "--timeout=90s").code == 0
    unlimited, for_room, left, watched = farm.waited
    assert (unlimited, for_room, watched) == (None, 3600.0, 90.0)
    assert left is not None and 3000 < left <= 3600
    done = layerfarm(*build, "--timeout=1h")
    assert (done.code, "--timeout needs a farm" in done.err) == (2, True)


def test_job_that_takes_too_long_is_named_and_not_cancelled(layerfarm: Run, farm: type[FakeFarm]) -> None:
    farm.outcome = JobTimeout("job has not ended within 5 s", where="j1")
    done = layerfarm("--farm=redis://f", "repack", "--timeout=5s", "--image=s", "b")
    assert (done.code, "j1" in done.err.splitlines()[-1], farm.cancelled) == (1, True, [])


@pytest.mark.parametrize("args", [["--store="], ["--root="]])
def test_a_worker_with_an_empty_path_does_not_start(layerfarm: Run, args: list[str]) -> None:
    done = layerfarm("worker", "--farm=redis://127.0.0.1:1/0", *args)
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_a_worker_without_a_store_does_not_start(layerfarm: Run) -> None:
    done = layerfarm("worker", "--farm=redis://127.0.0.1:1/0", "--root=/tmp")
    assert done == Ran(1, "", "layerfarm: no store is allowed (name one with --store or LAYERFARM_STORES)\n")


def test_an_empty_store_in_the_environment_is_refused(layerfarm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_STORES", "")
    done = layerfarm("worker", "--farm=redis://127.0.0.1:1/0", "--root=/tmp")
    assert done.code == 1
    assert done.err.startswith("layerfarm: setting 'stores' is wrong: empty path")


def test_a_redis_that_does_not_answer_is_named(layerfarm: Run) -> None:
    done = layerfarm("--farm=redis://:secret@127.0.0.1:1/0", "build", "--rootfs=/r", "--image=s")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "127.0.0.1:1" in done.err
    assert "secret" not in done.err


def test_jobs_are_retried_and_their_records_removed(layerfarm: Run, farm: type[FakeFarm]) -> None:
    assert layerfarm("--farm=redis://f", "jobs", "retry", "j1").out == "job: j1 continues\n"
    assert layerfarm("--farm=redis://f", "jobs", "retry", "--restart", "j1").out == "job: j1 restarts\n"
    assert farm.retried == [("j1", False), ("j1", True)]
    assert layerfarm("--farm=redis://f", "jobs", "clean", "j1") == Ran(0, "", "")
    assert farm.discarded == ["j1"]


def test_class_of_a_job_is_a_flag(layerfarm: Run, farm: type[FakeFarm], tmp_path: Path) -> None:
    build = ("--farm=redis://f", "build", f"--rootfs={tmp_path}", "--image=s:v")
    assert layerfarm(*build, "--class=bulk").code == 0
    assert layerfarm(*build).code == 0
    assert farm.classes == [Traffic.BULK, None]
    assert layerfarm(*build, "--class=urgent").code == 2


def test_full_farm_is_waited_for_or_an_error(
    layerfarm: Run, farm: type[FakeFarm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "full", True)
    build = ("--farm=redis://f", "build", f"--rootfs={tmp_path}", "--image=s:v")
    done = layerfarm(*build)
    assert (done.code, done.err) == (0, f"layerfarm: 3 jobs are already waiting, waiting for room\n{SUBMITTED}")
    done = layerfarm(*build, "--if-full=fail")
    assert (done.code, done.err) == (1, "layerfarm: 3 jobs are already waiting (try again later)\n")
    assert len(farm.submitted) == 1
