"""Images that share layers, compressed again by workers that are killed at random: each layer is done once.

``python -m tests.farm.shared_layers`` runs it at the size of ``IMAGES`` by ``LAYERS`` on ``WORKERS`` workers and prints
the count. Done once means: begun as often as there are distinct layers, and once more for each one whose process was
killed at it. That is known for sure, because a process is stopped before it is killed, and asked for in between.
The store is then the same as after a run whose workers are not killed.
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from subprocess import Popen
from typing import cast

# The workers import the toy flow by this name.
sys.path.insert(0, str(Path(__file__).parent))

import psutil
from ground import Ground, until

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import RecompressRequest, TransformResult
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.gc import collect
from layerfarm.worker.client import Farm, Job
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.signals import terminable
from tests.unit.image.images import image, tar

KEYS = Keys()

LEVEL = 19
"""Level of zstd: slow enough that a process is often killed at it."""
SETTINGS = {"concurrency": 2, "lease": 5, "look_every": 0.5, "visibility_timeout": 60, "deliveries": 20}
"""Tries of a unit by the workers: their processes die so often that three tries would not show poison."""
LONGEST = 600.0
"""Seconds for all jobs."""


@dataclass
class Outcome:
    """Outcome of one run."""

    jobs: int = 0
    """That ended right."""
    lost: int = 0
    """That did not."""
    layers: int = 0
    """Distinct ones, compressed again."""
    executions: int = 0
    """Number of times that one was begun."""
    takeovers: int = 0
    """Number of killed processes that had begun one and had not reported its result."""
    killed_workers: int = 0
    killed_processes: int = 0
    """Those of a pool, alone."""
    different: int = 0
    """Tags, proofs and blobs that are not those of the run without kills."""
    left: int = 0
    """Leases, files and keys of jobs that have ended."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not (self.lost or self.different or self.left) and self.executions == self.layers + self.takeovers


def recompress_all(directory: Path, images: int, layers: int, workers: int, size: int, seed: int) -> Outcome:
    """The images on a farm whose workers are killed, and on one of the same kind whose workers are not."""
    content = []
    outcomes = []
    for name, rng in (("quiet", None), ("killed", random.Random(seed))):
        with ExitStack() as stack:
            (directory / name).mkdir()
            ground = Ground(directory / name, stack)
            store = ground.allowed / "store"
            make_images(store, images, layers, size, seed)
            outcomes.append(run(ground, store, images, workers, rng))
            content.append(content_of(store))
    quiet, killed = outcomes
    quiet.layers = killed.layers = layers
    if not quiet.clean or quiet.takeovers:
        killed.lost += 1
        killed.notes += (f"without kills: {quiet}",)
    killed.different = len(content[0] ^ content[1])
    return killed


def run(ground: Ground, store: Path, images: int, workers: int, rng: random.Random | None) -> Outcome:
    """``rng``: kills workers; None: they are not killed."""
    outcome = Outcome()
    pool = [ground.start_worker(**SETTINGS) for _ in range(workers)]
    farm = ground.farm(lease=5, look_every=0.5)
    order = list(range(images))
    if rng is not None:
        rng.shuffle(order)
    begun = time.monotonic()
    jobs = [farm.submit(request(store, number)) for number in order]
    if rng is not None:
        kill_at_random(ground, pool, rng, farm, outcome)
    wait(jobs, outcome)
    outcome.seconds = time.monotonic() - begun
    outcome.executions = sum(times_begun(ground))
    look_for_leftovers(ground, store, outcome)
    return outcome


def request(store: Path, number: int) -> RecompressRequest:
    old, new = (ImageRef(store=store, tag=f"{letter}{number}") for letter in "vz")
    return RecompressRequest(image=old, target=new, compress="zstd", level=LEVEL)


def wait(jobs: Sequence[Job], outcome: Outcome) -> None:
    deadline = time.monotonic() + LONGEST
    for job in jobs:
        try:
            result = cast("TransformResult", job.result(max(1.0, deadline - time.monotonic())))
            assert not result.unchanged
        except LayerfarmError as error:
            outcome.lost += 1
            outcome.notes += (f"{job.id}: {error}",)
            continue
        outcome.jobs += 1


# --- images ---------------------------------------------------------------------------------------


