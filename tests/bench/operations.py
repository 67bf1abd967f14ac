"""Measure each operation by layerfarm and by its peers, in one run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from layerfarm.worker.embedded import EmbeddedFarm
from tests.bench.measure import Run, Series, largest_below
from tests.bench.place import Command, Place, quiet


@dataclass
class Comparison:
    """One operation on one tree by several subjects, the first of which the others are held against."""

    operation: str
    tree: str
    on: str
    """The file system of the scratch space."""
    series: dict[str, Series]
    targets: dict[str, float] = field(default_factory=dict)
    """For each subject with a target: the ratio of its wall time to the first subject's."""
    size_targets: dict[str, float] = field(default_factory=dict)
    """The same for the size of what it makes."""
    most_seconds: dict[str, float] = field(default_factory=dict)
    """For each subject with such a target: its wall time."""
    most_memory: dict[str, float] = field(default_factory=dict)
    """For each subject with such a target: bytes of its largest process."""
    limit: str = ""
    """The subject that does the least of the operation with the plainest means; all wall times are held against it."""
    limit_targets: dict[str, float] = field(default_factory=dict)
    """For each subject with such a target: the ratio of its wall time to that subject's."""


def hash_to_manifest(place: Place) -> Comparison:
    """The tree's manifest, against the plainest way to hash its files with two processes."""
    files = 'find "$0" -type f -print0 | xargs -0 -n 256 -P2 sha256sum >/dev/null'
    manifest = place.scratch / "manifest"
    series = place.measure(
        {
            "sha256sum -P2": lambda: place.run(["sh", "-c", files, place.root]),
            "layerfarm": lambda: place.run(["layerfarm", "mtree", "--output", manifest, place.root]),
            "bsdtar mtree": lambda: place.run(
                ["bsdtar", "-cf", manifest, "--format=mtree", "--options=sha256", "-C", place.root, "."]
            ),
        }
    )
    return Comparison("hash to manifest", place.tree, place.on, series, {"layerfarm": 0.60}, limit="sha256sum -P2")


def layers_pulled_in_part(place: Place) -> Comparison:
    """A layer that clients pull in part, made of the tree's tar; skopeo uses the library of podman and buildah."""
    layout = place.layout()
    skopeo = place.scratch / "skopeo"
    formats = ("zstd:chunked", "estargz")

    def theirs() -> Run:
        shutil.rmtree(skopeo, ignore_errors=True)
        compress = ("--dest-compress", "--dest-compress-format", "zstd:chunked")
        return place.run(["skopeo", "copy", "--quiet", *compress, f"oci:{layout}:none", f"dir:{skopeo}"])

    def ours(codec: str) -> Callable[[], Run]:
        target = f"{layout}:{_tag(codec)}"
        return lambda: place.run(
            ["layerfarm", "recompress", "--image", f"{layout}:none", "--target", target, "--compress", codec]
        )

    series = place.measure({"skopeo zstd:chunked": theirs, **{f"layerfarm {codec}": ours(codec) for codec in formats}})
    series["skopeo zstd:chunked"].size = max(file.stat().st_size for file in skopeo.iterdir())
    for codec in formats:
        series[f"layerfarm {codec}"].size = place.layer_size(_tag(codec))
    shutil.rmtree(skopeo)
    chunked = "layerfarm zstd:chunked"
    return Comparison("layers pulled in part", place.tree, place.on, series, {chunked: 0.35}, {chunked: 1.03})


def _tag(codec: str) -> str:
    return codec.replace(":", "-")


def full_repack(place: Place) -> Comparison:
    """Every path of the tree is new."""
    layout = place.layout()
    umoci, ours = place.full_bundle("umoci"), place.full_bundle("layerfarm")

    def repack(codec: str) -> Callable[[], Run]:
        image = f"{layout}:full-{codec}"
        return lambda: place.run(["layerfarm", "repack", "--image", image, "--compress", codec, ours])

    def tar(program: str) -> Callable[[], Run]:
        return lambda: place.run(
            ["tar", "-C", place.root, "-I", program, "-cf", place.scratch / program.split()[0], "."]
        )

    series = place.measure(
        {
            "umoci gzip": lambda: place.run(["umoci", "repack", "--image", f"{layout}:full-umoci", umoci]),
            "layerfarm gzip": repack("gzip"),
            "layerfarm zstd": repack("zstd"),
            "tar pigz": tar("pigz"),
            _TAR_ZSTD: tar("zstd -T0"),
        }
    )
    for name, tag in (("umoci gzip", "umoci"), ("layerfarm gzip", "gzip"), ("layerfarm zstd", "zstd")):
        series[name].size = place.layer_size(f"full-{tag}")
    for name, program in (("tar pigz", "pigz"), (_TAR_ZSTD, "zstd")):
        series[name].size = (place.scratch / program).stat().st_size
    place.drop("full")
    return Comparison(
        "full repack",
        place.tree,
        place.on,
        series,
        {"layerfarm gzip": 0.28, "layerfarm zstd": 0.27},
        {"layerfarm gzip": 1.05, "layerfarm zstd": 0.85},
        limit=_TAR_ZSTD,
    )


