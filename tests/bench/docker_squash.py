"""``python -m tests.bench.docker_squash``: squash beside docker-squash, in time and in what comes out.

docker-squash asks a Docker daemon for the image, an archive as ``docker save`` writes it. Here a stand-in for the
daemon hands such an archive over, so that the algorithms are compared and not the daemon.
docker-squash is installed from PyPI into an environment of its own under ``.cache``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.image import resolve
from layerfarm.jobs.image.layers import open_layer
from layerfarm.jobs.image.trees import stack_of
from layerfarm.jobs.relayer.equivalence import differences, facts_of
from layerfarm.jobs.store import Layout
from tests.bench import trees
from tests.unit.image.images import image
from tests.unit.layer.archives import archive, entry

CACHE = Path(".cache").absolute()
VERSION = "docker-squash==1.2.2"
RUNS = 3

STAND_IN = """
import json, logging, sys, tarfile
from docker_squash.squash import Squash

archive, output = sys.argv[1:]
with tarfile.open(archive) as tar:
    manifest = json.load(tar.extractfile("./manifest.json"))[0]
    config = json.load(tar.extractfile("./" + manifest["Config"]))
image = "sha256:" + manifest["Config"].removesuffix(".json")


class Daemon:
    def version(self):
        return {"Version": "20.10", "ApiVersion": "1.41"}

    def inspect_image(self, name):
        return {"Id": image}

    def history(self, name):
        steps = [{"Id": "<missing>"} for _ in config["history"]]
        steps[0]["Id"] = image
        return steps

    def get_image(self, name):
        stream = open(archive, "rb")
        return iter(lambda: stream.read(1 << 20), b"")


