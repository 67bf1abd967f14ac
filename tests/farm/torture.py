"""``make torture``: real jobs while everything around them breaks, and a count of what was lost (nothing may be).

Each trial runs a build, an unpack and a repack of one image at once, on a farm of its own with an append-only
Redis, and does one harm to it. Then the jobs have ended, right or with an error that names the cause; the
bytes are those of an undisturbed run; no tag leads to a blob that is not there; and after the janitor nothing
is left.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

# The workers import the toy flow by this name.
sys.path.insert(0, str(Path(__file__).parent))

from harms import FAULTS
from hosts import Host
from trial import Counts, Trial

from layerfarm.worker.signals import terminable

LONGEST = 240
"""Seconds for one trial."""

# --- the runs --------------------------------------------------------------------------------------


def run_trial(name: str, directory: Path, seed: int) -> Counts:
    counts = Counts(trials=1)
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        try:
            fault = FAULTS[name]
            hub = Host(stack) if fault.networked else None
            fault.run(Trial(directory, stack, random.Random(seed), durable=fault.durable, hub=hub), counts)
        except AssertionError as error:
            counts.lost += 1
            counts.notes.append(str(error))
        except Exception as error:
            # Whatever else: the other faults are still to be tried, and the table to be shown.
            counts.lost += 1
            counts.notes.append("".join(traceback.format_exception(error)))
    return counts


def main() -> int:
    seconds = float(os.environ.get("SECONDS") or 600)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    names = [name.strip() for name in os.environ.get("FAULTS", "").split(",") if name.strip()] or list(FAULTS)
    print(f"torture for {seconds:g} s, SEED={seed}", flush=True)
    # Ended by SIGTERM it leaves no mount and no process behind either.
    with terminable():
        totals = torture(names, seconds, seed)
    for line in table(totals):
        print(line)
    print(f"SEED={seed}")
    return 0 if all(counts.clean for counts in totals.values()) else 1


def torture(names: Sequence[str], seconds: float, seed: int) -> dict[str, Counts]:
    """Trials of the faults in turn, in an order of ``seed``, until the time is over."""
    rng = random.Random(seed)
    order = list(names)
    rng.shuffle(order)
    totals: dict[str, Counts] = {}
    deadline = time.monotonic() + seconds
    for number, name in enumerate(itertools.cycle(order)):
        if number and time.monotonic() >= deadline:
            return totals
        with tempfile.TemporaryDirectory(prefix="lf-torture-") as directory, _bounded():
            found = run_trial(name, Path(directory) / "trial", rng.randrange(1 << 32))
        totals.setdefault(name, Counts()).add(found)
        print(f"  {name}: {'; '.join(found.notes) or 'ok'}", flush=True)
    return totals


@contextmanager
def _bounded() -> Iterator[None]:
    """A trial that never ends is one in which something was lost: it fails where it stands."""

    def ends(*_: object) -> None:
        faulthandler.dump_traceback()
        raise AssertionError(f"trial did not end within {LONGEST} s")

    signal.signal(signal.SIGALRM, ends)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)


def table(totals: Mapping[str, Counts]) -> list[str]:
    rows = [("FAULT", "TRIALS", "RIGHT", "FAILED CLEARLY", "LOST", "DUPLICATE", "BLOBS OR TAGS LOST", "LEFT")]
    rows += [(name, *(str(number) for number in counts.numbers)) for name, counts in totals.items()]
    rows.append(("all", *(str(sum(column)) for column in zip(*(c.numbers for c in totals.values()), strict=True))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