def make_images(store: Path, images: int, layers: int, size: int, seed: int) -> None:
    """Each has some of the layers in an order of its own, and a config of its own; all layers are needed."""
    layout, rng = Layout.create(store), random.Random(f"images {seed}")
    words = [rng.randbytes(rng.randrange(3, 12)) for _ in range(3000)]
    tars = [
        tar((f"layer-{number}", b"".join(rng.choices(words, k=size // 7))), ("a", b"%d" % number))
        for number in range(layers)
    ]
    compress = cache(lambda raw: gzip.compress(raw, 1, mtime=0))
    for number in range(images):
        some = rng.sample(tars, rng.randint(1, layers)) if number else tars
        image(layout, some, compress=compress, config={"Env": [f"N={number}"]}, tag=f"v{number}")


def content_of(store: Path) -> set[str]:
    """Content of the index, and of everything that it leads to."""
    layout = Layout(store)
    collect(layout, 0)
    entries = {f"{entry.annotations} {entry.digest}" for entry in layout.index().manifests}
    return entries | {f"{path.parent.name}:{path.name}" for path in store.glob("blobs/*/*")}


# --- kills ----------------------------------------------------------------------------------------


def kill_at_random(ground: Ground, pool: list[Popen[bytes]], rng: random.Random, farm: Farm, outcome: Outcome) -> None:
    """As long as there are jobs: a worker, or one process of one. Another one comes for each."""
    deadline = time.monotonic() + LONGEST
    while farm.store.active() and time.monotonic() < deadline:
        time.sleep(rng.uniform(0.2, 2.5))
        number = rng.randrange(len(pool))
        main = psutil.Process(pool[number].pid)
        children = main.children()
        if rng.random() < 0.4 and children:
            outcome.takeovers += kill(ground, [rng.choice(children)])
            outcome.killed_processes += 1
            continue
        outcome.takeovers += kill(ground, [main, *children])
        outcome.killed_workers += 1
        pool[number].wait()
        pool[number] = ground.start_worker(**SETTINGS)


def kill(ground: Ground, processes: Sequence[psutil.Process]) -> int:
    """Returns how many layers they were at."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    # Redis has received everything that they had reported.
    time.sleep(0.05)
    pids = {process.pid for process in processes}
    held = sum(owner.pid in pids for owner in holders(ground))
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    return held


def holders(ground: Ground) -> Iterator[Owner]:
    """Processes that work on a layer."""
    client = ground.farm().client
    for name in cast("set[str]", client.smembers(KEYS.works)):
        claim = cast("str | None", client.hget(f"{KEYS.prefix}work:{name}", "claim"))
        if claim is not None:
            yield Owner.parse(claim.split(" ", 2)[2])


# --- afterwards -----------------------------------------------------------------------------------


def times_begun(ground: Ground) -> list[int]:
    """Number of times that each distinct piece of work was begun."""
    client = ground.farm().client
    return [int(client.hget(key, "executions") or 0) for key in client.scan_iter(f"{KEYS.prefix}work:*", _type="hash")]


def look_for_leftovers(ground: Ground, store: Path, outcome: Outcome) -> None:
    farm = ground.farm()
    client = farm.client
    with suppress(AssertionError):
        until(lambda: not client.exists(KEYS.works) and not farm.store.active(), timeout=30)
    left = [
        str(path) for kind in ("work", "leases", "leases-of-others") for path in (store / ".layerfarm" / kind).glob("*")
    ]
    left += [*client.scan_iter(f"{KEYS.prefix}work:*:waiting"), *farm.store.active()]
    outcome.left += len(left)
    outcome.notes += tuple(left)


def main() -> int:
    images, layers, workers, size = (
        int(os.environ.get(name) or value)
        for name, value in (("IMAGES", 200), ("LAYERS", 10), ("WORKERS", 4), ("LAYER_BYTES", 3_000_000))
    )
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{images} images of {layers} layers on {workers} workers that are killed, SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="lf-layers-") as directory, terminable():
        outcome = recompress_all(Path(directory), images, layers, workers, size, seed)
    for name, value in asdict(outcome).items():
        print(f"  {name}: {value}")
    return 0 if outcome.clean else 1


if __name__ == "__main__":
    sys.exit(main())
