"""Runs in a machine: submits jobs to a farm and follows each to its end, while Redis comes and goes.

``python3 -m submitter LAYOUT BUILDS NAME``: so many builds, each followed by a recompression, four at once.
Print ``{"tag", "digest", "seconds"}`` for each job that succeeded, and a line ``failed TAG: ERROR`` for each other one.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from workload import acknowledge

from layerfarm.jobs.errors import FarmError, FarmUnreachable
from layerfarm.jobs.flows.base import Request
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, ImageResult
from layerfarm.jobs.flows.transforms import RecompressRequest
from layerfarm.worker.client import Farm

AT_ONCE: Final = 4
ResultT = TypeVar("ResultT")


def insisted(ask: Callable[[], ResultT]) -> ResultT:
    """Return what Redis answers, once it does."""
    while True:
        try:
            return ask()
        except FarmUnreachable:
            time.sleep(1)


def end(farm: Farm, request: Request, tag: str) -> bool:
    """Run a job; return True if it succeeded."""
    begun = time.monotonic()
    job = insisted(lambda: farm.submit(request))
    try:
        result = insisted(job.result)
    except FarmError as error:
        print(f"failed {tag}: {type(error).__name__}: {error}", flush=True)
        return False
    acknowledge(tag, result.manifest if isinstance(result, ImageResult) else result.new, begun)
    return True


def chain(farm: Farm, layout: Path, name: str) -> None:
    """Build an image of a tree of its own, and recompress it."""
    root = layout.parent / f"trees-of-{layout.name}" / name
    root.mkdir(parents=True)
    for number in range(random.randrange(1, 40)):
        (root / f"file-{number}").write_bytes(random.randbytes(random.randrange(1, 1 << 17)))
    image, target = ImageRef(store=layout, tag=name), ImageRef(store=layout, tag=f"{name}-zstd")
    if end(farm, BuildRequest(rootfs=root, image=image), image.tag):
        recompress = RecompressRequest(image=image, target=target, compress="zstd")
        end(farm, recompress, target.tag)


def main(layout: str, builds: str, name: str) -> None:
    farm = insisted(Farm)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [pool.submit(chain, farm, Path(layout), f"{name}-{number}") for number in range(int(builds))]
    for each in done:
        each.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
