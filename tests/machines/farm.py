"""``make farmcut``: a farm on machines of its own that lose power while jobs run. Prints a table, and each fault.

Redis runs on one machine, with its append-only file on a disk that loses its volatile cache; the store is on an NFS
server; two machines run workers, as systemd does, and a third one submits jobs. Every job must end, and nothing may be
left in the store afterwards.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from layerfarm.worker.engine.failpoints import STEPS
from tests.machines import trial as trials
from tests.machines.machine import Command, Machine, Machines
from tests.machines.share import Share
from tests.machines.trial import Body, Trial

SIZE: Final = 256 << 20
_REDIS: Final = """
mountpoint -q /srv || mount -o data=ordered /dev/vda /srv
redis-server --bind 0.0.0.0 --protected-mode no --dir /srv --save '' --appendonly yes --appendfsync {fsync} \
    --maxmemory-policy noeviction --daemonize yes --logfile /srv/log >/dev/null
until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.1; done
"""
_WORKER: Final = "while :; do layerfarm worker --root /mnt --store /mnt --concurrency 2; sleep 5; done >>/tmp/log 2>&1"
"""As the unit of systemd, with Restart=always and RestartSec=5."""
_CATALOG: Final = """
mkdir -p {layout}-trees/tree && cd {layout}-trees
for number in $(seq {images}); do
    head -c 300000 /dev/urandom >tree/file-$((number % 3))
    layerfarm build --rootfs tree --image {layout}:web-$number >/dev/null
done
cat >catalog.yaml <<END
store: {layout}-work
sources: [{{layout: {layout}, tags: ["web-*"]}}]
policies: [{{match: "*", do: {{transform: recompress, compress: zstd}}}}]
destination: {{layout: {layout}-relayered}}
END
"""
_RUN: Final = """
cd {layout}-trees
for turn in $(seq 20); do layerfarm catalog run --farm "$LAYERFARM_FARM" catalog.yaml && exit; sleep 2; done 2>&1
exit 1
"""
"""A run that ends because Redis or its machine was away is started again, as its user does."""
_LEFT: Final = """
cd {layout}/.layerfarm
for second in $(seq 60); do
    left=$(find work leases leases-of-others -mindepth 1 2>/dev/null)
    [ -n "$left" ] || exit 0
    sleep 1
done
echo "$left"
exit 1
"""


class Farm(Share):
    """A share with Redis on a further machine; the last client submits, the others work."""

    def __init__(self, machines: Machines) -> None:
        super().__init__(machines, 3)
        self.redis = machines.machine("redis", [machines.disk("redis", SIZE)])
        self.redis.check("mkfs.ext4 -q /dev/vda")
        self.fsync = "always"
        *self.workers, self.submitter = self.clients

    def begin(self, fsync: str) -> None:
        """Start an empty Redis, and the workers."""
        self.fsync = fsync
        self.redis.check("redis-cli shutdown nosave 2>/dev/null; rm -rf /srv/appendonlydir")
        self.start_redis()
        for client in self.workers:
            self.start_worker(client)

    def start_redis(self) -> None:
        self.redis.check(_REDIS.format(fsync=self.fsync))

    def start_worker(self, client: Machine, variables: str = "") -> None:
        client.start(f"{self._exports(variables)} {_WORKER}")

    def submit(self, layout: str, builds: int, name: str = "job") -> Command:
        """Start the submitter."""
        words = f"{layout} {builds} {name}"
        return self.on_submitter(f"cd /opt/layerfarm && exec python3 -m submitter {words}")

    def on_submitter(self, command: str) -> Command:
        """Start a shell command that knows the farm."""
        return self.submitter.start(f"{self._exports()} {command}")

    def states(self) -> Counter[str]:
        """Number of jobs by state."""
        listed = self.submitter.check(f"{self._exports()} layerfarm jobs ls --json")
        return Counter(json.loads(line)["state"] for line in listed.splitlines())

    def end(self) -> None:
        """End the workers."""
        for client in self.workers:
            client.check("pkill -9 -f '[l]ayerfarm[ .]worker'; true")

    def _exports(self, variables: str = "") -> str:
        # A failed job keeps nothing for a retry.
        return f"export LAYERFARM_FARM=redis://{self.redis.address}/0 LAYERFARM_RETRY_FOR=0 {variables};"


Victim = Callable[[Farm, random.Random], None]


def redis(farm: Farm, _: random.Random) -> None:
    farm.redis.cut()
    farm.redis.boot()
    farm.start_redis()


def worker(farm: Farm, chance: random.Random) -> None:
    client = chance.choice(farm.workers)
    client.cut()
    client.boot()
    farm.mount(client)
    farm.start_worker(client)


def store(farm: Farm, _: random.Random) -> None:
    farm.server.cut()
    farm.reboot()


def redis_cut(trial: Trial) -> None:
    """Power of Redis is cut again and again, with `appendfsync always`."""
    _cut(trial, redis)


def redis_cut_everysec(trial: Trial) -> None:
    """The same with `appendfsync everysec`."""
    _cut(trial, redis, fsync="everysec")


def worker_cut(trial: Trial) -> None:
    """Power of one of two worker machines is cut again and again."""
    _cut(trial, worker)


def store_cut(trial: Trial) -> None:
    """Power of the store's NFS server is cut again and again."""
    _cut(trial, store)


