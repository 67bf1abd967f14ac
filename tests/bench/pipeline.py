"""A model of a build on larger machines: measured processor times, scheduled on any number of processors.

Amdahl's law divides a stage into a serial and a parallel part that never wait for each other. Here each block of the
pack stage is several tasks, with the bounds of the queues between them, so the model shows which thread the others wait
for. It is made of processor times, which other programs on the machine change less than wall times. It omits the
interpreter lock, which a thread holds for some microseconds a block, and the bandwidth of the memory.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from layerfarm.jobs.compress.codecs import compress_block
from layerfarm.jobs.image.trees import ManifestDigest
from layerfarm.jobs.layer import GenerateOptions, generate_from_keys, read_keys
from layerfarm.jobs.layer.segments import FEWEST, MOST_HELPERS, WORTH_IT
from layerfarm.jobs.mtree import (
    hash_shard,
    merge_lines,
    plan_shards,
    walk_tree,
    write_all_extra,
    write_lines,
)

_QUEUED = 4
"""Pieces that wait for a digest, and blocks for each compressor."""
_SLICES = 100
"""Parts of the work of another process, as processors are shared."""


@dataclass
class Block:
    """Processor time of one block of the tar, in seconds."""

    generate: float
    """In the thread that generates the tar."""
    digest: float
    compress: float
    store: float
    """Writing a piece of the blob, and updating its digest."""
    collect: float = 0.0
    """In the thread that generates the tar, if helpers read the small files."""
    helper: float = 0.0
    """In the helpers."""


@dataclass(frozen=True)
class Costs:
    """Processor time of the steps of a build, in seconds."""

    survey: float
    plan: float
    """Cutting the walk into shards."""
    hash: float
    compare: float
    manifest: float
    """Digest of the new manifest, computed beside the packing."""
    keys: float
    """Reading and sorting the deltas, before the first block."""
    blocks: list[Block]


def measure(root: Path, scratch: Path) -> Costs:
    """Run the steps of a build of the tree at ``root`` one after the other."""
    spent: list[float] = []

    def lap(before: float) -> float:
        now = time.thread_time()
        spent.append(now - before)
        return now

    with TemporaryDirectory(prefix="layerfarm-pipeline-", dir=scratch) as work:
        walk, fragment, deltas = Path(work, "walk"), Path(work, "fragment"), Path(work, "deltas")
        at = time.thread_time()
        with walk.open("w+b") as out:
            entries = walk_tree(root, out).entries
        at = lap(at)
        (shard,) = plan_shards(walk, 1)
        at = lap(at)
        with fragment.open("wb") as out:
            hash_shard(root, walk, shard, out, lambda nbytes: None)
        at = lap(at)
        with deltas.open("wb") as out:
            write_all_extra(merge_lines([fragment], entries), out)
        at = lap(at)
        sink = ManifestDigest()
        write_lines(merge_lines([fragment], entries), sink.output())
        sink.digest()
        lap(at)
        blocks = list(_blocks(root, deltas, Path(work, "blob")))
        keys = _without_keys(blocks, "generate")
        if entries >= WORTH_IT:
            _add_helpers(blocks, root, deltas)
    return Costs(*spent, keys, blocks)


def _generated(root: Path, deltas: Path, processes: int) -> Iterator[tuple[float, bytes]]:
    """Yield the blocks of the tar, each with the time of this thread."""
    with deltas.open("rb") as stream:
        layer = generate_from_keys(root, read_keys(stream), GenerateOptions(processes=processes))
        begin = time.thread_time()
        for block in layer:
            yield time.thread_time() - begin, block
            begin = time.thread_time()


def _blocks(root: Path, deltas: Path, blob: Path) -> Iterator[Block]:
    diff_id, digest = sha256(), sha256()
    with blob.open("wb", buffering=0) as out:
        for generated, block in _generated(root, deltas, 1):
            times = [time.thread_time()]
            diff_id.update(block)
            times.append(time.thread_time())
            piece = compress_block(block)
            times.append(time.thread_time())
            out.write(piece)
            digest.update(piece)
            times.append(time.thread_time())
            yield Block(generated, *(after - before for before, after in pairwise(times)))


def _without_keys(blocks: list[Block], name: str) -> float:
    """Replace the time of the first block, in which the deltas were read, by the mean; return the rest."""
    if len(blocks) < 3:
        return 0.0
    first, usual = getattr(blocks[0], name), mean(getattr(block, name) for block in blocks[1:])
    setattr(blocks[0], name, min(first, usual))
    return max(0.0, first - usual)


def _add_helpers(blocks: list[Block], root: Path, deltas: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for block, (collected, _) in zip(blocks, _generated(root, deltas, FEWEST), strict=True):
        block.collect = collected
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    _without_keys(blocks, "collect")
    helpers = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    saved = [max(0.0, block.generate - block.collect) for block in blocks]
    for block, share in zip(blocks, saved, strict=True):
        block.helper = helpers * share / sum(saved)


# --- the model -----------------------------------------------------------------------------------


def simulate(costs: Costs, processors: int, *, helpers: bool = True) -> dict[str, float]:
    """Return the seconds of each stage but publish, which is the same for any tree.

    ``helpers``: processes read small files, on as many processors as they do it in a build.
    """
    helping = _helpers(costs.blocks, processors) if helpers else 0
    return {
        "survey": costs.survey,
        "hash": costs.plan + costs.hash / processors,
        "compare": costs.compare,
        "pack": _Schedule(costs, processors, helping).seconds(),
    }


def busy(costs: Costs, processors: int) -> dict[str, float]:
    """Return the seconds for which each thread of the pack stage is busy; the most of them bounds the stage."""
    helpers = _helpers(costs.blocks, processors)
    return {
        "keys": costs.keys,
        "generate": sum(block.collect if helpers else block.generate for block in costs.blocks),
        "each helper": sum(block.helper for block in costs.blocks) / max(helpers, 1),
        "diff_id": sum(block.digest for block in costs.blocks),
        "each compressor": sum(block.compress for block in costs.blocks) / processors,
        "blob": sum(block.store for block in costs.blocks),
    }


def _helpers(blocks: list[Block], processors: int) -> int:
    return min(processors, MOST_HELPERS) if processors >= FEWEST and any(block.helper for block in blocks) else 0


class _Schedule:
    """The tasks of the pack stage, each begun as soon as its predecessors are done and a processor is free."""

    def __init__(self, costs: Costs, processors: int, helpers: int) -> None:
        self._processors = processors
        self._costs: list[float] = []
        self._missing: list[int] = []
        self._next: list[list[int]] = []
        manifest = -1
        for _ in range(_SLICES):
            manifest = self._add(costs.manifest / _SLICES, manifest)
        generated = [self._add(costs.keys)]
        helped: list[list[int]] = []
        digested: list[int] = []
        compressed: list[int] = []
        stored: list[int] = []
        for block in costs.blocks:
            # The slots of all helpers hold about one block ahead.
            ahead = [(helped[-1][n] if helped else generated[0]) for n in range(helpers)]
            helped.append([self._add(block.helper / helpers, before, _ago(generated, 2)) for before in ahead])
            queues = (_ago(digested, _QUEUED + 1), _ago(compressed, _QUEUED * processors), _ago(stored, _QUEUED + 1))
            mine = block.collect if helpers else block.generate
            generated.append(self._add(mine, _ago(generated, 1), *helped[-1], *queues))
            digested.append(self._add(block.digest, generated[-1], _ago(digested, 1)))
            compressed.append(self._add(block.compress, generated[-1]))
            stored.append(self._add(block.store, compressed[-1], _ago(stored, 1)))

    def _add(self, cost: float, *after: int) -> int:
        """Add a task that waits for others; -1 for none."""
        number = len(self._costs)
        known = {other for other in after if other >= 0}
        self._costs.append(cost)
        self._missing.append(len(known))
        self._next.append([])
        for other in known:
            self._next[other].append(number)
        return number

    def seconds(self) -> float:
        """Return the end of the last task. The oldest block that is ready comes first."""
        ready = [number for number, missing in enumerate(self._missing) if not missing]
        heapify(ready)
        running: list[tuple[float, int]] = []
        now = 0.0
        while ready or running:
            while ready and len(running) < self._processors:
                number = heappop(ready)
                heappush(running, (now + self._costs[number], number))
            now, done = heappop(running)
            for number in self._next[done]:
                self._missing[number] -= 1
                if not self._missing[number]:
                    heappush(ready, number)
        return now


def _ago(tasks: list[int], count: int) -> int:
    return tasks[-count] if len(tasks) >= count else -1
