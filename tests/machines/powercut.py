"""``make powercut``: cut the power of machines that work in a store, boot them, and look for what was lost.

One machine for each filesystem and kind of disk. While it works, images of its disk are made at random moments: what a
cut at that moment leaves. Then its power is cut. It boots by itself and mounts the images and its disk, one after the
other, and all tags that were acknowledged before the moment have to be there and intact. Prints a table, and each fault
with its seed.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from layerfarm.worker.signals import terminable
from tests.machines.image import CACHE, missing_for_machines
from tests.machines.machine import Command, Machines
from tests.machines.trial import report

DEVICE: Final = "/dev/vda"
SIZE: Final = 512 << 20
IMAGES: Final = 23
"""Images of the disk before each cut; a boot takes as long as the checks of ten images. A machine has 32 slots."""
PAUSE: Final = 1.2
"""At most so many seconds between two images; an operation takes one or two."""
FILESYSTEMS: Final = {
    "ext4-ordered": ("mkfs.ext4 -q", "mount -o data=ordered"),
    "ext4-writeback": ("mkfs.ext4 -q", "mount -o data=writeback"),
    "xfs": ("modprobe xfs; mkfs.xfs -q", "modprobe xfs; mount"),
    # All images have the same identity, and btrfs remembers the last one.
    "btrfs": ("modprobe btrfs; mkfs.btrfs -q", "modprobe btrfs; btrfs device scan --forget; mount"),
}
DISKS: Final = {"volatile cache": True, "power-safe cache": False}


@dataclass
class Row:
    """A filesystem on a kind of disk, and what happened there."""

    filesystem: str
    disk: str
    boots: int = 0
    images: int = 0
    acknowledged: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def cuts(self) -> int:
        """Moments at which power was cut, or would have left an image."""
        return self.boots + self.images

    def __str__(self) -> str:
        numbers = f"{self.cuts:5} {self.boots:5} {self.acknowledged:9} {len(self.faults):6}"
        return f"{self.filesystem:15} {self.disk:17} {numbers}"


class Trial:
    """One machine that is cut again and again."""

    def __init__(self, machines: Machines, row: Row, seed: int) -> None:
        self._random = random.Random(seed)
        self._row = row
        self._make, self._mount = FILESYSTEMS[row.filesystem]
        name = f"{row.filesystem}-{row.disk.partition(' ')[0]}-{seed}"
        self._disk = machines.disk(name, SIZE, volatile=DISKS[row.disk])
        self._machine = machines.machine(name, [self._disk], boot=False)
        self._files = [machines.directory / f"{name}-{number}.image" for number in range(IMAGES)]
        self._acknowledged: list[str] = []

    def run(self, cuts: int, images: int) -> Row:
        """Work, cut, boot and check, until there are so many cuts and images; at most ``images`` for each boot."""
        self._machine.boot()
        self._machine.check(f"{self._make} {DEVICE} && {self._mount} {DEVICE} /mnt")
        while self._row.cuts < cuts:
            seed = self._random.randrange(1 << 31)
            try:
                self._cut(seed, min(images, cuts - self._row.cuts - 1))
            except (AssertionError, queue.Empty) as error:  # It did not boot, or hung: the other rows go on.
                self._row.faults.append(f"seed {seed}: {type(error).__name__}: {error}"[:1000])
                break
        self._machine.cut()
        return self._row

    def _cut(self, seed: int, images: int) -> None:
        self._machine.images = self._files[:images]
        known = []
        """Numbers of tags that were acknowledged before each image."""
        with self._working(seed) as work:
            self._take([next(work.lines())])
            for file in self._machine.images:
                time.sleep(self._random.uniform(0, PAUSE))
                self._take(work.lines_so_far())
                known.append(len(self._acknowledged))
                self._disk.image(file)
            time.sleep(self._random.uniform(0, PAUSE))
        self._row.images += images
        self._row.boots += 1
        self._machine.boot()
        self._check(seed, known)

    @contextmanager
    def _working(self, seed: int) -> Iterator[Command]:
        work = self._machine.start(f"cd /opt/layerfarm && exec python3 -m workload work /mnt/layout {seed}")
        try:
            yield work
        finally:
            self._machine.cut()
            self._take(work.lines())

    def _take(self, lines: Iterable[str]) -> None:
        said = ""
        for line in lines:
            if line.startswith("{"):
                self._acknowledged.append(line)
                self._row.acknowledged += 1
            else:
                said = line  # The last line of a traceback says what happened.
        if said:
            self._row.faults.append(f"work: {said}")

    def _check(self, seed: int, known: list[int]) -> None:
        lines, first = [], 0
        for place, last in enumerate([*known, len(self._acknowledged)], 1):
            device = f"/dev/vd{chr(ord('a') + place % (len(known) + 1))}"  # The images, and at last the disk itself.
            lines += [*self._acknowledged[first:last], json.dumps({"device": device})]
            first = last
        command = f"cd /opt/layerfarm && python3 -m workload disks /mnt/layout '{self._mount}'"
        ended = self._machine.run(command, "\n".join(lines))
        if ended.code or ended.text:
            said = ended.text.splitlines() if not ended.code else [f"{ended.code}: {ended.text.splitlines()[-1:]}"]
            self._row.faults += [f"seed {seed}: {line}" for line in said]
        # The disk is finite: begin with a new store when it is a third full.
        if int(self._machine.check("df --output=pcent /mnt | tail -1").strip(" %\n")) > 30:
            self._machine.check("rm -rf /mnt/* && sync")
            self._acknowledged.clear()


def powercut(
    cuts: int, seed: int, rows: list[Row], *, images: int = IMAGES, cache: Path = CACHE, at_once: int = 2
) -> Iterator[Row]:
    """Make so many cuts, spread over the rows, after ``images`` each; yield each row when it is complete."""
    # An interrupt ends the machines first, and with them the threads that wait for their output.
    with ThreadPoolExecutor(at_once) as pool, Machines(cache, seed) as machines:
        trials = [Trial(machines, row, seed + number) for number, row in enumerate(rows)]
        each = -(-cuts // len(trials))
        yield from pool.map(lambda trial: trial.run(each, images), trials)


def main() -> int:
    """Print the table; 1 where anything was lost."""
    parser = argparse.ArgumentParser(prog="make powercut", description=__doc__)
    parser.add_argument("--cuts", type=int, default=1000, help="cuts and images of the disk")
    parser.add_argument("--filesystems", nargs="+", choices=FILESYSTEMS, default=list(FILESYSTEMS))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    options = parser.parse_args()
    missing = missing_for_machines()
    if missing:
        print(f"make powercut needs {missing}", file=sys.stderr)
        return 2
    print(f"SEED={options.seed}", flush=True)
    print("filesystem      disk               cuts boots acknowl.  faults", flush=True)
    rows = [Row(name, disk) for name in options.filesystems for disk in DISKS]
    with terminable():
        return report(powercut(options.cuts, options.seed, rows))


if __name__ == "__main__":
    sys.exit(main())
