"""A small catalog for pictures and browsers: two repositories of packages, and images of every outcome."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from layerfarm.jobs.store import Layout
from tests.catalog.databases import apk_tree
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import manifest

TAGS = 5
CATALOG = """\
store: store
sources: [{layout: images}]
policies:
  - {match: "base/*", do: {transform: keep}}
  - {match: "*broken*", do: {transform: squash, keep: 9}}
  - {match: "*", do: {transform: rechunk, compress: "zstd:chunked", only-if-saves: off}}
"""


def sample(directory: Path) -> Path:
    """Create the images and the catalog file; return its path."""
    layout = Layout.create(directory / "images")
    for repository in ("team/front", "team/database"):
        for day in range(1, TAGS + 1):
            own = ("web", "language") if repository == "team/front" else ("data",)
            code = (f"srv/{repository}/code", f"{repository} {day}\n".encode() * 3000)
            model = ("srv/model.bin", b"".join(number.to_bytes(4, "big") for number in range(200_000)))
            image(
                layout,
                [_packages(day, own, repository.replace("/", "-")), tar(code, model)],
                tag=f"{repository}:1.{day}",
                created=f"2026-03-0{day}T00:00:00Z",
            )
    image(layout, [tar(("etc/os-release", b"ID=sample\n"))], tag="base/sample:12")
    image(layout, [tar(("etc/os-release", b"ID=sample\n"))], tag="team/broken:1.0")
    layout.tag("charts/front:1.0", manifest(layout, "application/vnd.cncf.helm.config.v1+json", b"a chart"))
    path = directory / "web.yaml"
    path.write_text(CATALOG)
    return path


def _packages(day: int, own: tuple[str, ...], owner: str) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        apk_tree(root, day, own=own, owner=owner)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for path in sorted(root.rglob("*")):
                archive.add(path, path.relative_to(root).as_posix(), recursive=False, filter=_plain)
    return out.getvalue()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 1_700_000_000
    member.mode = 0o755 if member.isdir() else 0o644
    return member
