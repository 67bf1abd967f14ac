"""A terminal that is closed while ``layerfarm unpack`` runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from tests.alarm import no_hanging
from tests.unit.image.images import image, tar

PROGRAM = """
import sys
from layerfarm.jobs.layer.extract import Extractor

apply, fifo = Extractor.apply, sys.argv.pop(1)

def apply_and_wait(self, stream):
    apply(self, stream)
    open(fifo, "rb").read()

Extractor.apply = apply_and_wait
from layerfarm.worker.cli.__main__ import program
sys.exit(program())
"""
"""The program, which waits for the end of a fifo when it has written the first layer."""


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["unpack"], "new"),
        (["unpack"], "no/such/bundle"),
        (["unpack"], "empty"),
        (["raw", "unpack"], "new"),
        (["raw", "unpack"], "empty"),
    ],
)
def test_a_hangup_during_unpack_leaves_nothing(tmp_path: Path, command: list[str], place: str) -> None:
    layout = Layout.create(tmp_path / "store")
    image(layout, [tar(("etc", None), ("etc/f", b"x")), tar(("g", b"y"))])
    (tmp_path / "beside/empty").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = {path: path.lstat().st_ino for path in (tmp_path / "beside").rglob("*")}
    rootless = ["--rootless"] if os.geteuid() else []
    arguments = [*command, *rootless, f"--image={layout.path}:t", str(tmp_path / "beside" / place)]
    with no_hanging(60):
        running = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, fifo, *arguments],
            env=os.environ | {"HOME": str(tmp_path / "home")},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            with fifo.open("wb"):  # open only when the program waits for its end
                during = {path.name for path in (tmp_path / "beside").rglob("*")}
                os.killpg(running.pid, signal.SIGHUP)
                _, err = running.communicate()
        finally:
            running.kill()
            running.wait()
    assert "f" in during and (running.returncode, err) == (128 + signal.SIGHUP, b"")
    assert {path: path.lstat().st_ino for path in (tmp_path / "beside").rglob("*")} == before
