"""The server of catalogs with a runner that only remembers: answers, bounds, coalescing, failures, restarts."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.serve.app import LARGEST, make_app
from layerfarm.worker.catalog.serve.inbox import Inbox
from layerfarm.worker.catalog.serve.keeper import Keeper
from layerfarm.worker.catalog.serve.metrics import ServeMetrics
from layerfarm.worker.catalog.serve.runner import Outcome
from layerfarm.worker.catalog.serve.times import Times

AT_ONCE = Times(settle=0.0)
SECRET = b"the secret of the tests"
SECRETS = dict.fromkeys(("distribution", "github", "quay", "zot"), (SECRET,))
TOKEN = {"authorization": f"Bearer {SECRET.decode()}"}
ANY = b'{"events": [], "repository": "team/web", "zen": "A notification of distribution, Quay and GitHub."}'
FILE = """
store: {store}
sources: [{{registry: 'docker://h/team', repositories: [{repositories}]}}]
policies: [{{match: '*', do: {{transform: keep}}}}]
{more}
"""


class Remembering:
    """Remembers the names of each run, and has them fail or last as the test wants."""

    def __init__(self) -> None:
        self.runs: list[tuple[bool, list[str]]] = []
        self.outcome: Callable[[Collection[str]], Outcome] = lambda names: Outcome()
        self.during: Callable[[], Awaitable[None]] | None = None

    async def run(self, file: Path, names: Collection[str], whole: bool, stop: asyncio.Event) -> Outcome:
        self.runs.append((whole, sorted(names)))
        if self.during is not None:
            await self.during()
        return self.outcome(names)


class Site:
    """A catalog of ``docker://h/team`` that was run before, and its server without sockets."""

    def __init__(self, directory: Path, *, repositories: str = "web", more: str = "", times: Times = AT_ONCE) -> None:
        self.file = directory / "c.yaml"
        self.file.write_text(FILE.format(store="store", repositories=repositories, more=more))
        path = directory / "store"
        self.store = Layout.open(path) if path.exists() else Layout.create(path)
        self.runner = Remembering()
        self.metrics = ServeMetrics()
        self.keeper = Keeper(self.file, self.store, self.runner, self.metrics, times)
        self.stop = asyncio.Event()
        self.app = make_app([self.keeper], SECRETS, self.metrics, self.stop, times)
        (self.store.path / ".layerfarm/catalog/c/last-run.json").write_text("{}")

    @contextmanager
    def open(self) -> Iterator[Site]:
        try:
            yield self
        finally:
            self.keeper.close()

    async def send(
        self,
        body: bytes | list[bytes],
        kind: str = "distribution",
        headers: dict[str, str] | None = None,
        query: str = "",
        method: str = "POST",
    ) -> tuple[int, dict[str, Any]]:
        """Send a request, its body in parts; return status and answer."""
        parts = [body] if isinstance(body, bytes) else body
        sent = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        sent.append({"type": "http.request", "body": b"", "more_body": False})
        answer: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return sent.pop(0) if sent else await asyncio.Event().wait() or {}

        async def reply(message: Any) -> None:
            answer.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": f"/notifications/{kind}" if "/" not in kind else kind,
            "query_string": query.encode(),
            "headers": [
                (name.encode(), value.encode()) for name, value in (TOKEN if headers is None else headers).items()
            ],
        }
        await self.app(scope, receive, reply)
        text = b"".join(part.get("body", b"") for part in answer[1:])
        return answer[0]["status"], json.loads(text) if text.startswith(b"{") else {"text": text.decode()}

    async def until_idle(self, turn: asyncio.Semaphore | None = None) -> None:
        """Keep the catalog until nothing waits."""
        keeping = asyncio.ensure_future(self.keeper.keep(self.stop, turn or asyncio.Semaphore(1)))
        while 'layerfarm_catalog_pending{catalog="c"} 0.0' not in self.metrics.text().decode():
            await asyncio.sleep(0.01)
            assert not keeping.done()
        self.stop.set()
        await keeping
        self.stop.clear()


