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
from layerfarm.jobs.compress.in_order import most_ahead
from layerfarm.jobs.image.trees import ManifestDigest
from layerfarm.jobs.layer import GenerateOptions, generate_from_keys, read_keys
from layerfarm.jobs.layer.segments import FEWEST, MOST_HELPERS, WORTH_IT
from layerfarm.jobs.mtree import (
    hash_shard,
    merge_lines,
    plan_shards,
    walk_tree,
    walkers,
    write_all_extra,
    write_lines,
)

_QUEUED = 4
"""Pieces that wait for a digest, or to be written."""
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
    """Writing a piece of the blob."""
    collect: float = 0.0
    """In the thread that generates the tar, if helpers read the small files."""
    helper: float = 0.0
    """In the helpers."""
    name: float = 0.0
    """Updating the digest of the blob."""


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
    walk_caller: float = 0.0
    """In the process that surveys with helpers; 0: there are too few entries."""
    walk_helpers: float = 0.0
    """In these helpers."""


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
        survey = _survey_with_helpers(root, walk) if entries > walkers.WORTH_IT else (0.0, 0.0)
    return Costs(*spent, keys, blocks, *survey)


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
            times.append(time.thread_time())
            digest.update(piece)
            times.append(time.thread_time())
            *steps, name = (after - before for before, after in pairwise(times))
            yield Block(generated, *steps, name=name)


def _without_keys(blocks: list[Block], name: str) -> float:
    """Replace the time of the first block, in which the deltas were read, by the mean; return the rest."""
    if len(blocks) < 3:
        return 0.0
    first, usual = getattr(blocks[0], name), mean(getattr(block, name) for block in blocks[1:])
    setattr(blocks[0], name, min(first, usual))
    return max(0.0, first - usual)


def _add_helpers(blocks: list[Block], root: Path, deltas: Path) -> None:
    before = _of_children()
    for block, (collected, _) in zip(blocks, _generated(root, deltas, FEWEST), strict=True):
        block.collect = collected
    helpers = _of_children() - before
    _without_keys(blocks, "collect")
    saved = [max(0.0, block.generate - block.collect) for block in blocks]
    for block, share in zip(blocks, saved, strict=True):
        block.helper = helpers * share / sum(saved)


def _survey_with_helpers(root: Path, walk: Path) -> tuple[float, float]:
    """Return the processor time of the caller and of its helpers. The fewer processors, the more the caller walks."""
    before, begin = _of_children(), time.thread_time()
    with walk.open("w+b") as out:
        walk_tree(root, out, processes=walkers.MOST_HELPERS + 1)
    return time.thread_time() - begin, _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- the model -----------------------------------------------------------------------------------


def simulate(costs: Costs, processors: int, *, helpers: bool = True) -> dict[str, float]:
    """Return the seconds of each stage but publish, which is the same for any tree.

    ``helpers``: processes walk and read small files, on as many processors as they do it in a build.
    """
    helping = _helpers(costs.blocks, processors) if helpers else 0
    return {
        "survey": _survey(costs, processors) if helpers else costs.survey,
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
        "digest of the blob": sum(block.name for block in costs.blocks),
    }


def _survey(costs: Costs, processors: int) -> float:
    if processors < walkers.FEWEST or not costs.walk_helpers:
        return costs.survey
    processes = min(processors, walkers.MOST_HELPERS + 1)
    return max(costs.walk_caller, (costs.walk_caller + costs.walk_helpers) / processes)


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
        named: list[int] = []
        ahead_of_blob = most_ahead(processors) if processors > 1 else 1

        def store_next() -> None:
            block, ready = costs.blocks[len(stored)], compressed[len(stored)]
            stored.append(self._add(block.store, ready, generated[-1], _ago(stored, 1)))
            named.append(self._add(block.name, ready, generated[-1], _ago(named, 1)))

        for block in costs.blocks:
            # The slots of all helpers hold about one block ahead.
            before = [(helped[-1][n] if helped else generated[0]) for n in range(helpers)]
            helped.append([self._add(block.helper / helpers, own, _ago(generated, 2)) for own in before])
            ends = (digested, stored, named)
            queues = (_ago(compressed, ahead_of_blob), *(_ago(tasks, _QUEUED + 1) for tasks in ends))
            mine = block.collect if helpers else block.generate
            generated.append(self._add(mine, _ago(generated, 1), *helped[-1], *queues))
            digested.append(self._add(block.digest, generated[-1], _ago(digested, 1)))
            compressed.append(self._add(block.compress, generated[-1]))
            # The thread that generates hands the oldest piece over when so many are being compressed.
            if len(compressed) >= ahead_of_blob:
                store_next()
        while len(stored) < len(compressed):
            store_next()

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
