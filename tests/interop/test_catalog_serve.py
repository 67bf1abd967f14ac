"""``layerfarm catalog serve`` beside a real registry that sends its notifications to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.registry import Registry
from tests.started import for_later_tests
from tests.unit.image.images import image, tar

Program = Callable[[str], str]
Layerfarm = Callable[..., tuple[int, str, str]]
CLIENT = Skopeo(Access.model_validate({"tls-verify": False}))
TOKEN = "the token of the registry of this test"
DEADLINE = 400.0


class Server:
    """``layerfarm catalog serve`` of one catalog file; may be killed and started again."""

    def __init__(self, directory: Path, file: Path) -> None:
        self._file = file
        self._directory = directory
        self.log = directory / "serve.log"
        (directory / "secrets").mkdir()
        (directory / "secrets/distribution").write_text(TOKEN)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, settle: str = "0.2s") -> None:
        command = [Path(sys.executable).with_name("layerfarm"), "catalog", "serve", self._file, "--settle", settle]
        command += ["--listen", f"127.0.0.1:{self.port}", "--secrets", self._directory / "secrets"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}
        with for_later_tests(), self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.until(lambda: self.get("/healthz") == '{"status":"ok"}')

    def stop(self, number: int) -> int:
        """Send a signal, and return the exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        return process.wait(DEADLINE)

    def kill(self) -> None:
        if self._process is not None:
            self.stop(signal.SIGKILL)

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.read().decode())
        except OSError:
            return ""

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; ``name`` may have some labels."""
        plain, _, labels = name.rstrip("}").partition("{")
        found = re.findall(rf"^{plain}(?:\{{(.*)\}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        return sum(
            float(value) for given, value in found if all(one in given for one in filter(None, labels.split(",")))
        )

    def until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not ready():
            assert self._process is None or self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def is_idle(self) -> bool:
        return self.metric("layerfarm_catalog_pending") == 0

    def runs(self) -> list[tuple[str, int]]:
        """The runs that ended, by the log: the images they were for, and the number of failed ones."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [(line["images"], line["failed"]) for line in lines if line["event"] == "run ended"]


@pytest.fixture
def origin(tmp_path: Path) -> Layout:
    """A layout with the images 1.0 to 1.3, on one base."""
    layout = Layout.create(tmp_path / "origin")
    base = tar(("base", b"base\n" * 5_000))
    for tag in ("1.0", "1.1", "1.2", "1.3"):
        image(layout, [base, tar(("app", os.urandom(1000)))], tag=tag)
    return layout


@pytest.fixture
def served(program: Program, tmp_path: Path, origin: Layout, layerfarm: Layerfarm) -> Iterator[tuple[Server, Registry]]:
    """A registry with team/app:1.0, which a run has transformed; and the server that it notifies, not started."""
    program("skopeo")
    server = Server(tmp_path, tmp_path / "team.yaml")
    with Registry(
        tmp_path / "registry", program("docker-registry"), (f"{server.address}/notifications/distribution", TOKEN)
    ) as registry:
        (tmp_path / "team.yaml").write_text(
            f"store: store\nsources: [{{registry: docker://{registry.host}/team, repositories: [app, lib]}}]\n"
            f"policies: [{{match: '*', do: {{transform: recompress, compress: zstd}}}}]\n"
            f"destination: {{registry: docker://{registry.host}/new}}\naccess: {{tls-verify: false, attempts: 4}}\n"
        )
        registry.put(origin.path, "1.0", "team/app:1.0")
        registry.put(origin.path, "1.0", "team/lib:1.0")
        assert layerfarm("catalog", "run", tmp_path / "team.yaml")[0] == 0
        yield server, registry
        server.kill()


def published(registry: Registry, name: str) -> str:
    return CLIENT.digest(f"docker://{registry.host}/new/{name}")


def made(tmp_path: Path, name: str) -> str:
    (found,) = Layout.open(tmp_path / "store").find(f"new/{name}")
    return found.digest


def test_a_push_is_transformed_and_published_in_one_run(
    served: tuple[Server, Registry], origin: Layout, tmp_path: Path
) -> None:
    server, registry = served
    server.start()
    server.until(lambda: server.metric('layerfarm_catalog_events_total{result="unmatched"}') >= 1 and server.is_idle())
    before = server.runs()
    registry.put(origin.path, "1.1", "team/app:1.1")
    server.until(lambda: len(server.runs()) > len(before) and server.is_idle())
    assert server.runs() == [*before, (1, 0)]
    assert published(registry, "team/app:1.1") == made(tmp_path, "team/app:1.1")
    registry.put(origin.path, "1.2", "team/absent:1.2")
    registry.put(origin.path, "1.2", "team/app:1.1")
    server.until(lambda: len(server.runs()) > len(before) + 1 and server.is_idle())
    assert server.runs() == [*before, (1, 0), (1, 0)]
    assert published(registry, "team/app:1.1") == made(tmp_path, "team/app:1.1")
    assert server.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_notification_that_was_acknowledged_is_run_after_a_restart(
    served: tuple[Server, Registry], origin: Layout, tmp_path: Path, number: int
) -> None:
    server, registry = served
    server.start("1h")
    for tag in ("1.1", "1.2", "1.3"):
        registry.put(origin.path, tag, f"team/app:{tag}")
        accepted = f"new/team/app:{tag}"
    server.until(lambda: server.metric("layerfarm_catalog_pending") >= 3)
    server.stop(number)
    assert not Layout.open(tmp_path / "store").find(accepted)
    server.start()
    server.until(lambda: bool(server.runs()) and server.is_idle())
    for tag in ("1.1", "1.2", "1.3"):
        assert published(registry, f"team/app:{tag}") == made(tmp_path, f"team/app:{tag}")
    server.stop(signal.SIGTERM)
    server.start()
    assert server.is_idle()
