"""``make bench-catalog KILLS=1``: the whole catalog re-layered while workers, registry and the run itself are killed.

At random times, with SIGKILL: a worker with all its processes, one process of a worker, the registry that the images
come from and go to, ``layerfarm catalog run``. What was killed is started again; a run that was killed, or that has
failed because the registry was away for too long, is repeated, as its user would. At the end every image is checked:
by its proof, by its digest in the registry, and (in :mod:`tests.bench.catalog`) by umoci.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.offers import look
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.registry import Registry
from tests.farm.ground import Ground

WORKERS: Final = 2
RUNS: Final = 60
"""Runs after which it counts as one that does not end."""
PAUSE: Final = (3.0, 20.0)
"""Seconds between two kills, at least and at most."""
AWAY: Final = (0.5, 5.0)
"""Seconds for which the registry stays away."""
HARMS: Final = {"worker": 4, "process of a worker": 4, "registry": 4, "run": 1}
"""Targets to kill, with their relative frequency."""


class Kills:
    """A farm and a registry, and who kills them."""

    def __init__(self, ground: Ground, registry: Registry, seed: int, say: Callable[[str], None]) -> None:
        self._ground = ground
        self._registry = registry
        self._rng = random.Random(seed)
        self._say = say
        self._workers = [self._worker() for _ in range(WORKERS)]
        self.done: Counter[str] = Counter()
        """Numbers of kills."""
        self.runs = 0

    def run(self, catalog: Path) -> dict[str, Any]:
        """Run the catalog, again and again, until a run has nothing left to do; its report.

        Raises:
            AssertionError: that does not come to an end.
        """
        output = catalog.with_suffix(".json")
        for self.runs in range(1, RUNS + 1):
            with output.open("wb") as out, output.with_suffix(".log").open("ab") as log:
                run = subprocess.Popen(
                    [*_CATALOG, "run", catalog, "--json", "--progress=plain", "--farm", self._ground.url],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                )
                self._disturb(run)
            self._say(f"run {self.runs} ended with {run.returncode}; killed so far: {self.text()}")
            if run.returncode == 0:
                report: dict[str, Any] = json.loads(output.read_text())
                return report
        raise AssertionError(f"{RUNS} runs have not done it: {output.with_suffix('.log')}")

    def text(self) -> str:
        return ", ".join(f"{count} times a {what}" for what, count in sorted(self.done.items()))

    def _disturb(self, run: subprocess.Popen[bytes]) -> None:
        while True:
            try:
                run.wait(self._rng.uniform(*PAUSE))
            except subprocess.TimeoutExpired:
                (what,) = self._rng.choices(list(HARMS), list(HARMS.values()))
                self._kill(what, run)
            else:
                return

    def _kill(self, what: str, run: subprocess.Popen[bytes]) -> None:
        number = self._rng.randrange(WORKERS)
        self.done[what] += 1
        match what:
            case "worker":
                os.killpg(self._workers[number].pid, signal.SIGKILL)
                self._workers[number].wait()
                self._workers[number] = self._worker()
            case "process of a worker":
                children = _children(self._workers[number].pid)
                if children:
                    os.kill(self._rng.choice(children), signal.SIGKILL)
            case "registry":
                self._registry.kill()
                time.sleep(self._rng.uniform(*AWAY))
                self._registry.start()
            case "run":
                run.kill()

    def _worker(self) -> subprocess.Popen[bytes]:
        return self._ground.start_worker(flows="", concurrency=1)


def killed_and_equal(
    place: Path, registry: Registry, policy: str, repositories: list[str], seed: int, say: Callable[[str], None]
) -> str:
    """Re-layer what the registry holds, in ``place/allowed/ours``, under kills, and check all of it; what was seen.

    Raises:
        AssertionError: an image was not made, is not equal, or is not in the registry.
    """
    say(f"killing at random, SEED={seed}")
    with ExitStack() as stack:
        ground = Ground(place, stack)
        catalog = ground.allowed / "ours.yaml"
        catalog.write_text(
            f"store: ours\nsources:\n  - registry: docker://{registry.host}\n"
            f"    repositories: {json.dumps(repositories)}\n"
            f"policies: [{{match: '*', do: {{{policy}}}}}]\n"
            f"destination: {{registry: 'docker://{registry.host}/new'}}\naccess: {{tls-verify: false}}\n"
        )
        kills = Kills(ground, registry, seed, say)
        begin = time.monotonic()
        report = kills.run(catalog)
        seconds = time.monotonic() - begin
        images = {row["name"]: row for row in report["images"]}
        assert {row["state"] for row in images.values()} == {"done"}, images
        verified = subprocess.run(
            [*_CATALOG, "verify", catalog, "--farm", ground.url], stdout=subprocess.PIPE, text=True, check=False
        )
        assert verified.returncode == 0, verified.stdout
    skopeo = Skopeo(Access.model_validate({"tls-verify": False}))
    for name, row in images.items():
        there = look(skopeo, f"docker://{registry.host}/new/{name}").digest
        assert there == row["new"], f"{name}: {there} in the registry, {row['new']} in the store"
    left = [path.name for path in (Layout.open(ground.allowed / "ours").path / ".layerfarm/work").iterdir()]
    say(f"directories of killed jobs left for the janitor: {len(left)}")
    return (
        f"{len(images)} images in {seconds:.0f} s and {kills.runs} runs, killed {kills.text()}; "
        f"verify: {verified.stdout.strip()}; every digest in the registry is that in the store"
    )


_CATALOG: Final = (sys.executable, "-m", "layerfarm.worker.cli", "catalog")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
