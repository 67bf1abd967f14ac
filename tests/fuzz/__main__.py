"""``make fuzz``: mutate for SECONDS from SEED in PROCESSES processes, save what was found, say the counts."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    seconds = float(os.environ.get("SECONDS") or 60)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    processes = int(os.environ.get("PROCESSES") or 2)
    names = os.environ.get("TARGETS", "").split() or list(TARGETS)
    print(f"fuzzing {' '.join(names)} for {seconds:g} s in {processes} processes, SEED={seed}", flush=True)
    report = fuzz(seconds, seed, processes, [TARGETS[name] for name in names])
    total = sum(report.inputs.values())
    rate = total / max(report.cpu, 0.001)
    isolation = "mount namespaces and chroots of their own" if report.private else "directories, not as root"
    print(f"{total} mutations in {report.seconds:.0f} s, {rate:.0f} per second of processor time, in {isolation}")
    for name in sorted(report.inputs):
        outcomes = [
            f"{key.partition(' ')[2]} {count}"
            for key, count in report.outcomes.most_common()
            if key.partition(" ")[0] == name
        ]
        print(f"  {name} {report.inputs[name]}: {', '.join(outcomes)}")
    for finding in report.findings.values():
        path = CORPUS / finding.name
        path.write_bytes(finding.data)
        print(f"FOUND {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}: {finding.what}")
    print(f"{len(report.findings)} findings (SEED={seed})")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
