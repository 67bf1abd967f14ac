"""``make fuzz``: mutate from SEED in PROCESSES processes, save what was found, say the counts.

It ends after SECONDS, or after MUTATIONS if that is asked for; then SECONDS is the longest that it may take,
and not to have done them all by then is a failure. TARGETS names the kinds of input, all of them without it.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from tests.fuzz.archive_tar import ToolMissing
from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    mutations = int(os.environ.get("MUTATIONS") or 0) or None
    seconds = float(os.environ.get("SECONDS") or (60 if mutations is None else 3600))
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    processes = int(os.environ.get("PROCESSES") or 2)
    names = os.environ.get("TARGETS", "").split() or list(TARGETS)
    aim = f"{seconds:g} s" if mutations is None else f"{mutations} mutations, at most {seconds:g} s,"
    print(f"fuzzing {' '.join(names)} for {aim} in {processes} processes, SEED={seed}", flush=True)
    try:
        report = fuzz(seconds, seed, processes, [TARGETS[name] for name in names], mutations)
    except ToolMissing as error:
        print(f"{error}; without it: TARGETS='{' '.join(name for name in names if name != 'gotar')}'")
        return 1
    total = sum(report.inputs.values())
    rate = total / max(report.cpu, 0.001)
    isolation = "mount namespaces and chroots of their own" if report.private else "directories, not as root"
    print(f"{total} mutations in {report.seconds:.0f} s, {rate:.0f} per second of processor time, in {isolation}")
    print(f"the slowest took {report.slowest:.2f} s")
    for name in sorted(report.inputs):
        outcomes = [
            f"{key.partition(' ')[2]} {count}"
            for key, count in report.outcomes.most_common()
            if key.partition(" ")[0] == name
        ]
        print(f"  {name} {report.inputs[name]}: {', '.join(outcomes)}")
        for key, count in report.figures.most_common():
            if key.partition(" ")[0] == name:
                print(f"    {key.partition(' ')[2]}: {count}")
    for finding in report.findings.values():
        path = CORPUS / finding.name
        path.write_bytes(finding.data)
        print(f"FOUND {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}: {finding.what}")
    print(f"{len(report.findings)} findings (SEED={seed})")
    short = mutations is not None and total < mutations
    if short:
        print(f"time is up: {total} of {mutations} mutations were done")
    return 1 if report.findings or short else 0


if __name__ == "__main__":
    sys.exit(main())