def push(*tags: str, repository: str = "team/web", identity: str = "") -> bytes:
    events = [
        {
            "id": f"{identity} {tag}" if identity else None,
            "action": "push",
            "target": {"repository": repository, "tag": tag},
        }
        for tag in tags
    ]
    return json.dumps({"events": events}).encode()


def on(site: Site, steps: Callable[[Site], Awaitable[None]]) -> None:
    with site.open():
        asyncio.run(steps(site))


def test_a_push_is_acknowledged_and_run_once(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        status, answer = await site.send(push("1", "2", identity="a"))
        assert (status, answer["accepted"]) == (202, 2)
        status, answer = await site.send(push("3", repository="team/other", identity="b"))
        assert (status, answer["unmatched"]) == (202, 1)
        assert (await site.send(push("1", "2", identity="a")))[1]["repeated"] == 2
        await site.until_idle()
        assert site.runner.runs == [(False, ["team/web:1", "team/web:2"])]
        # A repetition after the run is no push either.
        assert (await site.send(push("1", "2", identity="a")))[1]["repeated"] == 2
        assert site.metrics.text().count(b'layerfarm_catalog_pending{catalog="c"} 0.0') == 1

    on(Site(tmp_path), steps)


def test_a_catalog_that_was_never_run_is_run_whole(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        (site.store.path / ".layerfarm/catalog/c/last-run.json").unlink()
        await site.send(push("1"))
        await site.until_idle()
        assert site.runner.runs == [(True, ["team/web:1"])]

    on(Site(tmp_path), steps)


def test_a_push_during_the_run_of_its_image_is_run_again(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        async def again() -> None:
            site.runner.during = None
            await site.send(push("1", identity="second"))

        site.runner.during = again
        await site.send(push("1", identity="first"))
        await site.until_idle()
        assert site.runner.runs == [(False, ["team/web:1"])] * 2

    on(Site(tmp_path), steps)


@pytest.mark.parametrize(
    "outcome", [Outcome(failed={"team/web:1": "no space"}), Outcome(error="farm is away"), Outcome(stopped=True)]
)
def test_a_failed_or_stopped_run_keeps_its_notification_for_the_next_server(tmp_path: Path, outcome: Outcome) -> None:
    async def steps(site: Site) -> None:
        site.runner.outcome = lambda names: outcome
        await site.send(push("1", "2"))
        keeping = asyncio.ensure_future(site.keeper.keep(site.stop, asyncio.Semaphore(1)))
        while not site.runner.runs:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        site.stop.set()
        await keeping
        assert len(site.runner.runs) == 1

    on(Site(tmp_path), steps)
    left = ["team/web:1"] if outcome.failed else ["team/web:1", "team/web:2"]

    async def after(site: Site) -> None:
        await site.until_idle()
        assert site.runner.runs == [(False, left)]

    on(Site(tmp_path), after)


def test_a_schedule_runs_everything_and_is_remembered(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        await site.send(push("1"))
        await site.until_idle()
        assert site.runner.runs == [(True, ["team/web:1"])]

    on(Site(tmp_path, more="schedule: {every: 6h}"), steps)

    async def after(site: Site) -> None:
        await site.send(push("2"))
        await site.until_idle()
        assert site.runner.runs == [(False, ["team/web:2"])]

    on(Site(tmp_path, more="schedule: {every: 6h}"), after)


def test_a_changed_catalog_file_is_read_and_a_broken_one_is_not(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        text = site.file.read_text()
        site.file.write_text("not: [a catalog")
        assert (await site.send(push("1")))[1]["accepted"] == 1
        site.file.write_text(text.replace("web", "lib, web"))
        assert (await site.send(push("1", repository="team/lib")))[1]["accepted"] == 1

    on(Site(tmp_path), steps)


@pytest.mark.parametrize(
    ("kind", "headers", "query", "status"),
    [
        ("distribution", {}, "", 401),
        ("distribution", {"authorization": "Bearer wrong"}, "", 401),
        ("distribution", {}, f"token={SECRET.decode()}", 401),
        ("quay", {}, f"token={SECRET.decode().replace(' ', '+')}", 202),
        ("quay", {}, "token=wrong", 401),
        ("harbor", TOKEN, "", 404),
        ("../metrics", TOKEN, "", 404),
        ("github", TOKEN, "", 401),
        (
            "github",
            {"x-hub-signature-256": f"sha256={hmac.new(SECRET, ANY, hashlib.sha256).hexdigest()}"},
            "",
            202,
        ),
    ],
)
def test_only_those_who_have_the_secret_are_heard(
    tmp_path: Path, kind: str, headers: dict[str, str], query: str, status: int
) -> None:
    async def steps(site: Site) -> None:
        assert (await site.send(ANY, kind, headers, query))[0] == status

    on(Site(tmp_path), steps)


def test_a_notification_without_events_is_accepted_and_runs_nothing(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        assert (await site.send(b'{"events": []}'))[0] == 202
        assert site.runner.runs == []

    on(Site(tmp_path), steps)


def test_requests_that_are_no_notification_are_refused(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        assert (await site.send(b"no JSON"))[0] == 400
        answer = {"result": "malformed", "message": "not a notification of distribution: it has no events"}
        assert await site.send(b"{}") == (400, answer)
        assert (await site.send(push(*(f"t{number}" for number in range(1001)))))[0] == 413
        assert (await site.send(b"{}", headers=TOKEN | {"content-length": str(LARGEST + 1)}))[0] == 413
        assert (await site.send([b"x" * 65536] * (LARGEST // 65536 + 1)))[0] == 413
        assert (await site.send(b"", method="GET"))[0] == 405
        assert (await site.send(b"", "/elsewhere"))[0] == 404
        assert site.runner.runs == []

    on(Site(tmp_path), steps)


def test_a_client_that_sends_its_body_slowly_is_not_waited_for(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/notifications/zot",
            "query_string": b"",
            "headers": [(b"authorization", TOKEN["authorization"].encode())],
        }
        answer: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def reply(message: Any) -> None:
            answer.append(message)

        await site.app(scope, receive, reply)
        assert answer[0]["status"] == 408

    on(Site(tmp_path, times=AT_ONCE._replace(body=0.05)), steps)


def test_a_notification_that_cannot_be_recorded_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(site: Site) -> None:
        def full(*_: Any) -> None:
            raise StoreError("inbox cannot be written, No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Inbox, "_append", full)
            assert (await site.send(push("1", identity="a")))[0] == 503
        assert (await site.send(push("1", identity="a")))[1]["accepted"] == 1

    on(Site(tmp_path), steps)


def test_a_server_that_stops_takes_nothing_and_is_not_healthy(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        assert await site.send(b"", "/healthz", method="GET") == (200, {"status": "ok"})
        site.stop.set()
        assert (await site.send(b"", "/healthz", method="GET"))[0] == 503
        assert (await site.send(push("1")))[0] == 503

    on(Site(tmp_path), steps)


def test_metrics_count_requests_events_and_runs(tmp_path: Path) -> None:
    async def steps(site: Site) -> None:
        await site.send(push("1", "2", identity="a"))
        await site.send(push("1", identity="a"))
        await site.send(push("1", repository="team/other"))
        await site.send(json.dumps({"events": [{"action": "pull"}]}).encode())
        await site.send(b"", headers={})
        await site.until_idle()
        _, answer = await site.send(b"", "/metrics", method="GET")
        samples = dict(line.rsplit(" ", 1) for line in answer["text"].splitlines() if not line.startswith("#"))
        events = 'layerfarm_catalog_events_total{registry="distribution",result='
        assert samples[f'{events}"accepted"}}'] == "2.0"
        assert samples[f'{events}"repeated"}}'] == samples[f'{events}"unmatched"}}'] == "1.0"
        assert samples[f'{events}"ignored"}}'] == "1.0"
        requests = 'layerfarm_catalog_notifications_total{registry="distribution",result='
        assert (samples[f'{requests}"accepted"}}'], samples[f'{requests}"unauthorized"}}']) == ("4.0", "1.0")
        assert samples['layerfarm_catalog_run_seconds_count{catalog="c",kind="part",result="succeeded"}'] == "1.0"
        assert float(samples['layerfarm_catalog_last_success_timestamp_seconds{catalog="c"}']) > 1.7e9

    on(Site(tmp_path), steps)
