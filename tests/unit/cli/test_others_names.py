"""Names that others made up move no terminal and end no command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from layerfarm.jobs.store import MEDIA_TYPE_LAYER, Descriptor, Layout
from layerfarm.jobs.store.leases import Leases
from layerfarm.worker.background.registry import WorkerInfo
from layerfarm.worker.cli import jobs_cmd, output, progress_view, top_cmd
from layerfarm.worker.model import JobError, JobRecord, JobState, Progress
from layerfarm.worker.monitoring.census import Census
from tests.unit.cli.conftest import Run

NASTY = "\x1b]0;owned\x07[/red][link=x]\r\u202e"


def test_line_of_a_result_is_one_line_of_printable_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"a\tb {NASTY}\n")
    out, _ = capsys.readouterr()
    assert out == "a\\tb \\x1b]0;owned\\x07[/red][link=x]\\r\\u202e\\n\n"


def test_top_shows_names_as_they_are() -> None:
    text = io.StringIO()
    console = Console(file=text, width=300, force_terminal=True, color_system=None)
    said = {"name": NASTY, "host": NASTY, "pid": 1, "concurrency": 1, "kinds": ()}
    worker = WorkerInfo.model_validate(said | {"roots": (Path("/x[/y]"),), "stores": (Path(f"/{NASTY}"),)})
    record = JobRecord(id="job", kind=NASTY, request={}, state=JobState.RUNNING, submitted=1.0, submitter=NASTY)
    for shown in (
        top_cmd._queues(Census(queues={NASTY: 1}, oldest={NASTY: 1.0})),
        top_cmd._workers(Census(workers=[worker])),
        top_cmd._jobs([record], 2.0),
    ):
        console.print(shown)
    assert "/x[/y]" in text.getvalue() and "[/red][link=x]" in text.getvalue()
    assert not set("\x1b\x07\u202e") & set(text.getvalue())


@pytest.mark.parametrize("stage", ["", NASTY])
def test_progress_bar_shows_names_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    monkeypatch.setattr(progress_view, "_BAR_AFTER", 0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    with progress_view.ProgressView("bar") as view:
        view.show(Progress(state=JobState.RUNNING, kind=NASTY, stage=stage))
        view._bar.refresh()
    _, err = capsys.readouterr()
    assert "[/red][link=x]" in err
    assert not {"\x07", "\u202e"} & set(err) and "\x1b]" not in err


RECORD = JobRecord(
    id="job",
    kind=NASTY,
    traffic=NASTY,
    submitter=NASTY,
    request={NASTY: NASTY, "list": [NASTY]},
    state=JobState.FAILED,
    stage=NASTY,
    submitted=1.0,
    error=JobError(type="RequestError", message=NASTY),
    result={"text": NASTY},
)


class Farm:
    def jobs(self) -> list[JobRecord]:
        return [RECORD]

    def job(self, job_id: str) -> Farm:
        return self

    def record(self) -> JobRecord:
        return RECORD


@pytest.mark.parametrize(("args", "lines"), [(("ls",), 2), (("show", "job"), 11)])
def test_record_of_a_job_is_printed_as_printable_text(
    layerfarm: Run, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], lines: int
) -> None:
    monkeypatch.setattr(jobs_cmd, "farm_of", lambda session: Farm())
    ran = layerfarm("jobs", *args)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", lines)
    assert printable(ran.out) and "\\x1b]0;owned\\x07[/red][link=x]\\r\\u202e" in ran.out


def printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def blob(store: Path) -> Descriptor:
    """A blob with a tag that another tool set."""
    blob = Layout(store).put(b"x", MEDIA_TYPE_LAYER)
    index = (store / "index.json").read_text()
    name = {"org.opencontainers.image.ref.name": NASTY + "\n"}
    entry = blob.model_dump(by_alias=True, exclude_none=True) | {"annotations": name}
    (store / "index.json").write_text(json.dumps(json.loads(index) | {"manifests": [entry]}))
    return blob


def test_tag_that_another_tool_gave_is_listed_on_one_line(layerfarm: Run, blob: Descriptor) -> None:
    ran = layerfarm("ls", "--layout", "store")
    assert ran.code == 0 and ran.out.count("\n") == 1
    assert printable(ran.out) and "\\x1b" in ran.out


def test_tag_and_job_that_keep_a_blob_are_named_on_one_line_each(layerfarm: Run, store: Path, blob: Descriptor) -> None:
    Leases(store).add("job", 60, [blob.digest])
    leases = store / ".layerfarm/leases"
    (leases / "job").rename(leases / f"{NASTY}\n".replace("/", ""))
    ran = layerfarm("gc", "--layout", "store", "--grace=0s", "--why", blob.digest)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 3)
    assert printable(ran.out) and ran.out.count("\\x1b") == 2
