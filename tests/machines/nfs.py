"""``make nfs``: a store on an NFSv4 server, with clients and a server that vanish. Prints a table, and each fault.

Each trial has a layout of its own with the image ``base``. Afterwards every acknowledged tag must be there and intact,
and ``validate``, ``gc`` and skopeo must accept the layout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tests.machines.image import missing_for_machines
from tests.machines.machine import Command, Machine, Machines
from tests.machines.share import EXPORT, LEASE, MOUNT, Share, layerfarm, workload

CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "machines"
BEYOND: Final = 3 * LEASE
"""Seconds after which the server has forgotten a client that is silent."""
CLIENTS: Final = 3
_TRACEBACK: Final = "Traceback (most recent call last)"


@dataclass
class Trial:
    """A trial and its outcome."""

    name: str
    share: Share
    writers: int
    count: int
    number: int = 0
    tags: int = 0
    seen: list[str] = field(default_factory=list)
    """Observations for the table."""
    faults: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)

    @property
    def layout(self) -> str:
        return f"/mnt/layout-{self.number}"

    def expect(self, good: bool, fault: str) -> None:
        if not good:
            self.faults.append(fault)

    def write(self, *clients: Machine, place: str = "") -> list[Command]:
        """Start writers on the clients."""
        where = place or self.layout
        names = [f"{client.name}{'-' + place.strip('/').replace('/', '-') if place else ''}" for client in clients]
        return [
            workload(client, "tags", where, name, self.writers, self.count)
            for client, name in zip(clients, names, strict=True)
        ]

    def begun(self, command: Command) -> None:
        """Wait for the first tag of writers, so that they are at work."""
        line = next(command.lines(), "")
        self.expect(line.startswith("{"), f"writers did not begin: {line}")
        self.acknowledged.append(line)

    def take(self, command: Command, *, whole: bool = True) -> None:
        """Wait for writers; ``whole``: they must succeed."""
        ended = command.end()
        lines = ended.text.splitlines()
        self.acknowledged += [line for line in lines if line.startswith("{")]
        if whole:
            self.expect(ended.code == 0, f"writers ended with {ended.code}: {lines[-1:]}")

    def check(self, client: Machine) -> None:
        """Compare the layout with the acknowledged tags."""
        self.tags = len(self.acknowledged)
        ended = workload_check(client, self.layout, "\n".join(self.acknowledged))
        self.faults += ended


def workload_check(client: Machine, layout: str, acknowledged: str) -> list[str]:
    command = f"cd /opt/layerfarm && exec python3 -m workload check {layout}"
    ended = client.run(command, acknowledged)
    lines = ended.text.splitlines()
    return lines if ended.code == 0 else [f"check ended with {ended.code}: {lines[-1:]}"]


# --- the trials -------------------------------------------------------------------------------------


def writers(trial: Trial) -> None:
    """Writers on all clients, while gc and other readers work."""
    first, second, third = trial.share.clients
    reader = workload(third, "read", trial.layout)
    gc = f"layerfarm gc --layout {trial.layout} --grace=0s >/dev/null || exit 1"
    collecting = first.start(f"while ! [ -e /tmp/stop ]; do {gc}; done")
    looking = second.start(
        f"while ! [ -e /tmp/stop ]; do skopeo inspect --raw oci:{trial.layout}:base >/dev/null || exit 1; done"
    )
    for command in trial.write(first, second, third):
        trial.take(command)
    for client, command in ((third, reader), (first, collecting), (second, looking)):
        client.check("touch /tmp/stop; pkill -f '[w]orkload read'; true")
        ended = command.end()
        client.check("rm /tmp/stop")
        lines = [line for line in ended.text.splitlines() if line != "reading"]
        trial.expect(not lines and ended.code in (0, -15), f"{client.name}: {ended.code}: {lines[-1:]}")


def server_back_soon(trial: Trial) -> None:
    """Server cut, back at once."""
    _server_away(trial, 0)


def server_back_late(trial: Trial) -> None:
    """Server cut, back after its leases have ended."""
    _server_away(trial, BEYOND)


def _server_away(trial: Trial, seconds: float) -> None:
    commands = trial.write(*trial.share.clients[:2])
    trial.begun(commands[0])
    trial.share.server.cut()
    time.sleep(seconds)
    trial.share.reboot()
    for command in commands:
        trial.take(command)


def client_cut(trial: Trial) -> None:
    """Client cut with the lock of index.json."""
    first, second, _ = trial.share.clients
    _held(trial, first, "change")
    first.cut()
    begun = time.monotonic()
    trial.take(workload(second, "tags", trial.layout, "after", 1, 1))
    trial.seen.append(f"the next writer waits {time.monotonic() - begun:.0f} s")
    first.boot()
    trial.share.mount(first)


def _held(trial: Trial, client: Machine, step: str) -> Command:
    """Start a writer that pauses under the lock, and wait until it does."""
    holder = workload(client, "hold", trial.layout, "held", step)
    trial.expect(next(holder.lines(), "") == "held", "lock was not taken")
    return holder


def lock_lost_at_change(trial: Trial) -> None:
    """Client parted before it writes the next index; another client sets a tag."""
    _lock_lost(trial, "change")


def lock_lost_at_rename(trial: Trial) -> None:
    """Client parted before it renames the next index; another client sets a tag."""
    _lock_lost(trial, "rename")


def _lock_lost(trial: Trial, step: str) -> None:
    first, second, _ = trial.share.clients
    network = trial.share.network
    holder = _held(trial, first, step)
    network.part(first.number, trial.share.server.number)
    time.sleep(BEYOND)
    trial.take(workload(second, "tags", trial.layout, "meanwhile", 1, 1))
    network.heal()
    first.check("touch /tmp/go")
    trial.take(holder)
    first.check("rm /tmp/go")


def parted_briefly(trial: Trial) -> None:
    """Client parted from the server for 3 s."""
    _parted(trial, 3, whole=True)


def parted_beyond(trial: Trial) -> None:
    """Client parted from the server until its leases have ended."""
    _parted(trial, BEYOND, whole=False)


def _parted(trial: Trial, seconds: float, *, whole: bool) -> None:
    first, second, _ = trial.share.clients
    commands = trial.write(first, second)
    trial.begun(commands[0])
    network = trial.share.network
    network.part(first.number, trial.share.server.number)
    time.sleep(seconds)
    network.heal()
    # After its leases the writer may end with an error, but not silently.
    trial.take(commands[0], whole=whole)
    trial.take(commands[1])


def clock_off(trial: Trial) -> None:
    """Client whose clock is off by five minutes."""
    first, _, third = trial.share.clients
    third.cut()
    third.boot(clock=(datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%S"))
    trial.share.mount(third)
    for command in trial.write(first, third):
        trial.take(command)
    layerfarm(third, "gc", "--layout", trial.layout, "--grace=60s")
    said = layerfarm(third, "doctor", "--store", trial.layout).text
    trial.expect("clock" in said, f"doctor does not name the clock: {said[-300:]}")
    third.cut()
    third.boot()
    trial.share.mount(third)


def root_squash(trial: Trial) -> None:
    """Export with root_squash, client works as root."""
    trial.share.export(EXPORT.replace("no_root_squash", "root_squash"))
    _refused(trial, trial.share.clients[0], trial.layout)
    trial.share.export(EXPORT)


def read_only(trial: Trial) -> None:
    """Mounted read-only."""
    client = trial.share.clients[0]
    trial.share.mount(client, f"ro,nosharecache,{MOUNT}", "/ro")
    _refused(trial, client, trial.layout.replace("/mnt", "/ro"))
    client.check("umount /ro")


def soft(trial: Trial) -> None:
    """Mounted soft, server away for 20 s."""
    client = trial.share.clients[0]
    trial.share.mount(client, "vers=4.2,soft,timeo=20,retrans=1,nosharecache,lookupcache=positive", "/soft")
    place = trial.layout.replace("/mnt", "/soft")
    said = layerfarm(client, "doctor", "--store", place).text
    trial.expect("with soft" in said, f"doctor does not name soft: {said[-300:]}")
    (command,) = trial.write(client, place=place)
    trial.begun(command)
    trial.share.server.cut()
    time.sleep(20)
    trial.share.reboot()
    trial.take(command, whole=False)
    client.check("umount -l /soft")


def twice(trial: Trial) -> None:
    """Mounted twice on one client."""
    client = trial.share.clients[0]
    trial.share.mount(client, f"nosharecache,{MOUNT}", "/other")
    commands = [*trial.write(client), *trial.write(client, place=trial.layout.replace("/mnt", "/other"))]
    for command in commands:
        trial.take(command)
    client.check("umount -l /other")


def traffic(trial: Trial) -> None:
    """Requests of a client for each operation."""
    ended = workload(trial.share.clients[0], "traffic", trial.layout).end()
    trial.expect(ended.code == 0, ended.text[-300:])
    trial.seen += ended.text.splitlines()


def replaced(trial: Trial) -> None:
    """Exported filesystem replaced: stale handles."""
    first, second, _ = trial.share.clients
    reader = workload(second, "read", trial.layout)
    trial.expect(next(reader.lines(), "") == "reading", "the reader did not begin")
    trial.share.server.check(
        "rpc.nfsd 0; exportfs -ua; exportfs -f; pkill -x nfsdcld; pkill -x rpc.mountd; sleep 1; "
        "umount /var/lib/nfs && umount /srv && mkfs.ext4 -q -F /dev/vda"
    )
    trial.share.export(EXPORT)
    _refused(trial, first, trial.layout)
    ended = reader.end()
    trial.expect(ended.code not in (0, None), "the reader saw nothing")
    trial.seen.append("clear errors")
    for client in trial.share.clients:
        client.check("umount -l /mnt")
        trial.share.mount(client)


def _refused(trial: Trial, client: Machine, layout: str) -> None:
    """A command must fail in one line and leave the layout as it was."""
    ended = layerfarm(client, "tag", "--image", f"{layout}:base", "refused")
    trial.expect(ended.code not in (0, None), f"tag ended with {ended.code}")
    trial.expect(_TRACEBACK not in ended.text, f"traceback: {ended.text[-300:]}")
    trial.seen.append(ended.text.splitlines()[0][:150] if ended.text else "no message")


TRIALS: Final[tuple[Callable[[Trial], None], ...]] = (
    writers,
    server_back_soon,
    server_back_late,
    client_cut,
    lock_lost_at_change,
    lock_lost_at_rename,
    parted_briefly,
    parted_beyond,
    clock_off,
    twice,
    root_squash,
    read_only,
    soft,
    traffic,
    replaced,
)


def run(share: Share, trials: tuple[Callable[[Trial], None], ...], writers: int, count: int) -> Iterator[Trial]:
    """Run the trials one after the other."""
    for number, body in enumerate(trials):
        trial = Trial(str(body.__doc__).rstrip("."), share, writers, count, number)
        client = share.clients[0]
        client.check(
            f"layerfarm init --layout {trial.layout} && layerfarm build --rootfs /etc/apt --image {trial.layout}:base"
        )
        try:
            body(trial)
            if body is not replaced:
                trial.check(share.clients[1])
        except Exception as error:  # The next trials say more than this one's end.
            trial.faults.append(f"{type(error).__name__}: {error}"[:500])
        yield trial


def main() -> int:
    """Print the table; 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="make nfs", description=__doc__)
    parser.add_argument("--writers", type=int, default=8, help="processes on each client")
    parser.add_argument("--tags", type=int, default=25, help="tags of each process")
    parser.add_argument("--only", nargs="+", choices=[body.__name__ for body in TRIALS], default=[])
    options = parser.parse_args()
    missing = missing_for_machines()
    if missing:
        print(f"make nfs needs {missing}", file=sys.stderr)
        return 2
    named = {body.__name__: body for body in TRIALS}
    chosen = tuple(named[name] for name in options.only) or TRIALS
    faults = 0
    with Machines(CACHE) as machines:
        share = Share(machines, CLIENTS)
        print(f"| {'trial':60} | tags | faults | seen |\n|---|---|---|---|", flush=True)
        for trial in run(share, chosen, options.writers, options.tags):
            faults += len(trial.faults)
            print(f"| {trial.name:60} | {trial.tags:4} | {len(trial.faults):6} | {'; '.join(trial.seen)} |", flush=True)
            for fault in trial.faults:
                print(f"  {fault}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
