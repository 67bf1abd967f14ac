"""Trials on a shared store: bodies that change machines, and rows of what was acknowledged, lost and seen.

Each trial has a layout of its own with the image ``base``. Afterwards every acknowledged tag must be there and intact,
and ``validate``, ``gc`` and skopeo must accept the layout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from layerfarm.worker.signals import terminable
from tests.machines.image import CACHE, missing_for_machines
from tests.machines.machine import Command, Ended, Machine, Machines
from tests.machines.share import Share, workload

TRACEBACK: Final = "Traceback (most recent call last)"
_HEAD: Final = "| fault | trials | acknowledged tags | faults found | slowest tag | seen |\n|---|---|---|---|---|---|"


@dataclass
class Trial:
    """A trial and its outcome."""

    share: Share
    number: int
    options: argparse.Namespace
    seen: list[str] = field(default_factory=list)
    """Observations for the table."""
    faults: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    replaced: bool = False
    """The layout is gone with its filesystem."""

    @property
    def layout(self) -> str:
        return f"/mnt/layout-{self.number}"

    def expect(self, good: bool, fault: str) -> None:
        if not good:
            self.faults.append(fault)

    def begun(self, command: Command) -> None:
        """Wait for the first acknowledged tag of a command."""
        line = ""
        for line in command.lines():
            if line.startswith("{"):  # Others are warnings.
                self.acknowledged.append(line)
                return
        self.expect(False, f"work did not begin: {line}")

    def take(self, command: Command, *, whole: bool = True) -> Ended:
        """Wait for a command that prints acknowledged tags. ``whole``: it must succeed, otherwise its end is noted."""
        ended = command.end()
        lines = ended.text.splitlines()
        self.acknowledged += [line for line in lines if line.startswith("{")]
        said = next((line for line in reversed(lines) if not line.startswith("{")), "")
        if whole:
            self.expect(ended.code == 0, f"work ended with {ended.code}: {said}")
        else:
            self.expect(ended.code == 0 or bool(said), f"work ended with {ended.code} and no error")
            self.seen.append(said[:150] or "no error")
        return ended

    def refused(self, ended: Ended) -> None:
        """Expect that a command of layerfarm failed in one line, and note that line."""
        self.expect(ended.code not in (0, None), f"command ended with {ended.code}")
        self.expect(TRACEBACK not in ended.text, f"traceback: {ended.text[-300:]}")
        self.seen.append(ended.text.splitlines()[0][:150] if ended.text else "no message")

    def check(self, client: Machine) -> None:
        """Compare the layout with the acknowledged tags."""
        ended = workload(client, "check", self.layout, stdin="\n".join(self.acknowledged)).end()
        lines = ended.text.splitlines()
        self.faults += lines if ended.code == 0 else [f"check ended with {ended.code}: {lines[-1:]}"]


Body = Callable[[Trial], None]


class HasFaults(Protocol):
    faults: list[str]


@dataclass
class Row:
    """Outcomes of all trials with one body."""

    name: str
    trials: int = 0
    tags: int = 0
    slowest: float = 0
    faults: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        tags = [json.loads(line) for line in trial.acknowledged if line]
        self.trials += 1
        self.tags += len(tags)
        self.slowest = max([self.slowest, *(tag["seconds"] for tag in tags)])
        self.faults += trial.faults
        self.seen += [each for each in trial.seen if each not in self.seen]

    def __str__(self) -> str:
        numbers = f"{self.trials} | {self.tags} | {len(self.faults)} | {self.slowest:.0f} s"
        return f"| {self.name} | {numbers} | {'; '.join(self.seen)} |"


def run(share: Share, bodies: Sequence[Body], options: argparse.Namespace) -> Iterator[Row]:
    """Run each body ``options.times`` times."""
    number = 0
    for body in bodies:
        row = Row(str(body.__doc__).rstrip("."))
        for _ in range(options.times):
            number += 1
            trial = Trial(share, number, options)
            try:
                _one(trial, body)
            except Exception as error:  # The other trials still say something.
                trial.faults.append(f"{type(error).__name__}: {error}"[:500])
            row.add(trial)
        yield row


def _one(trial: Trial, body: Body) -> None:
    share, client = trial.share, trial.share.clients[0]
    share.restore()
    client.check(
        f"layerfarm init --layout {trial.layout} && layerfarm build --rootfs /etc/apt --image {trial.layout}:base"
    )
    body(trial)
    share.restore()
    if not trial.replaced:
        trial.check(share.clients[1])


def main(
    parser: argparse.ArgumentParser, bodies: Sequence[Body], prepare: Callable[[Machines, argparse.Namespace], Share]
) -> int:
    """Print the table of the chosen trials, and each fault; 1 if there is one."""
    named = {body.__name__: body for body in bodies}
    parser.add_argument("--times", type=int, default=1, help="repeat each trial")
    parser.add_argument("--only", nargs="+", choices=named, default=list(named))
    options = parser.parse_args()
    missing = missing_for_machines()
    if missing:
        print(f"{parser.prog} needs {missing}", file=sys.stderr)
        return 2
    with terminable(), Machines(CACHE) as machines:
        share = prepare(machines, options)
        print(_HEAD, flush=True)
        return report(run(share, [named[name] for name in options.only], options))


def report(rows: Iterable[HasFaults]) -> int:
    """Print each row when it is complete, and its faults; 1 if there is one."""
    faults = 0
    for row in rows:
        faults += len(row.faults)
        print("\n".join((str(row), *(f"  {fault}" for fault in row.faults))), flush=True)
    return 1 if faults else 0
