"""Many writers of one layout, with gc at work and readers looking on: what was lost, what was torn (nothing may be).

``python -m tests.farm.shared_store`` runs it at the size of ``WRITERS`` by ``TAGS`` on ``HOSTS`` hosts and prints the
count. A host is a set of processes in a network namespace, and with a host name, of its own: all that it shares
with the others is the store.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST, Descriptor, Layout
from layerfarm.jobs.store.gc import collect
from layerfarm.jobs.store.leases import LOCAL, Leases, holding
from layerfarm.jobs.store.reachability import reachable
from layerfarm.worker.security.kernel import die_with_parent

AN_IMAGE_EVERY = 10
"""Tags that one image gets, after one another; the images in between are garbage for the collector."""
_FORK = multiprocessing.get_context("fork")


@dataclass
class Seen:
    """Counters of the processes of a run."""

    tags: int = 0
    """Given and reported to their writer."""
    images: int = 0
    collections: int = 0
    swept: int = 0
    """Blobs that the collections took out of ``blobs``."""
    reads: int = 0
    reads_by_others: int = 0
    """By skopeo and umoci."""
    lost: int = 0
    """Tags that were given and are not there, or do not name what they were given to; blobs that they lead to."""
    torn: int = 0
    """Readings of an index, or of an image, that was not whole."""
    notes: tuple[str, ...] = ()

    def add(self, other: Seen) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def clean(self) -> bool:
        return not (self.lost or self.torn)


def crowd(store: Path, writers: int, tags: int, hosts: int = 1, grace: float = 0.5, seed: int = 0) -> Seen:
    """Let ``writers`` processes on ``hosts`` hosts give ``tags`` tags each; returns what came of it."""
    layout = Layout.create(store)
    layout.put(b"a layer that all share", MEDIA_TYPE_LAYER)
    seen = Seen()
    stop = _FORK.Event()
    with _watching(store, grace, stop) as watchers:
        running = [_start_host(store, host, writers // hosts, tags, hosts > 1, seed) for host in range(hosts)]
        for process in running:
            output, _ = process.communicate()
            assert process.returncode == 0, output
            seen.add(_parsed(output))
        stop.set()
        for found in watchers():
            seen.add(found)
    seen.add(_judge(layout, writers // hosts * hosts, tags))
    return seen


# --- the writers of a host ------------------------------------------------------------------------


def _start_host(store: Path, host: int, writers: int, tags: int, apart: bool, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.farm.shared_store", "host"]
    command += [str(store), str(host), str(writers), str(tags), str(seed)]
    if apart:
        script = f'hostname host{host} && exec "$@"'
        command = ["unshare", "--net", "--uts", "--ipc", "sh", "-c", script, "sh", *command]
    parent = os.getpid()
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: die_with_parent(parent))


def _host(store: Path, host: int, writers: int, tags: int, seed: int) -> Seen:
    seen = Seen()
    numbers = range(host * writers, (host + 1) * writers)
    for found in _together([(_write, (store, number, tags, seed)) for number in numbers])():
        seen.add(found)
    return seen


def _write(store: Path, writer: int, tags: int, seed: int) -> Seen:
    """Give tags, to images of one's own; each has to name its image at once, and to the end."""
    layout, seen, rng = Layout(store), Seen(), random.Random(f"{seed}-{writer}")
    image: list[Descriptor] = []
    before: list[Descriptor] = []
    for number in range(tags):
        if number % AN_IMAGE_EVERY == 0:
            # As a job: its blobs may wait longer for their tag than the grace.
            job = f"job-{writer}-{number}"
            before = image
            with holding(job, LOCAL):
                image = _image(layout, writer, number)
            layout.tag(tag_of(writer, number), image[-1], needs=image)
            Leases(store).release(job)
            seen.images += 1
            if rng.random() < 0.3:
                _image(layout, writer, -number)  # it gets no tag
        tag = tag_of(writer, number)
        if before and rng.random() < 0.05:
            # To an image: skopeo finds no tag of anything else.
            layout.tag(tag, before[-1], needs=before)
        layout.tag(tag, image[-1], needs=image)
        seen.tags += 1
        if rng.random() < 0.02 and [found.digest for found in layout.find(tag)] != [image[-1].digest]:
            seen.lost += 1
            seen.notes += (f"{tag} was not there when its writer was told so",)
    return seen


def tag_of(writer: int, number: int) -> str:
    return f"w{writer}-{number}"


def _image(layout: Layout, writer: int, number: int) -> list[Descriptor]:
    """Its blobs, the manifest last."""
    layer = layout.put(b"a layer that all share", MEDIA_TYPE_LAYER)
    config = layout.put(b"{}" + b" " * (1000 * writer + number % 1000), MEDIA_TYPE_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "config": config.model_dump(by_alias=True, exclude_none=True),
        "layers": [layer.model_dump(by_alias=True, exclude_none=True)],
        "annotations": {"of": f"{writer} {number}"},
    }
    return [config, layer, layout.put(json.dumps(manifest).encode(), MEDIA_TYPE_MANIFEST)]


# --- those who look on ----------------------------------------------------------------------------