def any_cut(trial: Trial) -> None:
    """Power of Redis, a worker or the NFS server is cut again and again."""
    _cut(trial, redis, worker, store)


def step_cut(trial: Trial) -> None:
    """Power of a worker machine is cut at each named step of a job; another one then starts."""
    farm = _farm(trial)
    farm.begin("always")
    for number, step in enumerate(STEPS):
        farm.end()
        victim, rescuer = farm.workers if number % 2 else reversed(farm.workers)
        mark = f"{trial.layout}-{step}"  # A unit's sandbox may write there.
        farm.start_worker(victim, f"LAYERFARM_KILL_AT={step} LAYERFARM_KILL_ONCE={mark}")
        work = farm.submit(trial.layout, 1, name=step)
        victim.check(f"until [ -e {mark} ]; do sleep 0.05; done")
        victim.cut()
        farm.start_worker(rescuer)
        victim.boot()
        farm.mount(victim)
        trial.take(work)
    _settle(trial, f"{len(STEPS)} cuts")


def catalog_cut(trial: Trial) -> None:
    """Power of Redis, a worker or the NFS server is cut every 30 s, while a catalog is recompressed."""
    farm = _farm(trial)
    chance = random.Random(trial.options.seed + trial.number)
    place = {"layout": trial.layout, "images": 3 * trial.options.builds}
    farm.submitter.check(_CATALOG.format(**place))
    farm.begin("always")
    run = farm.on_submitter(_RUN.format(**place))
    cuts = _cuts(farm, run, (redis, worker, store), chance, 30)
    ended = run.end()
    trial.expect(ended.code == 0, f"catalog run: {ended.text[-500:]}")
    for words in (f"catalog verify {trial.layout}-trees/catalog.yaml", f"validate --layout {trial.layout}-relayered"):
        said = farm.submitter.run(f"layerfarm {words}")
        trial.expect(said.code == 0, f"{words}: {said.text[-500:]}")
    listed = farm.submitter.check(f"layerfarm ls --layout {trial.layout}-relayered").split()
    trial.expect(len(listed) == place["images"], f"{len(listed)} images of {place['images']}")
    _nothing_left(trial, f"{trial.layout}-work")
    trial.seen.append(f"{cuts} cuts, {len(listed)} images, {ended.text.count('catalog:')} runs")
    farm.end()


def _farm(trial: Trial) -> Farm:
    assert isinstance(trial.share, Farm)
    return trial.share


def _cut(trial: Trial, *victims: Victim, fsync: str = "always") -> None:
    farm = _farm(trial)
    chance = random.Random(trial.options.seed + trial.number)
    farm.begin(fsync)
    work = farm.submit(trial.layout, trial.options.builds)
    trial.begun(work)
    cuts = _cuts(farm, work, victims, chance, 5)
    said = trial.take(work).text.splitlines()
    _settle(trial, f"{cuts} cuts", *(line for line in said if line.startswith("failed ")))


def _cuts(farm: Farm, work: Command, victims: Sequence[Victim], chance: random.Random, least: float) -> int:
    """Cut the power of victims until the work is over, ``least`` to 30 s apart; return the number of cuts."""
    cuts = 0
    while not work.over:
        time.sleep(chance.uniform(least, 30))
        chance.choice(victims)(farm, chance)
        cuts += 1
    return cuts


def _nothing_left(trial: Trial, layout: str) -> None:
    left = _farm(trial).submitter.run(_LEFT.format(layout=layout))
    trial.expect(left.code == 0, f"left in the store: {left.text}")


def _settle(trial: Trial, cuts: str, *failed: str) -> None:
    """Every job has ended as the submitter was told, and nothing of them is left in the store."""
    farm = _farm(trial)
    states = farm.states()
    trial.expect(set(states) <= {"succeeded", "failed"}, f"jobs that have not ended: {states}")
    trial.expect(not states["failed"] and not failed, f"healthy jobs failed: {states} {'; '.join(failed)}")
    _nothing_left(trial, trial.layout)
    trial.seen.append(f"{cuts}, {states['succeeded']} jobs succeeded")
    farm.end()


BODIES: Final[tuple[Body, ...]] = (redis_cut, redis_cut_everysec, worker_cut, step_cut, store_cut, any_cut, catalog_cut)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make farmcut", description=__doc__)
    parser.add_argument("--builds", type=int, default=20, help="builds, each followed by a recompression")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    return trials.main(parser, BODIES, lambda machines, _: Farm(machines))


if __name__ == "__main__":
    sys.exit(main())