def repack_unchanged(place: Place) -> Comparison:
    """Nothing has changed since the bundle was unpacked."""
    series = _repack(place, place.bundle("umoci", "gzip"), place.bundle("layerfarm", "gzip"), "same")
    place.drop("bundle")
    return Comparison("repack, no change", place.tree, place.on, series, {"layerfarm": 0.08}, limit=_LSTAT)


def repack_touched(place: Place) -> Comparison:
    """A line was added to each of 1,000 files."""
    series = _repack(place, place.touched_bundle("umoci"), place.touched_bundle("layerfarm"), "touched")
    place.drop("touched")
    return Comparison("repack, 1,000 touched", place.tree, place.on, series, {"layerfarm": 0.12}, limit=_LSTAT)


def _repack(place: Place, umoci: Path, ours: Path, tag: str) -> dict[str, Series]:
    layout = place.layout()
    return place.measure(
        {
            "umoci": lambda: place.run(["umoci", "repack", "--image", f"{layout}:{tag}-umoci", umoci]),
            "layerfarm": lambda: place.run(["layerfarm", "repack", "--image", f"{layout}:{tag}", ours]),
            "without stat cache": lambda: place.run(
                ["layerfarm", "repack", "--no-stat-cache", "--image", f"{layout}:{tag}", ours]
            ),
            _LSTAT: lambda: place.run(["find", ours / "rootfs", "-printf", "%s %T@ %C@ %p\n"]),
        }
    )


def unpack(place: Place) -> Comparison:
    """An image to a bundle with its manifest; layers by either tool."""
    layout = place.layout()
    series = place.measure(
        {
            "umoci": place.repeat("a", lambda path: ["umoci", "unpack", "--image", f"{layout}:umoci", path]),
            "umoci's gzip": place.repeat("b", lambda path: ["layerfarm", "unpack", "--image", f"{layout}:umoci", path]),
            "our gzip": place.repeat("c", lambda path: ["layerfarm", "unpack", "--image", f"{layout}:gzip", path]),
            "our zstd": place.repeat("d", lambda path: ["layerfarm", "unpack", "--image", f"{layout}:zstd", path]),
            "cp -a": place.repeat("e", lambda path: ["cp", "-a", place.root, path]),
        }
    )
    targets = {"umoci's gzip": 0.35, "our gzip": 0.19, "our zstd": 0.16}
    limits = {}
    if place.on == "ext4":
        targets, limits = {"our gzip": 0.38}, {"our gzip": 1.10}
    return Comparison("unpack", place.tree, place.on, series, targets, limit="cp -a", limit_targets=limits)


def raw_unpack(place: Place) -> Comparison:
    """An image to a tree, nothing else."""
    layout = place.layout()
    blob = place.layer_path("gzip")
    extract = 'mkdir "$0" && tar -xzf "$1" -C "$0"'
    series = place.measure(
        {
            "umoci": place.repeat("a", lambda path: ["umoci", "raw", "unpack", "--image", f"{layout}:umoci", path]),
            "layerfarm": place.repeat(
                "b", lambda path: ["layerfarm", "raw", "unpack", "--image", f"{layout}:umoci", path]
            ),
            "tar xzf": place.repeat("c", lambda path: ["sh", "-c", extract, path, blob]),
            "cp -a": place.repeat("d", lambda path: ["cp", "-a", place.root, path]),
        }
    )
    return Comparison("raw unpack", place.tree, place.on, series, limit="cp -a")


def insert(place: Place) -> Comparison:
    """The tree as one layer on top of an empty image."""
    layout = place.layout()

    def by(tool: str) -> Callable[[], Run]:
        target: Command = ["--image", f"{layout}:empty", "--tag", f"inserted-{tool}", place.root, "/"]
        return lambda: place.run([tool, "insert", *target])

    packed = place.scratch / "inserted"
    tar: Command = ["tar", "-C", place.root, "-I", "zstd -T0", "-cf", packed, "."]
    series = place.measure({"umoci": by("umoci"), "layerfarm": by("layerfarm"), _TAR_ZSTD: lambda: place.run(tar)})
    for tool in ("umoci", "layerfarm"):
        series[tool].size = place.layer_size(f"inserted-{tool}")
    series[_TAR_ZSTD].size = packed.stat().st_size
    return Comparison("insert", place.tree, place.on, series, {"layerfarm": 0.33}, {"layerfarm": 1.05}, limit=_TAR_ZSTD)