@contextmanager
def _watching(store: Path, grace: float, stop: Event) -> Iterator[Callable[[], list[Seen]]]:
    looking: list[tuple[Callable[..., Seen], tuple[Any, ...]]] = [
        (_collect, (store, grace, stop)),
        (_read, (store, stop)),
        (_read_as_others, (store, stop)),
    ]
    ends = _together(looking)
    try:
        yield ends
    finally:
        stop.set()


def _collect(store: Path, grace: float, stop: Event) -> Seen:
    seen = Seen()
    while not stop.wait(0.2):
        seen.swept += len(collect(Layout(store), grace).blobs)
        seen.collections += 1
    return seen


def _read(store: Path, stop: Event) -> Seen:
    """Read the index as any tool does, and through the store; what was there once stays there."""
    layout, seen, before = Layout(store), Seen(), set[str]()
    while not stop.wait(0.05):
        seen.reads += 1
        try:
            document = json.loads((store / "index.json").read_bytes())
            tags = {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in document["manifests"]}
            now = set(layout.tags())
            if now:
                for found in layout.find(random.choice(list(now))):
                    layout.read(found)
        except (ValueError, KeyError, OSError, LayerfarmError) as error:
            seen.torn += 1
            seen.notes += (f"{type(error).__name__}: {error}",)
            continue
        if not before <= tags or not tags <= now:
            seen.lost += 1
            seen.notes += (f"tags went away: {sorted(before - tags)[:3]} {sorted(tags - now)[:3]}",)
        before = tags
    return seen


def _read_as_others(store: Path, stop: Event) -> Seen:
    seen = Seen()
    while not stop.wait(0.2):
        tags = Layout(store).tags()
        commands = [["umoci", "ls", "--layout", str(store)]]
        if tags:
            commands.append(["skopeo", "inspect", "--raw", f"oci:{store}:{random.choice(tags)}"])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seen.reads_by_others += 1
            if done.returncode:
                seen.torn += 1
                seen.notes += (f"{command[0]}: {done.stderr[-300:]}",)
    return seen


def _judge(layout: Layout, writers: int, tags: int) -> Seen:
    seen = Seen()
    index = layout.index()
    names = {(entry.annotations or {}).get("org.opencontainers.image.ref.name"): entry for entry in index.manifests}
    if len(names) != len(index.manifests):
        seen.notes += ("a tag is there twice",)
        seen.lost += 1
    images: dict[str, str] = {}
    for writer in range(writers):
        for number in range(tags):
            entry = names.get(tag_of(writer, number))
            if entry is None or entry.media_type != MEDIA_TYPE_MANIFEST:
                seen.lost += 1
                seen.notes += (f"{tag_of(writer, number)} is lost",)
                continue
            if entry.digest not in images:
                images[entry.digest] = json.loads(layout.read(entry))["annotations"]["of"]
            if images[entry.digest] != f"{writer} {number - number % AN_IMAGE_EVERY}":
                seen.lost += 1
                seen.notes += (f"{tag_of(writer, number)} names another image",)
    for digest in reachable(layout, index.manifests):
        if not layout.blob_path(digest).is_file():
            seen.lost += 1
            seen.notes += (f"blob {digest} is gone",)
    return seen


# --- processes ------------------------------------------------------------------------------------


def _together(work: list[tuple[Callable[..., Seen], tuple[Any, ...]]]) -> Callable[[], list[Seen]]:
    """Start each in a process of its own; what is returned waits for them."""
    out = _FORK.SimpleQueue()

    parent = os.getpid()

    def run(body: Callable[..., Seen], args: tuple[Any, ...]) -> None:
        die_with_parent(parent)
        try:
            out.put(body(*args))
        except BaseException as error:
            out.put(Seen(lost=1, notes=(f"{body.__name__} failed: {error!r}",)))
            raise

    processes = [_FORK.Process(target=run, args=each, daemon=True) for each in work]
    for process in processes:
        process.start()

    def ends() -> list[Seen]:
        found = [out.get() for _ in processes]
        for process in processes:
            process.join()
        return found

    return ends


def _parsed(output: str) -> Seen:
    values = json.loads(output)
    return Seen(**values | {"notes": tuple(values["notes"])})


def main() -> int:
    if sys.argv[1:2] == ["host"]:
        store, *numbers = sys.argv[2:]
        print(json.dumps(asdict(_host(Path(store), *map(int, numbers)))))
        return 0
    writers, tags, hosts = (
        int(os.environ.get(name) or value) for name, value in (("WRITERS", 64), ("TAGS", 1000), ("HOSTS", 1))
    )
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{writers} writers of {tags} tags on {hosts} hosts, SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="lf-shared-") as directory:
        begun = time.monotonic()
        seen = crowd(Path(directory) / "store", writers, tags, hosts, seed=seed)
        seconds = time.monotonic() - begun
        size = (Path(directory) / "store" / "index.json").stat().st_size
    print(f"{seconds:.1f} s, {seen.tags / seconds:.0f} tags/s, index.json of {size / 1e6:.1f} MB")
    for name, value in asdict(seen).items():
        print(f"  {name}: {value}")
    return 0 if seen.clean else 1


if __name__ == "__main__":
    sys.exit(main())
