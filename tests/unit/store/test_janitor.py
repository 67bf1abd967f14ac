from __future__ import annotations

import os
from pathlib import Path

from layerfarm.jobs.store import Layout, janitor

HOUR = 3600.0


def aged(path: Path) -> Path:
    os.utime(path, (1, 1))
    return path


def test_janitor_removes_old_files(layout: Layout) -> None:
    private = layout.path / ".layerfarm"
    (private / "work" / "old" / "deep").mkdir(parents=True)
    (private / "work" / "old" / "deep" / "file").write_bytes(b"12345")
    (private / "work" / "alive").mkdir()
    (private / "work" / "alive" / "fragment").write_bytes(b"new")
    for path in (private / "work" / "old" / "deep", private / "work" / "old", private / "work" / "alive"):
        aged(path)
    (private / "ingest" / "old").touch()
    (private / "ingest" / "new").touch()
    aged(private / "ingest" / "old")
    removed = janitor(layout.path, HOUR)
    assert removed == [(private / "ingest" / "old", 0), (private / "work" / "old", 5)]
    assert os.listdir(private / "ingest") == ["new"]
    assert os.listdir(private / "work") == ["alive"]


def test_janitor_never_follows_a_link(layout: Layout, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    link = layout.path / ".layerfarm" / "ingest" / "link"
    link.symlink_to(precious)
    os.utime(link, (1, 1), follow_symlinks=False)
    assert janitor(layout.path, HOUR) == [(link, len(str(precious)))]
    assert os.listdir(precious) == ["file"]


def test_janitor_of_a_layout_that_layerfarm_never_wrote(tmp_path: Path) -> None:
    assert janitor(tmp_path, HOUR) == []