def collect_garbage(place: Place) -> Comparison:
    """A layout of which one image of the tree is kept and 200 small blobs are garbage."""
    kept = place.layout()

    def by(tool: str, *options: str) -> Callable[[], Run]:
        def subject() -> Run:
            layout = place.fresh(f"garbage-{tool}")
            quiet("cp", "-al", kept, layout)
            for number in range(200):
                (layout / "blobs/sha256" / f"{number:064x}").write_bytes(b"garbage %d" % number)
            try:
                return place.run([tool, "gc", *options, "--layout", layout])
            finally:
                place.fresh(f"garbage-{tool}")

        return subject

    series = place.measure({"umoci": by("umoci"), "layerfarm": by("layerfarm", "--grace", "0s")})
    return Comparison("gc", place.tree, place.on, series)


def through_the_farm(place: Place) -> Comparison:
    """The same build typed in a shell, and queued on a warm farm of one and of two processes."""
    # The sandbox of a worker holds on to the directory that it was allowed, not to its name.
    stores = place.fresh("farm-stores")
    stores.mkdir()
    layout = stores / "layout"
    build: list[str | Path] = [
        "layerfarm",
        "build",
        "--rootfs",
        place.root,
        "--image",
        f"{layout}:farm",
        "--progress",
        "none",
    ]

    def subject(farm: EmbeddedFarm | None) -> Callable[[], Run]:
        def build_anew() -> Run:
            # A job equal to an earlier one would find its layer done.
            shutil.rmtree(layout, ignore_errors=True)
            quiet("layerfarm", "init", "--layout", layout)
            found = place.run(build if farm is None else [*build, "--farm", farm.url])
            return found if farm is None else replace(found, peak_rss=largest_below(os.getpid()))

        return build_anew

    with ExitStack() as stack:
        subjects = {"local": subject(None)}
        for count in (1, 2):
            farm = stack.enter_context(
                EmbeddedFarm(concurrency=count, roots=[place.root], stores=[stores], state_dir=place.scratch)
            )
            subjects[f"farm of {count}"] = subject(farm)
        series = place.measure(subjects)
    place.fresh("farm-stores")
    local = series["local"].wall()
    return Comparison(
        "build",
        place.tree,
        place.on,
        series,
        {"farm of 2": (1.10 * local + 0.3) / local},
        most_memory={"farm of 1": MOST_MEMORY, "farm of 2": MOST_MEMORY},
    )


def start_up(place: Place) -> Comparison:
    """Commands of scripts that do next to nothing, on a layout of a few images."""
    layout = place.layout()
    image = f"{layout}:gzip"
    commands = {"stat": ["stat", "--image", image], "tag": ["tag", "--image", image, "again"]}
    commands["ls"] = ["ls", "--layout", str(layout)]
    subjects: dict[str, Callable[[], Run]] = {"umoci ls": lambda: place.run(["umoci", "ls", "--layout", layout])}
    for name, command in commands.items():
        subjects[name] = partial(place.run, ["layerfarm", *command])
    return Comparison(
        "start-up", place.tree, place.on, place.measure(subjects), most_seconds=dict.fromkeys(commands, 0.15)
    )


_TAR_ZSTD = "tar, zstd -T0"
_LSTAT = "find, lstat"

OPERATIONS: dict[str, Callable[[Place], Comparison]] = {
    "hash": hash_to_manifest,
    "repack": full_repack,
    "parts": layers_pulled_in_part,
    "unchanged": repack_unchanged,
    "touched": repack_touched,
    "unpack": unpack,
    "raw": raw_unpack,
    "insert": insert,
    "gc": collect_garbage,
    "farm": through_the_farm,
    "startup": start_up,
}
ON_DISK = ("repack", "unchanged", "unpack", "raw", "insert")
"""Operations that are measured on ext4 too: those whose time depends on the file system."""
OF_A_KIND = ("hash", "repack", "unchanged", "touched", "unpack", "raw", "insert")
"""Operations that are measured with each kind of tree; the others depend on the kind little."""
MOST_MEMORY = 400e6
"""Bytes of one process of a worker, for a tree of any size."""
SMALL_TREE_TARGET = 0.6
"""Share of umoci's wall time, process start included, for every operation on a small image."""