log = logging.getLogger("squash")
Squash(log, image, docker=Daemon(), output_path=output, tag="squashed:latest", load_image=False).run()
"""


def main() -> None:
    python = _environment()
    root = trees.get("minbase", CACHE / "bench")
    with tempfile.TemporaryDirectory(prefix="layerfarm-bench-", dir=CACHE) as directory:
        place = Path(directory)
        store = _image(root, place)
        archive = _saved(Layout.open(store), place)
        theirs, ours = place / "squashed.tar", f"{store}:flat"
        times: dict[str, list[float]] = {"docker-squash": [], "layerfarm squash": []}
        for _ in range(RUNS):
            times["docker-squash"].append(_timed(python, "-c", STAND_IN, archive, theirs))
            command = ("squash", "--image", f"{store}:app", "--compress", "none", "--target", ours)
            times["layerfarm squash"].append(_timed("layerfarm", *command))
        _run("skopeo", "copy", "-q", f"docker-archive:{theirs}", f"oci:{store}:theirs")
        print("| squash of minbase in 4 layers to one plain tar | seconds, best | paths that are not as they were |")
        print("|---|---|---|")
        for name, tag in (("docker-squash", "theirs"), ("layerfarm squash", "flat")):
            print(f"| {name} | {min(times[name]):.1f} | {_differing(Layout.open(store), tag)} |")
        print("\n| small images | docker-squash | layerfarm squash |\n|---|---|---|")
        for number, (what, layers) in enumerate(CASES.items()):
            print(f"| {what} | {' | '.join(_case(layers, place / str(number), python))} |")


def _case(layers: list[bytes], place: Path, python: Path) -> Iterator[str]:
    """Result of both tools for one small image."""
    place.mkdir()
    layout = Layout.create(place / "store")
    image(layout, layers, tag="app", history=[{"created_by": "x"}] * len(layers))
    theirs = place / "squashed.tar"
    for tag, commands in (
        (
            "theirs",
            [
                (python, "-c", STAND_IN, _saved(layout, place), theirs),
                ("skopeo", "copy", "-q", f"docker-archive:{theirs}", f"oci:{layout.path}:theirs"),
            ],
        ),
        ("flat", [("layerfarm", "squash", "--image", f"{layout.path}:app", "--target", f"{layout.path}:flat")]),
    ):
        try:
            for command in commands:
                _run(*command)
            differing = _differing(layout, tag)
        except (SystemExit, LayerfarmError) as error:
            yield f"fails: {str(error).splitlines()[-1][:80]}"
        else:
            yield "the same" if not differing else f"{differing} paths differ"


CASES = {
    "a file deleted and made again": [
        archive(entry("d/f", content=b"1")),
        archive(entry("d/.wh.f")),
        archive(entry("d/f", content=b"2")),
    ],
    "a hard link whose first name is deleted": [
        archive(entry("a", content=b"x"), entry("b", "hardlink", link="a")),
        archive(entry(".wh.a")),
    ],
    "a hard link to a lower layer": [
        archive(entry("a", content=b"x")),
        archive(entry("b", "hardlink", link="a")),
    ],
    "a name of two replaced": [
        archive(entry("a", content=b"x"), entry("b", "hardlink", link="a")),
        archive(entry("a", content=b"y")),
    ],
    "an opaque directory": [
        archive(entry("d/old", content=b"x"), entry("d/sub/old")),
        archive(entry("d/", "dir"), entry("d/.wh..wh..opq"), entry("d/new")),
    ],
    "a directory that became a link": [
        archive(entry("lib/", "dir"), entry("lib/a"), entry("usr/lib/b")),
        archive(entry("lib", "link", link="usr/lib")),
    ],
    "a file written through a link": [
        archive(entry("usr/lib/a"), entry("lib", "link", link="usr/lib")),
        archive(entry("lib/b", content=b"b")),
    ],
    "metadata of a directory changed": [
        archive(entry("d/", "dir", mode=0o755), entry("d/f")),
        archive(entry("d/", "dir", mode=0o700, uid=5, mtime=77)),
    ],
    "nanoseconds and xattrs": [
        archive(entry("f", pax={"mtime": "12.000000007"}, xattrs={"user.a": b"\xff"})),
        archive(entry("g")),
    ],
    "a directory replaced by a file, and back": [
        archive(entry("d/", "dir"), entry("d/f")),
        archive(entry("d", content=b"file")),
        archive(entry("d/", "dir", mode=0o711), entry("d/g")),
    ],
}
"""Ways in which a layer changes lower ones, each in an image of its own."""


def _image(root: Path, place: Path) -> Path:
    """The tree, and three layers that delete, link and replace."""
    store = place / "store"
    _run("layerfarm", "init", "--layout", store)
    _run("layerfarm", "build", "--rootfs", root, "--image", f"{store}:app")
    bundle = place / "bundle"
    _run("layerfarm", "unpack", "--image", f"{store}:app", bundle)
    rootfs = bundle / "rootfs"
    for command in (
        "rm -r usr/share/doc && cp -a usr/share/zoneinfo usr/share/zoneinfo.copy",
        "ln usr/bin/perl usr/bin/perl.linked && setfattr -n user.k -v v etc/hostname",
        "mkdir -p usr/share/doc && echo new >usr/share/doc/new && touch -d @1 usr/bin/perl && chmod 4755 usr/bin/dpkg",
    ):
        subprocess.run(["sh", "-ec", command], cwd=rootfs, check=True)
        _run("layerfarm", "repack", "--image", f"{store}:app", "--refresh-bundle", bundle)
    return store


def _saved(layout: Layout, place: Path) -> Path:
    """The image as ``docker save`` writes it: a directory for each layer, plain tars in them."""
    found = resolve(layout, "app")
    saved = place / "saved"
    saved.mkdir()
    config = f"{found.manifest.config.digest[7:]}.json"
    (saved / config).write_bytes(layout.read(found.manifest.config))
    for layer, diff_id in found.layers:
        directory = saved / diff_id[7:]
        directory.mkdir()
        (directory / "VERSION").write_text("1.0")
        (directory / "json").write_text(
            json.dumps({"id": diff_id[7:], "config": {}, "created": "1970-01-01T00:00:00Z"})
        )
        with open_layer(layout, layer, diff_id) as stream, (directory / "layer.tar").open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    layers = [f"{diff_id[7:]}/layer.tar" for _, diff_id in found.layers]
    manifest = [{"Config": config, "RepoTags": ["app:latest"], "Layers": layers}]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    archive = place / "saved.tar"
    _run("tar", "-cf", archive, "-C", saved, ".")
    return archive


def _differing(layout: Layout, tag: str) -> int:
    old, new = (stack_of(layout, resolve(layout, name)) for name in ("app", tag))
    return sum(1 for _ in differences(facts_of(old), facts_of(new)))


def _environment() -> Path:
    place = CACHE / "docker-squash"
    python = place / "bin" / "python"
    if not (place / "bin" / "docker-squash").exists():
        _run(sys.executable, "-m", "venv", place)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", VERSION, "setuptools<81")
    return python


def _timed(*command: str | Path) -> float:
    begin = time.monotonic()
    _run(*command)
    return time.monotonic() - begin


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{json.dumps([str(part)[:80] for part in command])} failed:\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main()
