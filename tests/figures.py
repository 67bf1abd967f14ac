"""``make man``: the pictures of docs/, drawn from the boxes and arrows below; screenshots are in screenshots.py.

They are narrow enough for a phone, and follow the colours that the reader's system prefers.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from layerfarm.worker.jobstore.states import Phase
from tests import screenshots

FIGURES: Final = Path(__file__).resolve().parents[1] / "docs/figures"
_WIDTH: Final = 400
_LINE: Final = 17
_STYLE: Final = """\
text { font: 13px sans-serif; fill: #222; text-anchor: middle }
.note { fill: #555; font-style: italic }
rect { fill: #e0f2f1; stroke: #00897b }
path { fill: none; stroke: #555 }
marker path { fill: #555; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #eee } .note { fill: #bbb } rect { fill: #1d3b39; stroke: #4db6ac } path { stroke: #bbb }
  marker path { fill: #bbb }
}
"""


class Box(NamedTuple):
    """A box, or a note without a border; ``x`` and ``y`` are those of its upper left corner, in pixels."""

    x: int
    y: int
    width: int
    text: str
    note: bool = False

    @property
    def height(self) -> int:
        return _LINE * len(self.text.splitlines()) + 14


class Arrow(NamedTuple):
    """A line with a head, through these points."""

    points: tuple[tuple[int, int], ...]


def down(x: int, start: int, end: int) -> Arrow:
    return Arrow(((x, start), (x, end)))


def right(y: int, start: int, end: int) -> Arrow:
    return Arrow(((start, y), (end, y)))


STATE_BOXES: Final = {
    Phase.QUEUED: Box(140, 4, 120, "queued"),
    Phase.RUNNING: Box(140, 80, 120, "running"),
    Phase.COMMITTING: Box(140, 156, 120, "committing"),
    Phase.ENDING: Box(140, 232, 120, "ending"),
    Phase.KEPT: Box(270, 308, 120, "kept"),
    Phase.ENDED: Box(100, 308, 120, "ended"),
}
STATE_ARROWS: Final = {
    (Phase.QUEUED, Phase.RUNNING): down(200, 35, 78),
    (Phase.QUEUED, Phase.ENDED): Arrow(((140, 20), (20, 20), (20, 331), (98, 331))),
    (Phase.RUNNING, Phase.COMMITTING): down(200, 111, 154),
    (Phase.RUNNING, Phase.ENDING): Arrow(((260, 103), (290, 103), (290, 248), (262, 248))),
    (Phase.COMMITTING, Phase.ENDING): down(200, 187, 230),
    (Phase.ENDING, Phase.ENDED): down(160, 263, 306),
    (Phase.ENDING, Phase.KEPT): Arrow(((240, 263), (240, 286), (310, 286), (310, 306))),
    (Phase.KEPT, Phase.ENDED): Arrow(((270, 324), (222, 324))),
    (Phase.KEPT, Phase.RUNNING): Arrow(((370, 308), (370, 89), (262, 89))),
    (Phase.ENDED, Phase.RUNNING): Arrow(((98, 317), (60, 317), (60, 96), (138, 96))),
}

FIGURES_OF_DOCS: Final[dict[str, tuple[str, int, tuple[Box | Arrow, ...]]]] = {
    "build": (
        "The stages of a build: survey, hash, compare, pack, publish",
        400,
        (
            Box(100, 4, 200, "survey\nnames and metadata"),
            Arrow(((200, 52), (200, 72), (80, 72), (80, 94))),
            down(200, 52, 94),
            Arrow(((200, 52), (200, 72), (320, 72), (320, 94))),
            Box(20, 96, 112, "hash shard 1"),
            Box(144, 96, 112, "hash shard 2"),
            Box(268, 96, 112, "hash shard …"),
            down(80, 128, 164),
            down(200, 128, 164),
            down(320, 128, 164),
            Box(20, 166, 360, "compare\nmerged shards with the manifest of the base"),
            down(200, 215, 246),
            Box(20, 248, 360, "pack\ntar, SHA-256, compress, SHA-256"),
            down(200, 297, 328),
            Box(20, 330, 360, "publish\nconfig, manifest, tag"),
        ),
    ),
    "store": (
        "A store: index.json refers to manifests, a manifest to a config and layers",
        250,
        (
            Box(20, 60, 92, "index.json"),
            right(76, 112, 158),
            Box(112, 40, 46, "tag", note=True),
            Box(160, 60, 92, "manifest"),
            right(76, 252, 298),
            Arrow(((270, 76), (270, 24), (298, 24))),
            Arrow(((270, 76), (270, 128), (298, 128))),
            Box(300, 8, 80, "config"),
            Box(300, 60, 80, "layer"),
            Box(300, 112, 80, "layer"),
            Box(10, 150, 380, "read by layerfarm, skopeo, umoci, buildah", note=True),
            Box(20, 190, 360, ".layerfarm/\nstaged files, locks, leases: layerfarm only"),
        ),
    ),
    "states": (
        "States of a job, from queued to ended; the table below lists every change",
        350,
        (*STATE_BOXES.values(), *STATE_ARROWS.values()),
    ),
    "sharing": (
        "Two jobs with equal work: one does it, the other waits for the result",
        230,
        (
            Box(20, 4, 160, "job A\nclaims the work"),
            Box(220, 4, 160, "job B\nfinds it claimed"),
            down(100, 53, 88),
            down(300, 53, 88),
            Box(20, 90, 160, "makes the layer"),
            Box(220, 90, 160, "waits"),
            down(100, 121, 158),
            down(300, 121, 158),
            Box(20, 160, 360, "the digest of one layer, for both"),
        ),
    ),
    "stat-cache": (
        "A repack compares each file with the stat cache: unchanged files are not read",
        250,
        (
            Box(60, 4, 280, "unpack\nrecords device, inode, size and times"),
            down(200, 53, 84),
            Box(60, 86, 280, "repack\ncompares them with the tree"),
            down(110, 135, 176),
            down(290, 135, 176),
            Box(20, 178, 170, "unchanged:\nnot read"),
            Box(210, 178, 170, "changed, or too recent:\nhashed"),
        ),
    ),
    "catalog": (
        "A catalog: analyze each image, plan all together, transform each, verify, publish",
        400,
        (
            Box(60, 4, 280, "registries, layouts"),
            down(200, 35, 66),
            Box(60, 68, 280, "analyze\neach file's package, per image"),
            down(200, 117, 148),
            Box(60, 150, 280, "plan\nall images together"),
            down(200, 199, 230),
            Box(60, 232, 280, "transform\na job for each image"),
            down(200, 281, 312),
            Box(60, 314, 280, "verify, tag, push\nthe tree is that of the original"),
        ),
    ),
}


def drawn(title: str, height: int, parts: tuple[Box | Arrow, ...]) -> str:
    """One picture as SVG."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' role="img"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for part in parts:
        lines += _box(part) if isinstance(part, Box) else [_arrow(part)]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _box(box: Box) -> list[str]:
    shape = f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="4"/>'
    kind = ' class="note"' if box.note else ""
    middle = box.x + box.width // 2
    text = [
        f'<text x="{middle}" y="{box.y + 20 + _LINE * number}"{kind}>{escape(line)}</text>'
        for number, line in enumerate(box.text.splitlines())
    ]
    return text if box.note else [shape, *text]


def _arrow(arrow: Arrow) -> str:
    points = " ".join(f"{x} {y}" for x, y in arrow.points)
    return f'<path d="M{points}" marker-end="url(#head)"/>'


def figures() -> dict[str, str]:
    """Return the content of each file of docs/figures."""
    return {
        **{f"{name}.svg": drawn(*figure) for name, figure in FIGURES_OF_DOCS.items()},
        "top.svg": screenshots.top(),
        "report.svg": screenshots.report(),
        "report.html": screenshots.report_page(),
    }


def main() -> int:
    """Draw all pictures again."""
    FIGURES.mkdir(exist_ok=True)
    for name, text in figures().items():
        (FIGURES / name).write_text(text)
    return 0


if __name__ == "__main__":
    main()
