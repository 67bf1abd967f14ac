"""Runs in a machine: works in a store, and checks it after power cuts and lost servers.

``python3 -m workload work LAYOUT SEED``: work without end; print ``{"tag", "digest"}`` after each tag that it sets.
``… tags LAYOUT NAME WRITERS TAGS``: set so many tags from each of so many processes, and print them the same way.
``… hold LAYOUT TAG begin|change|rename``: set a tag; before this step, the last two of which are done under the lock of
``index.json``, print ``held``, and wait for the file ``/tmp/go``.
``… late LAYOUT TAG``: store a blob, pause as above, set a tag that needs it, and print that if the blob has its name.
``… traffic LAYOUT``: print for each operation the requests that this client sends to its NFS servers.
``… put LAYOUT``: store a blob that no tag references, and print its digest.
``… read LAYOUT [TIMES]``: print ``reading``, then read the index without end, or so often, and print what is wrong.
``… check LAYOUT``: read the printed lines from stdin; print what is lost or damaged, a line each.
``… disks LAYOUT MOUNT``: the same for several disks, one after the other: at each line ``{"device"}`` mount it at
``/mnt`` with this command, and check it with the lines before. The last one stays mounted.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, RepackRequest, UnpackRequest
from layerfarm.jobs.flows.transforms import RecompressRequest
from layerfarm.jobs.image.report import Severity
from layerfarm.jobs.image.validate import validate_layout
from layerfarm.jobs.store import Index, Layout, index
from layerfarm.jobs.store.descriptor import named
from layerfarm.jobs.store.gc import collect
from layerfarm.jobs.store.janitor import janitor
from layerfarm.jobs.store.tag_group import TagGroup
from layerfarm.worker.engine.local import run

GO: Final = Path("/tmp/go")
_CODECS: Final[tuple[Literal["gzip", "zstd", "none"], ...]] = ("gzip", "zstd", "none")


class Work:
    """Operations chosen at random."""

    def __init__(self, layout: Path, seed: int) -> None:
        self._path = layout
        self._layout = Layout.open(layout)
        self._random = random.Random(seed)
        self._scratch = layout.parent / f"scratch-{seed}"
        self._scratch.mkdir()
        self._names = (f"{seed}-{number}" for number in itertools.count())
        self._tags: list[str] = []

    def forever(self) -> None:
        """One operation after the other."""
        self.build()
        kinds: list[Callable[[], None]] = [self.build, self.tag, self.move, self.repack, self.recompress, self.group]
        kinds.append(self.collect)
        while True:
            self._random.choice(kinds)()

    def build(self) -> None:
        root = self._scratch / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for number in range(self._random.randrange(1, 12)):
            (root / f"file-{number}").write_bytes(self._random.randbytes(self._random.randrange(1, 1 << 17)))
        image = self._image(next(self._names))
        run(BuildRequest(rootfs=root, image=image), processes=1)
        self._acknowledge(image.tag)

    def tag(self) -> None:
        name = next(self._names)
        self._layout.copy_tag(self._random.choice(self._tags), name)
        self._acknowledge(name)

    def move(self) -> None:
        """A tag that every power cut finds somewhere else."""
        self._layout.copy_tag(self._random.choice(self._tags), "moving")
        self._acknowledge("moving")

    def repack(self) -> None:
        bundle = self._scratch / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        run(UnpackRequest(image=self._image(self._random.choice(self._tags)), bundle=bundle), processes=1)
        (bundle / "rootfs" / "changed").write_bytes(self._random.randbytes(1000))
        image = self._image(next(self._names))
        run(RepackRequest(bundle=bundle, image=image), processes=1)
        self._acknowledge(image.tag)

    def recompress(self) -> None:
        target = self._image(next(self._names))
        old = self._image(self._random.choice(self._tags))
        run(RecompressRequest(image=old, target=target, compress=self._random.choice(_CODECS)), processes=1)
        self._acknowledge(target.tag)

    def group(self) -> None:
        """Images whose tags and names of blobs become durable together."""
        group, names = TagGroup(self._path), []
        for _ in range(self._random.randrange(2, 6)):
            image = self._image(next(self._names))
            with group.piece():
                run(BuildRequest(rootfs=self._scratch / "root", image=image), processes=1)
            names.append(image.tag)
        assert not any(group.write())
        for name in names:
            self._acknowledge(name)

    def collect(self) -> None:
        collect(self._layout, grace=0)

    def _image(self, tag: str) -> ImageRef:
        return ImageRef(store=self._path, tag=tag)

    def _acknowledge(self, tag: str) -> None:
        if tag not in self._tags:
            self._tags.append(tag)
        print(json.dumps({"tag": tag, "digest": self._layout.find(tag)[0].digest}), flush=True)


def faults(path: Path, acknowledged: list[dict[str, str]]) -> list[str]:
    """Differences from the acknowledged state."""
    layout = Layout.open(path)
    tags = set(layout.tags())
    found = []
    for tag, digest in {line["tag"]: line["digest"] for line in acknowledged}.items():
        if tag not in tags:
            found.append(f"tag {tag} is lost")
        elif tag != "moving" and layout.find(tag)[0].digest != digest:
            found.append(f"tag {tag} is another image")
    report = validate_layout(path)
    found += [f"validate: {finding}" for finding in report.findings if finding.severity is Severity.ERROR]
    try:
        collect(layout, grace=0)
        janitor(path, 0)
    except LayerfarmError as error:
        found.append(f"gc: {error}")
    newest = acknowledged[-1]["tag"] if acknowledged else None
    if newest in tags:
        seen = subprocess.run(["skopeo", "inspect", "--raw", f"oci:{path}:{newest}"], capture_output=True, text=True)
        if seen.returncode:
            found.append(f"skopeo: {seen.stderr}")
    for scratch in path.parent.glob("scratch-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def disks(path: Path, mount: str) -> None:
    """Check what is left on each disk; each in a process of its own, which leaves nothing open there."""
    acknowledged: list[dict[str, str]] = []
    for line in map(json.loads, sys.stdin):
        if "device" not in line:
            acknowledged.append(line)
            continue
        device = line["device"]
        subprocess.run(["umount", "-q", "/mnt"])
        if subprocess.run(["sh", "-c", f"{mount} {device} /mnt"]).returncode:
            print(f"{device}: it cannot be mounted", flush=True)
        elif os.fork() == 0:
            for fault in faults(path, acknowledged):
                print(f"{device}: {fault}", flush=True)
            os._exit(0)
        else:
            _, status = os.wait()
            if status:
                print(f"{device}: the check ended with {os.waitstatus_to_exitcode(status)}", flush=True)


def tags(path: Path, name: str, writers: int, count: int) -> int:
    """Set ``count`` tags from each of ``writers`` processes; return the number of processes that failed."""
    layout = Layout.open(path)
    base = layout.find("base")[0]
    children = []
    for writer in range(writers):
        child = os.fork()
        if child == 0:
            for number in range(count):
                tag, begun = f"{name}-{writer}-{number}", time.monotonic()
                layout.tag(tag, base)
                acknowledge(tag, base.digest, begun)
            os._exit(0)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def acknowledge(tag: str, digest: str, begun: float) -> None:
    """Print a tag that is set, with one write, so that the lines of processes do not mix."""
    line = {"tag": tag, "digest": digest, "seconds": round(time.monotonic() - begun, 1)}
    os.write(1, (json.dumps(line) + "\n").encode())


def pause() -> None:
    """Say so, and wait until the trial goes on."""
    print("held", flush=True)
    while not GO.exists():
        time.sleep(0.1)


def hold(path: Path, tag: str, step: str) -> None:
    """Set a tag, with a pause."""
    layout = Layout.open(path)
    base, begun = layout.find("base")[0], time.monotonic()
    rename = index.rename_durably

    def paused(at: str) -> None:
        if at == step and not GO.exists():
            pause()

    def renamed(source: Path, target: Path, where: Path) -> None:
        paused("rename")
        rename(source, target, where)

    def changed(old: Index) -> Index:
        paused("change")
        return old.model_copy(update={"manifests": [*old.manifests, named(base, tag)]})

    paused("begin")
    index.rename_durably = renamed
    layout.update_index(changed)
    acknowledge(tag, base.digest, begun)


def late(path: Path, tag: str) -> None:
    """Tag the base as an image that needs one more blob, some time after that was stored."""
    layout = Layout.open(path)
    base = layout.find("base")[0]
    blob, begun = layout.put(os.urandom(1000), "application/octet-stream"), time.monotonic()
    pause()
    layout.tag(tag, base, [blob])
    place = layout.blob_path(blob.digest)
    if place.name in os.listdir(place.parent):
        acknowledge(tag, base.digest, begun)
    else:
        print(f"{tag} needs a blob that is not there", flush=True)


def traffic(path: Path) -> None:
    """Count the requests of each operation, of its second run: the first one finds the caches of the client empty."""
    layout = Layout.open(path)

    def build(turn: str) -> None:
        root = Path("/tmp") / turn
        root.mkdir()
        for number in range(100):
            (root / f"file-{number}").write_bytes(os.urandom(1 << 14))
        run(BuildRequest(rootfs=root, image=ImageRef(store=path, tag=turn)), processes=1)

    def unpack(turn: str) -> None:
        run(UnpackRequest(image=ImageRef(store=path, tag="first"), bundle=path.parent / turn), processes=1)

    operations: dict[str, Callable[[str], object]] = {
        "tag": lambda turn: layout.copy_tag("base", f"tag-{turn}"),
        "put of 1 MiB": lambda turn: layout.put(os.urandom(1 << 20), "application/octet-stream"),
        "build of 100 local files": build,
        "unpack of 100 files into the share": unpack,
    }
    for name, operation in operations.items():
        operation("first")
        before = _requests()
        operation("second")
        counts = _requests() - before
        each = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        print(f"{name}: {counts.total()} ({each})", flush=True)


def _requests() -> Counter[str]:
    """Requests to all NFS servers by kind (nfsiostat(8) reads the same file)."""
    found: Counter[str] = Counter()
    for line in Path("/proc/self/mountstats").read_text().split("per-op statistics")[1:]:
        for kind, counts in (each.split(":") for each in line.split("device ")[0].splitlines() if ":" in each):
            found[kind.strip()] += int(counts.split()[0])
    return found


def read(path: Path, times: int | None) -> None:
    """Open the layout and read its index without end, or so often."""
    most = 0
    print("reading", flush=True)
    for _ in range(times) if times else itertools.count():
        found = len(Layout.open(path).tags())
        if found < most:
            print(f"saw {found} tags after {most}", flush=True)
        most = max(most, found)


def main() -> None:
    """See the module."""
    path = Path(sys.argv[2])
    match sys.argv[1]:
        case "work":
            if not path.exists():
                Layout.create(path)
                os.sync()
            Work(path, int(sys.argv[3])).forever()
        case "tags":
            sys.exit(tags(path, sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
        case "hold":
            hold(path, *sys.argv[3:])
        case "late":
            late(path, *sys.argv[3:])
        case "traffic":
            traffic(path)
        case "put":
            print(Layout.open(path).put(os.urandom(1000), "application/octet-stream").digest)
        case "read":
            read(path, int(sys.argv[3]) if sys.argv[3:] else None)
        case "disks":
            disks(path, sys.argv[3])
        case _:
            for fault in faults(path, [json.loads(line) for line in sys.stdin]):
                print(fault)


if __name__ == "__main__":
    main()
